"""Decoded images kept in files, for data sets that are small enough: from the second epoch on nothing is decoded.

Layer 1: imports config and files. Writes below the folder it is given, one file an image. Loader processes map the
files, so all of them share the one copy that the system keeps in memory.

Shapes: H x W pixels of the decoded image.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from plrc.errors import PlrcError
from plrc.files import write_atomic

DECODERS = (1, PIL.__version__, torchvision.__version__)  # 1: our own


def cached(folder: str, path: str, options: tuple[object, ...], read: Callable[[], Tensor]) -> Tensor:
    """`read()`, the image at `path` as uint8 [3, H, W], from `folder` where it has been read before with `options`.

    A file that changed (size or time) is read again; so is one whose copy is damaged, or was decoded by another version
    of a decoder. A change to the tensor never reaches the copy. Where the copy cannot be written there is none. Raises
    what `read` raises.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return read()  # which says what is wrong
    key = repr((os.path.abspath(path), stat.st_size, stat.st_mtime_ns, options, DECODERS))
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    file = Path(folder) / name[:2] / f"{name}.npy"
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c")).permute(2, 0, 1)
    except (OSError, ValueError, EOFError):  # not there yet, or cut short
        image = read()
    with contextlib.suppress(OSError):
        write_atomic(file, lambda out: np.save(out, image.permute(1, 2, 0).numpy()))
    return image


def usable(folder: str) -> None:
    """Raises PlrcError where `folder` cannot be made or written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlrcError(f"cannot write to run.cache {folder} ({error.strerror}); name another") from error
