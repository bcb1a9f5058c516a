"""Image files as bytes: read them, and refuse what no image can be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from plrc.data.channels import starts_as_npy
from plrc.data.image_errors import DecodeError
from plrc.data.image_header import Header, read_header
from plrc.pixels import RGB_CHANNELS

MAX_MEGAPIXELS = 200.0

_MAX_BYTES_PER_PIXEL = 16  # four channels of 32 bits
_LARGE_FILE = 2**26  # bytes; the header of a larger file is checked before the rest is read


def read_bytes(path: str | os.PathLike[str], max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
    """Read the contents of an image file.

    Args:
        path: The file.
        max_megapixels: Files that are larger than an image of that many pixels can be are refused.

    Raises:
        DecodeError: The file is missing, empty, not a regular file, not readable, too large, or large and not an image.
    """
    with name_errors(path), open(path, "rb", opener=_open_regular) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGE_FILE and not starts_as_npy(file):
            read_header(file)
            file.seek(0)
        require_plausible_size(size, max_megapixels)
        data = file.read(size)
        if not data:
            raise DecodeError("the file is empty")
        return data


def read_file_header(path: str | os.PathLike[str], channels: int = RGB_CHANNELS, page: int = 0) -> Header:
    """Read the header of an image file, as `read_header` does. Raises DecodeError, which names the file."""
    with name_errors(path), open(path, "rb", opener=_open_regular) as file:
        return read_header(file, channels, page)


def require_plausible_size(size: int, max_megapixels: float) -> None:
    """Raise DecodeError if a file of `size` bytes is larger than an image of `max_megapixels` can be."""
    if size > _LARGE_FILE + int(max_megapixels * 1e6) * _MAX_BYTES_PER_PIXEL:
        gigabytes = f"{size / 1e9:.3g} GB"
        raise DecodeError(f"the file has {gigabytes}, more than data.max_megapixels = {max_megapixels:g} can take")


@contextmanager
def name_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn everything that fails with a file into a DecodeError that names it."""
    try:
        yield
    except DecodeError as error:
        raise DecodeError(error.reason, os.fspath(path)) from error
    except FileNotFoundError as error:
        raise DecodeError("does not exist (or is a dangling link)", os.fspath(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
        reason = "is a folder" if os.path.isdir(path) else f"cannot be opened ({getattr(error, 'strerror', error)})"
        raise DecodeError(reason, os.fspath(path)) from error


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file: a pipe, socket or device may have no end, or wait for another process."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    raise DecodeError("is a folder" if stat.S_ISDIR(mode) else "is no file but a pipe, a socket or a device")
