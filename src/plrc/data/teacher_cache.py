"""What a frozen teacher needs of each image: the whole image at its size, or its features from a cache.

The cache is one file with a record of fixed length for each image. It is opened for each access, so that loader
processes and other hosts see what was written.

Shapes: H x W pixels of a decoded image, S the side of the teacher's images, D features, h x w cells.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

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
        self.record = record_type(dim, side)
        size = count * self.record.itemsize
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                if file.tell() == 0:
                    file.truncate(size)  # zeros, which are no valid record
            stored_size = path.stat().st_size
        except OSError as error:
            raise self._write_error(error) from error
        if stored_size != size:
            raise DataError(f"{path} is not the cache of these images; delete it, or name another teacher.cache")

    def write(self, position: int, features: Tensor) -> None:
        """Store the features of an image, float [D, h, w]. Raises DataError if they cannot be written."""
        values = features.float().cpu().numpy()
        scale = (np.abs(values).max(axis=(1, 2)) / LEVELS).astype(np.float32)
        codes = np.rint(values / np.maximum(scale, 1e-30)[:, None, None]).astype(np.int8)
        record = np.array((codes, scale, _checksum(codes, scale)), dtype=self.record)
        try:
            with open(self.path, "r+b") as file:
                file.seek(position * self.record.itemsize)
                file.write(record.tobytes())
        except OSError as error:
            raise self._write_error(error) from error

    def read(self, position: int) -> Tensor | None:
        """Return the features of an image as float16 [D, h, w]; None if they could not be computed."""
        with open(self.path, "rb") as file:
            record = self._read_record(file, position)
        if record["checksum"] == 0:
            return None
        return torch.from_numpy((record["codes"] * record["scale"][:, None, None]).astype(np.float16))

    def missing(self, positions: np.ndarray) -> np.ndarray:
        """Return those of the positions whose record is absent or damaged."""
        missing: list[int] = []
        with open(self.path, "rb") as file:
            for position in positions.tolist():
                record = self._read_record(file, position)
                stored = int(record["checksum"])
                if stored == 0 or stored != _checksum(record["codes"], record["scale"]):
                    missing.append(position)
        return np.array(missing, dtype=np.int64)

    def _read_record(self, file: BinaryIO, position: int) -> np.void:
        file.seek(position * self.record.itemsize)
        record: np.void = np.frombuffer(file.read(self.record.itemsize), dtype=self.record)[0]
        return record

    def _write_error(self, error: OSError) -> DataError:
        return DataError(f"cannot write the cache {self.path}: {error.strerror}; name another teacher.cache")


def record_type(dim: int, side: int) -> np.dtype[np.void]:
    """Return the type of a record."""
    return np.dtype([("codes", np.int8, (dim, side, side)), ("scale", np.float32, (dim,)), ("checksum", np.uint32)])


def _checksum(codes: np.ndarray, scale: np.ndarray) -> int:
    """Return a CRC-32 that is never 0, which means that there is no record."""
    return zlib.crc32(scale.tobytes(), zlib.crc32(np.ascontiguousarray(codes).tobytes())) or 1
