"""Id maps in files: one map of region ids per image, named like the image.

Shapes: H x W the stored map, size x size what it is reduced to.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from plrc.data.image_errors import DecodeError, ImageError
from plrc.data.image_header import Header
from plrc.data.orientation import turn
from plrc.data.pages import split_page
from plrc.errors import DataError
from plrc.files import write_atomic

MAP_EXTENSIONS = (".png", ".npz", ".npy")
MAX_REGIONS = 2**15 - 1
"""Largest number of regions per image: ids are int16."""
MAX_PIXELS = 200_000_000
"""Largest size of an id map, and of an image whose masks are read: a small file can inflate to any size."""

_RGB_TO_NUMBER = np.array([1 << 16, 1 << 8, 1])
_READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)


class RegionError(ImageError):
    """The regions of an image are not available: its id map is missing or cannot be used, or no annotation names it."""


def map_path(folder: str | Path, name: str) -> Path:
    """Return where the id map of an image is written: a/b.jpg -> FOLDER/a/b.png, a/b.tif#2 -> FOLDER/a/b#2.png.

    Raises:
        RegionError: The name leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RegionError(f"image {name} lies outside the source's folder, so no id map can be named like it")
    file, page = split_page(name)
    path = Path(folder) / file
    ending = f"#{page + 1}{MAP_EXTENSIONS[0]}" if page else MAP_EXTENSIONS[0]
    return path.with_name(path.stem + ending)


def require_own_maps(folder: str | Path, names: Iterable[str]) -> None:
    """Raise DataError if two images share an id map in a folder, because their names differ in their endings only."""
    owners: dict[tuple[str, int], str] = {}
    for name in names:
        file, page = split_page(name)
        owner = owners.setdefault((os.path.splitext(file)[0], page), name)
        if owner != name and find_map(folder, name) is not None:
            raise DataError(f"images {owner} and {name} share the id map {find_map(folder, name)}; rename one of them")


def find_map(folder: str | Path, name: str) -> Path | None:
    """Return the file with the id map of an image (a/b.png, .npz or .npy for a/b.jpg), or None if it has none."""
    path = map_path(folder, name)
    for extension in MAP_EXTENSIONS:
        candidate = path.with_suffix(extension)
        if candidate.is_file():
            return candidate
    return None


def save_regions(path: Path, ids: Tensor) -> None:
    """Write region ids as a gray PNG of 16 bits, which `load_regions` reads back.

    Args:
        path: The file, which appears whole or not at all.
        ids: Integers [h, w] from -1 (unlabelled) to MAX_REGIONS - 1.
    """
    pixels = (ids.numpy().astype(np.int32) + 1).astype(np.uint16)
    write_atomic(path, partial(Image.fromarray(pixels).save, format="PNG"))


def load_regions(
    file: str | Path | BinaryIO, size: int, name: str = "", header: Callable[[], Header] | None = None
) -> Tensor:
    """Read an id map and reduce it to size x size, nearest at the centers of the cells.

    A map of the stored pixels of an image that EXIF turns is turned with it. A square map fits every image.

    Formats: gray PNG of 8 or 16 bits or palette indices, 0 unlabelled; RGB PNG, each color a region and black
    unlabelled; .npy and .npz (its first array) with whole numbers [H, W], negative ones unlabelled.

    Args:
        file: A path, or an open PNG file.
        size: Side of the result.
        name: What error messages call an open file.
        header: Reads the header of the image, with whose shape that of the map is compared; None: it is not compared.

    Returns:
        Region ids 0 .. k - 1, -1 unlabelled: int16 [size, size].

    Raises:
        RegionError: The map cannot be read, has too many regions, or has another shape than the image.
    """
    path = Path(file) if isinstance(file, (str, Path)) else None
    if path is not None:
        name = str(path)
        if path.suffix.lower() not in MAP_EXTENSIONS:
            raise RegionError(f"{path} is not an id map: its ending must be one of {', '.join(MAP_EXTENSIONS)}")
    try:
        if path is not None and path.suffix.lower() != ".png":
            ids, shape = _read_array_ids(path, size)
        else:
            ids, shape = _read_png_ids(file, size)
    except _READ_ERRORS as error:
        raise RegionError(f"cannot read the id map {name}: {error}") from error
    if header is not None and shape[0] != shape[1]:
        ids = turn(ids, _orientation(shape, header, name))
    return renumber(ids, name)


