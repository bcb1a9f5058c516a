"""The input of a frozen teacher: the whole image at the teacher's size, or the cache of its features.

The cache is one file with a record of fixed length for each image. It is opened for each access, so that loader
processes and other hosts see what was written.

Shapes: C channels and H x W pixels of a decoded image, S the side of the teacher's images, D features, h x w cells.
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
"""A feature is stored as a whole number from -LEVELS to LEVELS, times the scale of its channel. The scale is the
largest |feature| of the channel in the image, divided by LEVELS. The error is at most half a scale."""

SMALLEST_SCALE = 1e-30
"""Divisor for a channel of zeros, whose scale is 0."""

NO_FEATURES = "the frozen teacher's features of it could not be computed"
"""Why a loader replaces an image whose record is absent from the complete cache."""


def resize_whole(image: Tensor, size: int) -> Tensor:
    """Resize a whole image to the teacher's square: uint8 [C, H, W] -> uint8 [C, S, S]."""
    return F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]


class TeacherCache:
    """Features of a frozen teacher in a file.

    A record holds the features as 8-bit numbers (codes), a scale per channel, and a checksum of both. A checksum of 0
    means that the record is absent.

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
            with open(path, "ab") as file:  # creates the file, or leaves it as it is
                if file.tell() == 0:
                    file.truncate(size)  # fills the file with zeros: all records are absent
            stored_size = path.stat().st_size
        except OSError as error:
            raise self._write_error(error) from error
        if stored_size != size:
            raise DataError(f"{path} is not the cache of these images; delete it, or name another teacher.cache")

    def write(self, position: int, features: Tensor) -> None:
        """Store the features of an image, float [D, h, w]. Raises DataError if they cannot be written."""
        values = features.float().cpu().numpy()
        scale = (np.abs(values).max(axis=(1, 2)) / LEVELS).astype(np.float32)
        divisor = np.maximum(scale, SMALLEST_SCALE)
        codes = np.rint(values / divisor[:, None, None]).astype(np.int8)
        record = np.array((codes, scale, _checksum(codes, scale)), dtype=self.record)
        try:
            with open(self.path, "r+b") as file:
                file.seek(position * self.record.itemsize)
                file.write(record.tobytes())
        except OSError as error:
            raise self._write_error(error) from error

    def read(self, position: int) -> Tensor | None:
        """Return the features of an image as float16 [D, h, w]; None if the record is absent.

        Damage is not detected here; `missing` detects it at the start of a run.
        """
        with open(self.path, "rb") as file:
            record = self._read_record(file, position)
        if record["checksum"] == 0:
            return None
        features = record["codes"] * record["scale"][:, None, None]
        return torch.from_numpy(features.astype(np.float16))

    def missing(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions whose record is absent or damaged."""
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
    """Return the NumPy type of a record: features of D channels and side x side cells."""
    return np.dtype([("codes", np.int8, (dim, side, side)), ("scale", np.float32, (dim,)), ("checksum", np.uint32)])


def _checksum(codes: np.ndarray, scale: np.ndarray) -> int:
    """Return the CRC-32 of codes and scale, but 1 instead of 0, because 0 means that the record is absent."""
    crc = zlib.crc32(codes.tobytes())
    crc = zlib.crc32(scale.tobytes(), crc)
    return max(crc, 1)
