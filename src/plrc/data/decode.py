"""Bytes of an image file -> RGB uint8 tensor, or a DecodeError that says in plain words what is wrong with the file.

Layer 1: imports config and files. Reads the one file it is given; writes nothing; keeps no state.

Shapes: H x W pixels after the EXIF orientation was applied. Tensors are [3, H, W] with the memory of [H, W, 3]
(channels-last strides), which makes PyTorch's antialiased uint8 resize fast.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401 - registers torch.ops.image
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor

from plrc.errors import PlrcError
from plrc.text import printable

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
PERCENTILES = (0.5, 99.5)
MAX_MEGAPIXELS = 200.0
BYTES_A_PIXEL = 16  # the most that a format of ours stores: four channels of 32 bits
LARGE = 2**26  # bytes; of a larger file the header is looked at before all of it is read
MAX_METADATA = 2**23  # bytes before the pixels of a JPEG: Pillow's time grows with their square
MAX_SCANS = 200  # of a JPEG; each costs a pass over all pixels, however few bytes it has. Real ones have about ten

_STARTS = (
    (b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WebP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
    (b"BM", "BMP"), (b"GIF8", "GIF"),
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag
_FLIPS: dict[int, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
_UNCHANGED, _RGB = 0, 3  # read modes of torchvision's operators
_BLOCK = 2**20  # values that are scaled at a time


class DecodeError(PlrcError):
    """A file that cannot be used as an image. `reason` says why; `path` is empty where the bytes came from memory."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}" if self.path else self.reason


class Header(NamedTuple):
    """What a file says of itself. `height` and `width` are as stored, before any EXIF rotation; `mode` is Pillow's,
    with ";16" where a color image has more than 8 bits a channel."""

    height: int
    width: int
    mode: str
    format: str


def decode(
    path: str | os.PathLike[str],
    *,
    percentiles: tuple[float, float] = PERCENTILES,
    max_megapixels: float = MAX_MEGAPIXELS,
    least: int = 0,
) -> Tensor:
    """Read an image file -> RGB uint8 [3, H, W]; see `decode_bytes`. Raises DecodeError, which then names the file."""
    with _named(path):
        data = read_bytes(path, max_megapixels)
        return decode_bytes(data, percentiles=percentiles, max_megapixels=max_megapixels, least=least)


def decode_bytes(
    data: bytes,
    *,
    percentiles: tuple[float, float] = PERCENTILES,
    max_megapixels: float = MAX_MEGAPIXELS,
    least: int = 0,
) -> Tensor:
    """The bytes of a JPEG, PNG, WebP, TIFF, BMP or GIF, whatever its file name -> RGB uint8 [3, H, W].

    The EXIF orientation is applied. Of animations and stacks the first frame is taken. Transparent pixels are laid on
    white. Images of more than 8 bits a channel (16-bit, integer, floating point) are scaled: the values at
    `percentiles` of the whole image, all colors together, become 0 and 255; constant images become black, and so do
    values that are not numbers. (Of a 16-bit color TIFF the upper 8 bits alone can be read; they are scaled alike.)
    With `least`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps that many pixels,
    which costs a fraction of the time. 0: never.
    Raises DecodeError where the bytes cannot be read, or where the header says more than `max_megapixels`.
    """
    with _quiet():
        image, start = _open(io.BytesIO(data))
        scans = data.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 0
        if scans > MAX_SCANS:
            raise DecodeError(f"a JPEG of {scans} scans, made to take minutes; at most {MAX_SCANS} are read")
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            size = f"{image.width} x {image.height} = {megapixels:.6g} megapixels"
            raise DecodeError(f"{size} is more than data.max_megapixels = {max_megapixels:g}")
        if megapixels == 0:
            raise DecodeError("the image has no pixels")
        try:
            pixels = None if _shrunk(image, least) else _fast(image, data)
            if pixels is None:
                pixels = torch.from_numpy(_scaled(image, data, percentiles) if _deep(image, start) else _plain(image))
            return _upright(pixels, _orientation(image)).permute(2, 0, 1)
        except Exception as error:  # the decoders raise almost every type there is on damaged data
            text = str(error).strip().splitlines()
            cut = any("truncated" in line.lower() for line in text)
            detail = printable(text[0]) if text else type(error).__name__
            reason = "the file is truncated" if cut else f"damaged or unusual {image.format} data ({detail})"
            raise DecodeError(reason) from error


