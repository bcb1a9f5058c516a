"""Region ids of an image: the regular grid, or an id map from a file.

Layer 1: imports config. Regions live in the image frame as a small map of ids, read with geometry.look_up; -1 is
unlabelled. Reads files, never writes.

Shapes: h x w an id map.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plrc.config import ConfigError, PlrcError, RegionConfig

ENDINGS = (".png", ".npz", ".npy")
_MOST = 2**15 - 1  # regions per image: ids are int16
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)


class RegionError(PlrcError):
    """An id map that is missing or cannot be used."""


def regions_for(config: RegionConfig, name: str) -> Tensor:
    """Region ids int16 [h, w] of the image with the relative name `name` (a/b.jpg: the map a/b.png, .npz or .npy).

    Raises RegionError where the image has no map or the map cannot be used.
    """
    if config.source == "grid":
        return grid_regions(config.grid)
    if Path(name).is_absolute():
        raise RegionError(f"image {name} lies outside the source's folder, so no id map can be named like it")
    candidates = [(Path(config.maps) / name).with_suffix(ending) for ending in ENDINGS]
    for path in candidates:
        if path.is_file():
            return load_regions(path, config.map_size)
    raise RegionError(
        f"image {name} has no id map: write {candidates[0]} (or .npz, .npy), or set regions.source to grid"
    )


def grid_regions(n: int) -> Tensor:
    """The regular grid: ids 0 .. n * n - 1 row by row, int16 [n, n] (paper section 3: n = 4)."""
    if n * n > _MOST:
        raise ConfigError(f"regions.grid is {n}; write at most {int(_MOST**0.5)}")
    return torch.arange(n * n, dtype=torch.int16).reshape(n, n)


def load_regions(path: str | Path, size: int) -> Tensor:
    """Read an id map and reduce it, nearest at cell centres, to int16 [size, size]: ids 0 .. k - 1, -1 unlabelled.

    PNG: grey of 8 or 16 bits, or palette indices, 0 unlabelled; or RGB, each colour an id and black unlabelled.
    .npy, .npz (its first array): whole numbers [H, W], negative ones unlabelled. Raises RegionError otherwise.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise RegionError(f"{path} is not an id map: its ending must be one of {', '.join(ENDINGS)}")
    try:
        ids = _png_ids(path) if path.suffix.lower() == ".png" else _array_ids(path)
    except _UNREADABLE as error:
        raise RegionError(f"cannot read the id map {path}: {error}") from error
    row = ((np.arange(size) + 0.5) * ids.shape[0] / size).astype(np.int64)
    column = ((np.arange(size) + 0.5) * ids.shape[1] / size).astype(np.int64)
    return _compact(ids[np.ix_(row, column)], path)


def _png_ids(path: Path) -> np.ndarray:
    """Ids of a PNG with 0 as -1, [H, W]. Alpha is ignored."""
    with Image.open(path, formats=["PNG"]) as image:
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


def _array_ids(path: Path) -> np.ndarray:
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


def _compact(ids: np.ndarray, path: Path) -> Tensor:
    """Rename ids to 0 .. k - 1, keep their order, and every negative id to -1: int16."""
    known, places = np.unique(np.maximum(ids, -1), return_inverse=True)
    first = int(known[0] == -1)
    if len(known) - first > _MOST:
        raise RegionError(f"{path} has {len(known) - first} regions at regions.map_size; at most {_MOST} can be used")
    return torch.from_numpy((places.reshape(ids.shape) - first).astype(np.int16))