def _orientation(shape: tuple[int, ...], header: Callable[[], Header], name: str) -> int:
    """How a map of this height and width is turned to lie on its image as shown."""
    height, width = shape
    try:
        image = header()
    except DecodeError:  # reported when the image is decoded
        return 1
    orientation = image.orientation_for(height, width)
    if orientation is None:
        raise RegionError(
            f"the id map {name} has {width} x {height} pixels, the image has {image.width} x {image.height}; write the "
            "map in the shape of the image, or as a square"
        )
    return orientation


def resize_nearest(ids: NDArray[Any], size: int) -> NDArray[Any]:
    """Take the values at the centers of size x size cells: [..., H, W] -> [..., size, size]."""
    height, width = ids.shape[-2:]
    centers = np.arange(size) + 0.5
    rows = (centers * height / size).astype(np.int64)
    columns = (centers * width / size).astype(np.int64)
    return np.asarray(ids[..., rows[:, None], columns])


def renumber(ids: NDArray[Any], name: str) -> Tensor:
    """Rename region ids to 0 .. k - 1 in their order.

    Args:
        ids: Integers [h, w]; negative ones are unlabelled.
        name: The image or file, for the error message.

    Returns:
        int16 [h, w], -1 unlabelled.

    Raises:
        RegionError: There are more than MAX_REGIONS ids.
    """
    unique, positions = np.unique(np.maximum(ids, -1), return_inverse=True)
    first = int(unique[0] == -1)
    count = len(unique) - first
    if count > MAX_REGIONS:
        raise RegionError(f"{name} has {count} regions at regions.map_size; at most {MAX_REGIONS} can be used")
    return torch.from_numpy((positions.reshape(ids.shape) - first).astype(np.int16))


def require_pixels(height: int, width: int) -> None:
    """Raise ValueError for the size of a map that has no pixels or too many."""
    if height < 0 or not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels; 1 to {MAX_PIXELS} can be used")


def _read_png_ids(file: str | Path | BinaryIO, size: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Ids of a PNG at the centers of the cells, -1 for 0: [size, size]; and its height and width. Alpha is ignored."""
    with Image.open(file, formats=["PNG"]) as image:
        require_pixels(image.height, image.width)
        if image.mode == "RGBA":
            pixels = np.asarray(image.convert("RGB"))
        elif image.mode == "LA":
            pixels = np.asarray(image.getchannel(0))
        else:
            pixels = np.asarray(image)
    if pixels.ndim == 3:
        small = resize_nearest(pixels.transpose(2, 0, 1), size).astype(np.int64)
        ids = np.tensordot(_RGB_TO_NUMBER, small, 1).astype(np.int64)
    else:
        ids = resize_nearest(pixels, size).astype(np.int64)
    return ids - 1, pixels.shape[:2]


def _read_array_ids(path: Path, size: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """The first array of a NumPy file at the centers of the cells: [size, size]; and its height and width."""
    array = _read_array_file(path)
    return resize_nearest(array, size).astype(np.int64), array.shape


def _read_array_file(path: Path) -> NDArray[Any]:
    """The first array of a NumPy file."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _read_array(file)
        with zipfile.ZipFile(file) as archive:
            if not archive.namelist():
                raise ValueError("it holds no array")
            with archive.open(archive.namelist()[0]) as member:
                return _read_array(member)


def _read_array(file: IO[bytes]) -> NDArray[Any]:
    """An array [H, W] of whole numbers in NumPy's format.

    The header is checked before anything else is read: neither objects (pickles) nor absurd sizes are loaded.
    """
    header_readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in header_readers:
        raise ValueError(f"it has version {version} of NumPy's format; save it again with numpy.save")
    shape, column_major, dtype = header_readers[version](file)
    if len(shape) != 2 or 0 in shape or dtype.kind not in "iub":
        raise ValueError(f"it holds {dtype} of shape {shape}; save whole numbers of shape [height, width]")
    require_pixels(*shape)
    data = file.read(shape[0] * shape[1] * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if column_major else "C")
