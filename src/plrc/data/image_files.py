"""Image files as bytes: read them, look at their headers, and refuse what no image can be.

Whether a file is an image is decided by its contents, never by its name.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from plrc.errors import DataError
from plrc.text import printable

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_MEGAPIXELS = 200.0

_MAX_BYTES_PER_PIXEL = 16  # four channels of 32 bits
_LARGE_FILE = 2**26  # bytes; the header of a larger file is checked before the rest is read
_MAX_METADATA = 2**23  # bytes before the pixels of a JPEG: Pillow's time grows with their square
_MAX_SCANS = 200  # of a JPEG, which usually has about ten: each costs a pass over all pixels
_SIGNATURES = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"RIFF", "WebP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
)


class ImageError(DataError):
    """An image that cannot be used.

    Attributes:
        reason: What is wrong with it, without its name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DecodeError(ImageError):
    """A file that cannot be used as an image.

    Attributes:
        reason: What is wrong with the file.
        path: The file; empty if the bytes came from memory.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.path = path
        self.args = (reason, path)  # what a loader process sends is built anew from `args`

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}" if self.path else self.reason


class Header(NamedTuple):
    """What the header of an image file states.

    Attributes:
        height: Pixels as stored, before any EXIF rotation.
        width: Pixels as stored, before any EXIF rotation.
        mode: Pillow's mode, with ";16" for a color image of more than 8 bits per channel.
        format: One of FORMATS.
    """

    height: int
    width: int
    mode: str
    format: str


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
        if size > _LARGE_FILE:
            read_header(file)
            file.seek(0)
        require_plausible_size(size, max_megapixels)
        data = file.read(size)
        if not data:
            raise DecodeError("the file is empty")
        return data


def read_header(file: BinaryIO) -> Header:
    """Read the header of an open image file, without decoding the image. Raises DecodeError."""
    with quiet_pillow():
        image, start = open_image(file)
        more_bits = image.mode in ("RGB", "RGBA", "LA") and exceeds_8_bits(image, start)
        return Header(image.height, image.width, image.mode + ";16" * more_bits, str(image.format))


def read_file_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of an image file, without decoding the image. Raises DecodeError, which names the file."""
    with name_errors(path), open(path, "rb", opener=_open_regular) as file:
        return read_header(file)


def require_plausible_size(size: int, max_megapixels: float) -> None:
    """Raise DecodeError if a file of `size` bytes is larger than an image of `max_megapixels` can be."""
    if size > _LARGE_FILE + int(max_megapixels * 1e6) * _MAX_BYTES_PER_PIXEL:
        gigabytes = f"{size / 1e9:.3g} GB"
        raise DecodeError(f"the file has {gigabytes}, more than data.max_megapixels = {max_megapixels:g} can take")


def open_image(file: BinaryIO) -> tuple[Image.Image, bytes]:
    """Parse the header of an image file, which is open at its beginning.

    Returns:
        The image, not decoded yet, and the first 32 bytes of the file.

    Raises:
        DecodeError: The header is damaged, or belongs to no known format.
    """
    start = file.read(32)
    if not start:
        raise DecodeError("the file is empty")
    if start.startswith(b"\xff\xd8"):
        _check_jpeg_metadata(file)
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS), start
    except UnidentifiedImageError as error:
        for signature, name in _SIGNATURES:
            if start.startswith(signature):
                raise DecodeError(f"a {name} file whose header is damaged or of a kind that cannot be read") from error
        raise DecodeError(f"not an image that can be read (starts with {start[:8]!r})") from error
    except Exception as error:  # a damaged header can raise anything
        raise DecodeError(f"the header of the image is damaged ({printable(str(error))})") from error


def check_pixels(image: Image.Image, data: bytes, max_megapixels: float) -> None:
    """Raise DecodeError for an image that has no pixels, too many, or too many passes over them."""
    scans = data.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 0
    if scans > _MAX_SCANS:
        raise DecodeError(f"a JPEG of {scans} scans, made to take minutes; at most {_MAX_SCANS} are read")
    check_megapixels(image.height, image.width, max_megapixels)


def check_megapixels(height: int, width: int, max_megapixels: float) -> None:
    """Raise DecodeError for an image that has no pixels or too many."""
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        size = f"{width} x {height} = {megapixels:.6g} megapixels"
        raise DecodeError(f"{size} is more than data.max_megapixels = {max_megapixels:g}")
    if megapixels == 0:
        raise DecodeError("the image has no pixels")


def exceeds_8_bits(image: Image.Image, start: bytes) -> bool:
    """Return whether an image, whose file begins with `start`, has more than 8 bits per channel."""
    if image.mode == "F" or image.mode.startswith("I"):
        return True
    if isinstance(image, TiffImageFile):
        return bool(max(image.tag_v2.get(BITSPERSAMPLE, (8,))) > 8)
    return image.format == "PNG" and start[12:16] == b"IHDR" and start[24] == 16


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


_guard = threading.Lock()
_saved_settings: list[tuple[Any, int | None]] = []  # Pillow's settings before the first user, once per user inside


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Use Pillow without warnings and without its own size limit (ours is checked); safe in many threads at once.

    The warning filters and the limit belong to the process: the first user sets them, the last one restores them.
    """
    with _guard:
        if not _saved_settings:
            catcher = warnings.catch_warnings()
            catcher.__enter__()
            warnings.simplefilter("ignore")
            _saved_settings.append((catcher, Image.MAX_IMAGE_PIXELS))
            Image.MAX_IMAGE_PIXELS = None
        else:
            _saved_settings.append(_saved_settings[0])
    try:
        yield
    finally:
        with _guard:
            catcher, limit = _saved_settings.pop()
            if not _saved_settings:
                catcher.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = limit


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file: a pipe, socket or device may have no end, or wait for another process."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    raise DecodeError("is a folder" if stat.S_ISDIR(mode) else "is no file but a pipe, a socket or a device")


def _check_jpeg_metadata(file: BinaryIO) -> None:
    """Refuse a JPEG with more than _MAX_METADATA bytes before its first scan."""
    offset = 2
    while offset < _MAX_METADATA:
        file.seek(offset)
        segment = file.read(4)
        is_marker = len(segment) == 4 and segment[0] == 0xFF
        if not is_marker or segment[1] == 0xDA:  # if anything is wrong, the decoders report it
            return
        offset += 2 + int.from_bytes(segment[2:], "big")
    raise DecodeError(f"a JPEG with more than {_MAX_METADATA / 2**20:.0f} MB of metadata")