def read_header(file: BinaryIO) -> Header:
    """Size, mode and format of an open image file, without decoding it. Raises DecodeError."""
    with _quiet():
        image, start = _open(file)
        deep = image.mode in ("RGB", "RGBA", "LA") and _deep(image, start)
        return Header(image.height, image.width, image.mode + ";16" * deep, str(image.format))


def read_size(path: str | os.PathLike[str]) -> tuple[int, int, str]:
    """(height, width, mode) of a file as stored, from its header alone; see `Header`. Raises DecodeError."""
    with _named(path), open(path, "rb", opener=_regular) as file:
        return read_header(file)[:3]


def read_bytes(path: str | os.PathLike[str], max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
    """The contents of an image file. Raises DecodeError where it is missing, empty, no regular file or not readable,
    and where it is larger than an image of `max_megapixels` can be, or large and no image."""
    with _named(path), open(path, "rb", opener=_regular) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGE:
            read_header(file)
            file.seek(0)
        check_bytes(size, max_megapixels)
        data = file.read(size)  # and no more: Python sets aside at once all that it is asked for
        if not data:
            raise DecodeError("the file is empty")
        return data


def most_bytes(max_megapixels: float) -> int:
    """What an image file of `max_megapixels` can have at most."""
    return LARGE + int(max_megapixels * 1e6) * BYTES_A_PIXEL


def check_bytes(size: int, max_megapixels: float) -> None:
    """Raises DecodeError for a file of more bytes than `most_bytes`."""
    if size > most_bytes(max_megapixels):
        raise DecodeError(
            f"the file has {size / 1e9:.3g} GB, more than data.max_megapixels = {max_megapixels:g} can take"
        )


def _regular(path: str, flags: int) -> int:
    """Open a file, but no folder, pipe, socket or device: those may have no end, or wait for another process."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    folder = stat.S_ISDIR(os.fstat(handle).st_mode)
    os.close(handle)
    raise DecodeError("is a folder" if folder else "is no file but a pipe, a socket or a device")


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong with a file into a DecodeError that names it."""
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
_inside: list[tuple[Any, int | None]] = []  # what the outermost user found; one entry a thread that decodes


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow without warnings and without its own size limit (ours is checked); safe in many threads at once.

    The warning filters and the limit belong to the process: the first thread in sets them, the last one out restores.
    """
    with _guard:
        if not _inside:
            catcher = warnings.catch_warnings()
            catcher.__enter__()
            warnings.simplefilter("ignore")
            _inside.append((catcher, Image.MAX_IMAGE_PIXELS))
            Image.MAX_IMAGE_PIXELS = None
        else:
            _inside.append(_inside[0])
    try:
        yield
    finally:
        with _guard:
            catcher, limit = _inside.pop()
            if not _inside:
                catcher.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = limit


def _open(file: BinaryIO) -> tuple[Image.Image, bytes]:
    """Parse the header: (image, first bytes of the file). The contents decide, never the file name."""
    start = file.read(32)
    if not start:
        raise DecodeError("the file is empty")
    if start.startswith(b"\xff\xd8"):
        _check_metadata(file)
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS), start
    except UnidentifiedImageError as error:
        for magic, name in _STARTS:
            if start.startswith(magic):
                raise DecodeError(f"a {name} file whose header is damaged or of a kind that cannot be read") from error
        raise DecodeError(f"not an image that can be read (starts with {start[:8]!r})") from error
    except Exception as error:  # a damaged header can raise anything
        raise DecodeError(f"the header of the image is damaged ({printable(str(error))})") from error


def _check_metadata(file: BinaryIO) -> None:
    """Refuse a JPEG with more than MAX_METADATA before its first scan."""
    at = 2
    while at < MAX_METADATA:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:  # the decoders say what is wrong, if anything is
            return
        at += 2 + int.from_bytes(head[2:], "big")
    raise DecodeError(f"a JPEG with more than {MAX_METADATA / 2**20:.0f} MB of metadata")


def _operator(name: str) -> Callable[..., Tensor] | None:
    """torchvision's decoder, called below its deprecated Python wrapper; None in a torchvision built without it."""
    try:
        found: Callable[..., Tensor] = getattr(torch.ops.image, name)
    except AttributeError:
        return None
    return found


_decode_jpeg, _decode_webp, _decode_png = map(_operator, ("decode_jpeg", "decode_webp", "decode_png"))


def _fast(image: Image.Image, data: bytes) -> Tensor | None:
    """[H, W, 3] by torchvision for the kinds that it reads right and faster than Pillow; None: let Pillow try."""
    try:
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and _decode_jpeg is not None:
            pixels = _decode_jpeg(_buffer(data), _RGB, False)
        elif image.format == "WEBP" and image.mode == "RGB" and _decode_webp is not None:
            pixels = _decode_webp(_buffer(data), _RGB)
        else:
            return None
    except RuntimeError:  # animated, damaged or unusual: Pillow decides, and says what is wrong
        return None
    return pixels.permute(1, 2, 0)


def _shrunk(image: Image.Image, least: int) -> bool:
    """Prepare a JPEG to be decoded at the smallest of its scales at which the shorter side has `least` pixels."""
    factor = max((f for f in (2, 4, 8) if min(image.size) >= f * least), default=1) if least else 1
    if factor == 1 or image.format not in ("JPEG", "MPO"):
        return False
    return image.draft(None, (image.width // factor, image.height // factor)) is not None


def _buffer(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _deep(image: Image.Image, start: bytes) -> bool:
    """Does the image hold more than 8 bits a channel?"""
    if image.mode == "F" or image.mode.startswith("I"):
        return True
    if isinstance(image, TiffImageFile):
        return bool(max(image.tag_v2.get(BITSPERSAMPLE, (8,))) > 8)
    return image.format == "PNG" and start[12:16] == b"IHDR" and start[24] == 16


def _plain(image: Image.Image) -> np.ndarray:
    """[H, W, 3] of an image of at most 8 bits a channel."""
    image.load()
    if image.mode.upper().endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _scaled(image: Image.Image, data: bytes, percentiles: tuple[float, float]) -> np.ndarray:
    """[H, W, 3] of an image of more than 8 bits a channel, scaled by percentiles."""
    if image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and _decode_png is not None:
        values = _decode_png(_buffer(data), _UNCHANGED, False).permute(1, 2, 0).numpy()
    else:
        values = np.asarray(image)
    values = values[:, :, None] if values.ndim == 2 else values
    colors = 1 if values.shape[2] <= 2 else 3
    out = stretch(values[:, :, :colors], percentiles)
    if values.shape[2] > colors:  # alpha, on white
        alpha = values[:, :, colors:] / np.iinfo(values.dtype).max
        out = (out * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(out, (*out.shape[:2], 3)))


def stretch(values: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Numbers of any type and shape -> uint8: the values at `percentiles` become 0 and 255, those beyond are clipped.

    Where both are the same, smallest and largest value take their place; constant arrays and NaN become 0.
    """
    out = np.zeros(values.size, np.uint8)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    if finite.size == 0:
        return out.reshape(values.shape)
    low, high = (float(v) for v in np.percentile(finite, percentiles))
    if low >= high:
        low, high = float(finite.min()), float(finite.max())
    if low >= high:
        return out.reshape(values.shape)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):  # in double precision, a few large images would fill the memory
        block = flat[start : start + _BLOCK].astype(np.float64)
        clipped = np.clip(np.nan_to_num(block, nan=low, posinf=high, neginf=low), low, high)
        out[start : start + _BLOCK] = (clipped - low) / (high - low) * 255 + 0.5
    return out.reshape(values.shape)


def _orientation(image: Image.Image) -> int:
    """1 to 8 from EXIF; 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn stored pixels [h, w, 3] the way EXIF says: [H, W, 3], contiguous."""
    if orientation not in _FLIPS:
        return pixels.contiguous()
    turned = pixels.transpose(0, 1) if orientation >= 5 else pixels
    return turned.flip(_FLIPS[orientation]).contiguous()
