"""Id maps in files: one map per image, named like the image; the masks of a COCO file as id maps.

Layer 1: imports config, files and this folder.

Shapes: h x w an id map, size x size what it is reduced to, H x W pixels of an annotated image, n objects.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from plrc.data.masks import decode_masks, encode_segment, mask_functions
from plrc.data.sources import ImageList
from plrc.errors import PlrcError
from plrc.files import parse_json, write_atomic

ENDINGS = (".png", ".npz", ".npy")
MOST = 2**15 - 1
"""Regions of an image at most: ids are int16."""
MOST_PIXELS = 200_000_000
"""Of an id map, and of an image whose masks are read: a small file can claim, and inflate to, any number."""

_COLOUR = np.array([1 << 16, 1 << 8, 1])
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)


class RegionError(PlrcError):
    """The regions of one image cannot be had: its id map is missing or cannot be used, or no annotation names it.
    `reason` says why, as that of a DecodeError does."""

    @property
    def reason(self) -> str:
        return str(self)


def find_map(folder: str | Path, name: str) -> Path | None:
    """The id map of the image with the relative name `name` (a/b.jpg: a/b.png, .npz or .npy), if it has one."""
    path = map_path(folder, name)
    return next((found for found in map(path.with_suffix, ENDINGS) if found.is_file()), None)


def map_path(folder: str | Path, name: str) -> Path:
    """Where the id map of an image is written: a/b.jpg -> FOLDER/a/b.png. Raises RegionError for a name that leads out
    of the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RegionError(f"image {name} lies outside the source's folder, so no id map can be named like it")
    return (Path(folder) / name).with_suffix(ENDINGS[0])


def save_regions(path: Path, ids: Tensor) -> None:
    """Write ids [h, w] (-1 to MOST - 1) as a grey PNG of 16 bits, 0 unlabelled: what `load_regions` reads back."""
    picture = Image.fromarray((ids.numpy().astype(np.int32) + 1).astype(np.uint16))
    write_atomic(path, partial(picture.save, format="PNG"))


def load_regions(file: str | Path | BinaryIO, size: int, name: str = "") -> Tensor:
    """Read an id map and reduce it, nearest at cell centers, to int16 [size, size]: ids 0 .. k - 1, -1 unlabelled.

    file: a path, or an open PNG with the `name` that messages give it.

    PNG: grey of 8 or 16 bits, or palette indices, 0 unlabelled; or RGB, each color an id and black unlabelled.
    .npy, .npz (its first array): whole numbers [H, W], negative ones unlabelled. Raises RegionError otherwise.
    """
    path = Path(file) if isinstance(file, (str, Path)) else None
    name = str(path) if path else name
    if path and path.suffix.lower() not in ENDINGS:
        raise RegionError(f"{path} is not an id map: its ending must be one of {', '.join(ENDINGS)}")
    try:
        ids = _array_ids(path, size) if path and path.suffix.lower() != ".png" else _png_ids(file, size)
    except _UNREADABLE as error:
        raise RegionError(f"cannot read the id map {name}: {error}") from error
    return compact(ids, name)


def resized(ids: NDArray[Any], size: int) -> NDArray[Any]:
    """[..., H, W] -> [..., size, size]: the values at the cell centers."""
    row, column = (((np.arange(size) + 0.5) * side / size).astype(np.int64) for side in ids.shape[-2:])
    return np.asarray(ids[..., row[:, None], column])


def compact(ids: NDArray[Any], name: str) -> Tensor:
    """Rename ids [h, w] to 0 .. k - 1, keep their order, and every negative id to -1: int16.

    Raises RegionError, with the name of the image or file, for more than MOST ids.
    """
    known, places = np.unique(np.maximum(ids, -1), return_inverse=True)
    first = int(known[0] == -1)
    if len(known) - first > MOST:
        raise RegionError(f"{name} has {len(known) - first} regions at regions.map_size; at most {MOST} can be used")
    return torch.from_numpy((places.reshape(ids.shape) - first).astype(np.int16))


@dataclass(frozen=True)
class Masks:
    """The masks that a COCO file has for the images of a list."""

    path: str
    entries: dict[str, bytes]
    """Name -> JSON of [H, W, [[segmentation, is crowd] ...]]. As text, the masks of 100,000 images take a few hundred
    megabytes, which loader processes share."""

    def objects(self, name: str, size: int) -> NDArray[np.int32]:
        """The objects of an image, at cell centers: int32 [size, size], 0 background, above 0 an object, -1 a crowd (an
        area whose objects are not told apart). Smaller objects lie on larger ones, and all objects on crowds.

        Masks that are malformed or of another size than the image are left out. Raises RegionError for an image that
        the file does not list.
        """
        if name not in self.entries:
            raise RegionError(f"{self.path} does not list image {name}; add it there, or leave it out of the images")
        height, width, given = parse_json(self.entries[name])
        segments = [(encode_segment(segment, height, width), crowd) for segment, crowd in given]
        usable = [(segment, crowd) for segment, crowd in segments if segment is not None]
        areas = [int(mask_functions().area(segment)) for segment, _ in usable]
        objects = np.zeros((size, size), dtype=np.int32)
        for i in sorted(range(len(usable)), key=lambda i: (not usable[i][1], -areas[i])):
            mask = resized(decode_masks((usable[i][0],), height, width)[0], size)
            objects[mask > 0] = -1 if usable[i][1] else i + 1
        return objects


