"""Decoded images kept in files, for data sets that are small enough: from the second epoch on nothing is decoded.

Layer 1: imports config and files. Writes below the folder it is given, one file an image. Loader processes map the
files, so all of them share the one copy that the system keeps in memory.

Shapes: H x W pixels of the decoded image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plrc.config import PlrcError
from plrc.files import write_atomic


def cached(folder: str, path: str, options: tuple[object, ...], read: Callable[[], Tensor]) -> Tensor:
    """`read()`, the image at `path` as uint8 [3, H, W], from `folder` where it has been read before with `options`.

    A file that changed (size or time) is read again; so is one whose copy is damaged. A change to the tensor never
    reaches the copy. Raises what `read` raises, and PlrcError where the copy cannot be written.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return read()  # which says what is wrong
    key = repr((os.path.abspath(path), stat.st_size, stat.st_mtime_ns, options))
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    file = Path(folder) / name[:2] / f"{name}.npy"
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c")).permute(2, 0, 1)
    except (OSError, ValueError):  # not there yet, or cut short
        image = read()
    try:
        write_atomic(file, lambda out: np.save(out, image.permute(1, 2, 0).numpy()))
    except OSError as error:
        raise PlrcError(f"cannot write to run.cache {folder} ({error.strerror}); name another") from error
    return image
