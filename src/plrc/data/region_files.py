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
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from plrc.config import PlrcError
from plrc.data.masks import decode_masks, encode_segment, mask_functions
from plrc.data.sources import ImageList
from plrc.files import write_atomic

ENDINGS = (".png", ".npz", ".npy")
MOST = 2**15 - 1
"""Regions of an image at most: ids are int16."""

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
    """Where the id map of an image is written: a/b.jpg -> FOLDER/a/b.png. Raises RegionError for an absolute name."""
    if Path(name).is_absolute():
        raise RegionError(f"image {name} lies outside the source's folder, so no id map can be named like it")
    return (Path(folder) / name).with_suffix(ENDINGS[0])


def save_regions(path: Path, ids: Tensor) -> None:
    """Write ids [h, w] (-1 to MOST - 1) as a grey PNG of 16 bits, 0 unlabelled: what `load_regions` reads back."""
    picture = Image.fromarray((ids.numpy().astype(np.int32) + 1).astype(np.uint16))
    write_atomic(path, partial(picture.save, format="PNG"))


def load_regions(file: str | Path | BinaryIO, size: int, name: str = "") -> Tensor:
    """Read an id map and reduce it, nearest at cell centres, to int16 [size, size]: ids 0 .. k - 1, -1 unlabelled.

    file: a path, or an open PNG with the `name` that messages give it.

    PNG: grey of 8 or 16 bits, or palette indices, 0 unlabelled; or RGB, each colour an id and black unlabelled.
    .npy, .npz (its first array): whole numbers [H, W], negative ones unlabelled. Raises RegionError otherwise.
    """
    path = Path(file) if isinstance(file, (str, Path)) else None
    name = str(path) if path else name
    if path and path.suffix.lower() not in ENDINGS:
        raise RegionError(f"{path} is not an id map: its ending must be one of {', '.join(ENDINGS)}")
    try:
        ids = _array_ids(path) if path and path.suffix.lower() != ".png" else _png_ids(path or file)
    except _UNREADABLE as error:
        raise RegionError(f"cannot read the id map {name}: {error}") from error
    return compact(resized(ids, size), name)


def resized(ids: NDArray[Any], size: int) -> NDArray[Any]:
    """[..., H, W] -> [..., size, size]: the values at the cell centres."""
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
        """The objects of an image, at cell centres: int32 [size, size], 0 background, above 0 an object, -1 a crowd (an
        area whose objects are not told apart). Smaller objects lie on larger ones, and all objects on crowds.

        Masks that are malformed or of another size than the image are left out. Raises RegionError for an image that
        the file does not list.
        """
        if name not in self.entries:
            raise RegionError(f"{self.path} does not list image {name}; add it there, or leave it out of the images")
        height, width, given = json.loads(self.entries[name])
        segments = [(encode_segment(segment, height, width), crowd) for segment, crowd in given]
        usable = [(segment, crowd) for segment, crowd in segments if segment is not None]
        masks = decode_masks(tuple(segment for segment, _ in usable), height, width)
        areas, small = masks.sum(axis=(1, 2), dtype=np.int64), resized(masks, size)
        objects = np.zeros((size, size), dtype=np.int32)
        for i in sorted(range(len(usable)), key=lambda i: (not usable[i][1], -areas[i])):
            objects[small[i] > 0] = -1 if usable[i][1] else i + 1
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
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        entries = {str(image["file_name"]).removeprefix("./"): image for image in table["images"]}
        sizes = {file: (int(image["height"]), int(image["width"])) for file, image in entries.items()}
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


def _png_ids(file: str | Path | BinaryIO) -> NDArray[np.int64]:
    """Ids of a PNG with 0 as -1, [H, W]. Alpha is ignored."""
    with Image.open(file, formats=["PNG"]) as image:
        if image.mode == "RGBA":
            pixels = np.asarray(image.convert("RGB"))
        elif image.mode == "LA":
            pixels = np.asarray(image.getchannel(0))
        else:
            pixels = np.asarray(image)
    ids = pixels.astype(np.int64)
    if ids.ndim == 3:
        ids = ids @ np.array([1 << 16, 1 << 8, 1])
    return ids - 1


def _array_ids(path: Path) -> NDArray[np.int64]:
    """The first array of a NumPy file. Pickled objects are refused by NumPy."""
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            if not loaded.files:
                raise ValueError("it holds no array")
            loaded = loaded[loaded.files[0]]
    ids = np.asarray(loaded)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iub":
        raise ValueError(f"it holds {ids.dtype} of shape {ids.shape}; save whole numbers of shape [height, width]")
    return ids.astype(np.int64)