def read_masks(path: str | Path, images: ImageList) -> Masks:
    """Read a COCO file. An entry whose `file_name` leads from the file's own folder to an image is that image's alone;
    of the others an image has the one with whose `file_name` its path ends, the longest such name.

    Raises PlrcError where the file cannot be read, has no masks, lists none of the images or one entry for two of them,
    and where faster-coco-eval is missing.
    """
    mask_functions()
    masks: defaultdict[Any, list[tuple[Any, bool]]] = defaultdict(list)
    try:
        table = parse_json(Path(path).read_text(encoding="utf-8-sig"))
        entries = {str(image["file_name"]).removeprefix("./"): image for image in table["images"]}
        sizes = {file: _checked_size(int(image["height"]), int(image["width"])) for file, image in entries.items()}
        for note in table["annotations"]:
            if note.get("segmentation"):
                masks[note["image_id"]].append((note["segmentation"], bool(note.get("iscrowd", 0))))
        found = {file: json.dumps([*sizes[file], masks[image["id"]]]).encode() for file, image in entries.items()}
    except OSError as error:
        raise PlrcError(f"{path} cannot be read ({error.strerror}); name a COCO file with masks") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlrcError(f"{path} is not a COCO file of instances: {error!r} in its images or annotations") from error
    if not any(masks.values()):
        raise PlrcError(f"{path} has no masks (no annotation has a segmentation); name a COCO file with masks")
    here = os.path.dirname(os.path.abspath(path))
    exact = {os.path.realpath(place): file for file in found if os.path.isfile(place := os.path.join(here, file))}
    loose = found.keys() - exact.values()
    taken: dict[str, str] = {}
    for i, name in enumerate(images.names):
        parts = images.path(i).replace(os.sep, "/").split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        file = exact.get(os.path.realpath(images.path(i))) or next((tail for tail in tails if tail in loose), None)
        if file in taken:
            raise PlrcError(f"{path} lists {file} once, but {taken[file]} and {name} both fit; name its images alone")
        if file is not None:
            taken[file] = name
    if not taken:
        raise PlrcError(f"{path} lists none of the {len(images)} images, such as {images.names[0]}; name its images")
    return Masks(str(path), {name: found[file] for file, name in taken.items()})


def _checked_size(height: int, width: int) -> tuple[int, int]:
    if not 0 < height * width <= MOST_PIXELS or height < 0:
        raise ValueError(f"{height} x {width} pixels; 1 to {MOST_PIXELS} can be used")
    return height, width


def _png_ids(file: str | Path | BinaryIO, size: int) -> NDArray[np.int64]:
    """Ids of a PNG with 0 as -1, at the cell centers: [size, size]. Alpha is ignored."""
    with Image.open(file, formats=["PNG"]) as image:
        _checked_size(image.height, image.width)
        if image.mode == "RGBA":
            pixels = np.asarray(image.convert("RGB"))
        elif image.mode == "LA":
            pixels = np.asarray(image.getchannel(0))
        else:
            pixels = np.asarray(image)
    if pixels.ndim == 3:
        pixels = np.tensordot(_COLOUR, resized(pixels.transpose(2, 0, 1), size).astype(np.int64), 1)
    return resized(pixels, size).astype(np.int64) - 1


def _array_ids(path: Path, size: int) -> NDArray[np.int64]:
    """The first array of a NumPy file, at the cell centers: [size, size]."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return resized(_array(file), size).astype(np.int64)
        with zipfile.ZipFile(file) as archive:
            if not archive.namelist():
                raise ValueError("it holds no array")
            with archive.open(archive.namelist()[0]) as member:
                return resized(_array(member), size).astype(np.int64)


def _array(file: IO[bytes]) -> NDArray[Any]:
    """An array [H, W] of whole numbers in NumPy's format. Its header is looked at before anything else is read, so that
    neither objects (pickles) nor absurd sizes get any further."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"it has version {version} of NumPy's format; save it again with numpy.save")
    shape, by_columns, kind = read[version](file)
    if len(shape) != 2 or 0 in shape or kind.kind not in "iub":
        raise ValueError(f"it holds {kind} of shape {shape}; save whole numbers of shape [height, width]")
    _checked_size(*shape)
    data = file.read(shape[0] * shape[1] * kind.itemsize)
    return np.frombuffer(data, kind).reshape(shape, order="F" if by_columns else "C")
