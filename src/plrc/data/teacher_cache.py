"""What a frozen teacher needs of each image: the whole image at its size, or its features from a cache.

The cache is one file with a record of fixed length for each image, which loader processes map into memory.

Shapes: H x W pixels of a decoded image, S the side of the teacher's images, D features, h x w cells.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.errors import DataError

LEVELS = 127
"""A feature is stored as a whole number from -LEVELS to LEVELS times the scale of its channel: the error is at most
half a scale, which is max |feature| / LEVELS over the image."""

NO_FEATURES = "the frozen teacher's features of it could not be computed"


def resize_whole(image: Tensor, size: int) -> Tensor:
    """Resize a whole image to the teacher's square: uint8 [3, H, W] -> uint8 [3, S, S]."""
    return F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]


class TeacherCache:
    """Features of a frozen teacher in a file.

    A record holds the features as 8-bit numbers, a scale per channel, and a checksum of both.

    Args:
        path: The file; it is created if it does not exist.
        count: Number of images.
        dim: Number of features D.
        side: Cells per side, h = w.

    Raises:
        DataError: The file cannot be created, or has another shape.
    """

    def __init__(self, path: Path, count: int, dim: int, side: int) -> None:
        self.path = path
        record = record_type(dim, side)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                # "x" would fail if another process created it meanwhile; a sparse file of zeros has no valid checksum
                with open(path, "ab") as file:
                    file.truncate(count * record.itemsize)
            if path.stat().st_size != count * record.itemsize:
                raise DataError(f"{path} is not the cache of these images; delete it, or name another teacher.cache")
            self.records = np.memmap(path, dtype=record, mode="r+", shape=(count,))
        except OSError as error:
            raise DataError(f"cannot write the cache {path}: {error.strerror}; name another teacher.cache") from error

    def write(self, position: int, features: Tensor) -> None:
        """Store the features of an image, float [D, h, w]."""
        values = features.float().cpu().numpy()
        scale = (np.abs(values).max(axis=(1, 2)) / LEVELS).astype(np.float32)
        codes = np.rint(values / np.maximum(scale, 1e-30)[:, None, None]).astype(np.int8)
        self.records[position] = (codes, scale, checksum(codes, scale))

    def read(self, position: int) -> Tensor | None:
        """Return the features of an image as float16 [D, h, w]; None if they could not be computed."""
        record = self.records[position]
        if record["checksum"] == 0:
            return None
        return torch.from_numpy((record["codes"] * record["scale"][:, None, None]).astype(np.float16))

    def missing(self, positions: np.ndarray) -> np.ndarray:
        """Return those of the positions whose record is absent or damaged."""
        return np.array([p for p in positions.tolist() if not self._is_valid(p)], dtype=np.int64)

    def flush(self) -> None:
        """Write everything to the disk."""
        self.records.flush()

    def _is_valid(self, position: int) -> bool:
        record = self.records[position]
        stored = int(record["checksum"])
        return stored != 0 and stored == checksum(record["codes"], record["scale"])


def record_type(dim: int, side: int) -> np.dtype[np.void]:
    """Return the type of a record."""
    return np.dtype([("codes", np.int8, (dim, side, side)), ("scale", np.float32, (dim,)), ("checksum", np.uint32)])


def checksum(codes: np.ndarray, scale: np.ndarray) -> int:
    """Return a CRC-32 that is never 0, which means that there is no record."""
    return zlib.crc32(scale.tobytes(), zlib.crc32(np.ascontiguousarray(codes).tobytes())) or 1
