"""A cache of decoded images in files, for data sets that are small enough: each image is decoded only once.

The files are memory-mapped, so that all loader processes share the one copy that the system keeps in memory.

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

from plrc.errors import ConfigError
from plrc.files import write_atomic

_DECODER_VERSIONS = (2, PIL.__version__, torchvision.__version__)  # 2: that of plrc.data.decode


def load_cached(folder: str, path: str, options: tuple[object, ...], decode: Callable[[], Tensor]) -> Tensor:
    """Load a decoded image from the cache, or decode it and write it there.

    An image is decoded again if its file has changed (size or time), its copy is damaged, or the copy was made with
    other options or other versions of the decoders. If the copy cannot be written, the image is returned all the same.

    Args:
        folder: The cache.
        path: The image file.
        options: Everything else that the decoded image depends on.
        decode: Decodes the image into uint8 [C, H, W]; its errors are raised.

    Returns:
        uint8 [C, H, W]. Changing it does not change the copy.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return decode()  # which reports what is wrong
    key = repr((os.path.abspath(path), stat.st_size, stat.st_mtime_ns, options, _DECODER_VERSIONS))
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    file = Path(folder) / name[:2] / f"{name}.npy"
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c")).permute(2, 0, 1)
    except (OSError, ValueError, EOFError):  # missing or truncated
        image = decode()
    with contextlib.suppress(OSError):
        write_atomic(file, lambda out: np.save(out, image.permute(1, 2, 0).numpy()))
    return image


def require_writable(folder: str) -> None:
    """Create the cache folder. Raises ConfigError if it cannot be created or written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to run.cache {folder} ({error.strerror}); name another") from error
