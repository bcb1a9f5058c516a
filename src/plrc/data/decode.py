"""Decode image files into tensors: RGB, or another number of channels as they are stored.

Shapes: H x W pixels after the EXIF orientation was applied, C channels (3: RGB). Tensors are [C, H, W] with the memory
layout of [H, W, C] (channels last), which makes PyTorch's antialiased resize of uint8 images fast.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np
import torch
import torchvision  # noqa: F401 - registers torch.ops.image
from PIL import ExifTags, Image
from torch import Tensor

from plrc.data.channels import NPY_START, read_bands, read_npy, read_npy_size, require_channels
from plrc.data.image_files import (
    MAX_MEGAPIXELS,
    DecodeError,
    check_megapixels,
    check_pixels,
    exceeds_8_bits,
    name_errors,
    open_image,
    quiet_pillow,
    read_bytes,
)
from plrc.pixels import RGB_CHANNELS
from plrc.text import printable

RESCALE_PERCENTILES = (0.5, 99.5)

_FLIPS: dict[int, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
_UNCHANGED, _RGB = 0, 3  # read modes of torchvision's operators
_COLOR_MODES = ("RGB", "RGBA", "LA")  # modes in which Pillow cuts a 16-bit PNG to 8 bits
_BLOCK = 2**20  # values that are rescaled at a time


def decode(path: str | os.PathLike[str], channels: int = RGB_CHANNELS) -> Tensor:
    """Read and decode an image file into pixels, uint8 [channels, H, W]. Raises DecodeError, which names the file."""
    with name_errors(path):
        return decode_bytes(read_bytes(path), channels=channels)


def decode_bytes(
    data: bytes,
    *,
    percentiles: tuple[float, float] = RESCALE_PERCENTILES,
    max_megapixels: float = MAX_MEGAPIXELS,
    min_side: int = 0,
    channels: int = RGB_CHANNELS,
) -> Tensor:
    """Decode the contents of a JPEG, PNG, WebP, TIFF, BMP or GIF file.

    The EXIF orientation is applied. Of animations and stacks the first frame is used. Transparent images are blended
    with white. Of a 16-bit color TIFF only the upper 8 bits can be read; they are rescaled all the same.

    Args:
        data: The contents of the file.
        percentiles: Images of more than 8 bits per channel (16-bit, integer, floating point) are rescaled so that these
            percentiles of all their values become 0 and 255; see `rescale`.
        max_megapixels: Larger images are refused.
        min_side: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is much faster, as long as its shorter side
            keeps this many pixels. 0: always at full size.
        channels: 3: images become RGB. Otherwise images must have so many channels, which are taken as they are stored;
            those of other types than uint8 are rescaled channel by channel.

    Returns:
        Pixels, uint8 [channels, H, W].

    Raises:
        DecodeError: The image cannot be decoded or is refused.
    """
    with quiet_pillow():
        if data.startswith(NPY_START):
            check_megapixels(*read_npy_size(io.BytesIO(data), channels), max_megapixels)
            return _as_pixels(read_npy(data, channels), percentiles).permute(2, 0, 1)
        image, start = open_image(io.BytesIO(data))
        check_pixels(image, data, max_megapixels)
        try:
            if channels != RGB_CHANNELS:
                stored = _as_pixels(_read_stored(image, start, data, channels), percentiles)
                return _apply_orientation(stored, _orientation(image)).permute(2, 0, 1)
            pixels = _decode_pixels(image, start, data, percentiles, min_side)
            return _apply_orientation(pixels, _orientation(image)).permute(2, 0, 1)
        except DecodeError:
            raise
        except Exception as error:  # the decoders raise almost every type there is on damaged data
            raise DecodeError(_decoder_reason(error, image)) from error


def rescale(values: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Map numbers of any type linearly to 0 ... 255.

    Args:
        values: Numbers of any shape.
        percentiles: The values at these percentiles become 0 and 255, values beyond are clipped. If both are equal, the
            smallest and the largest value take their place.

    Returns:
        uint8 of the same shape. Constant arrays and NaN become 0.
    """
    out = np.zeros(values.size, np.uint8)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    if finite.size == 0:
        return out.reshape(values.shape)
    low, high = (float(bound) for bound in np.percentile(finite, percentiles))
    if low >= high:
        low = float(finite.min())
        high = float(finite.max())
    if low >= high:
        return out.reshape(values.shape)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):  # in double precision, a whole large image would fill the memory
        block = flat[start : start + _BLOCK].astype(np.float64)
        clipped = np.clip(np.nan_to_num(block, nan=low, posinf=high, neginf=low), low, high)
        out[start : start + _BLOCK] = (clipped - low) / (high - low) * 255 + 0.5
    return out.reshape(values.shape)


def _read_stored(image: Image.Image, start: bytes, data: bytes, channels: int) -> np.ndarray:
    """The channels of an image as they are stored: [h, w, channels] in the type of the file."""
    if (
        image.format == "PNG"
        and exceeds_8_bits(image, start)
        and image.mode in _COLOR_MODES
        and _decode_png is not None
    ):
        values = _decode_png(_as_tensor(data), _UNCHANGED, False).permute(1, 2, 0).numpy()
    else:
        values = read_bands(image)
    require_channels(values.shape[2], channels)
    return values


def _as_pixels(values: np.ndarray, percentiles: tuple[float, float]) -> Tensor:
    """Rescale stored channels [h, w, C] to uint8, each by its own percentiles: channels may have different units."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype != np.uint8:
        values = np.stack([rescale(channel, percentiles) for channel in np.moveaxis(values, -1, 0)], axis=-1)
    return torch.from_numpy(np.ascontiguousarray(values))


def _decode_pixels(
    image: Image.Image, start: bytes, data: bytes, percentiles: tuple[float, float], min_side: int
) -> Tensor:
    """Decode the pixels as they are stored: uint8 [h, w, 3]."""
    if not _decode_smaller(image, min_side):
        pixels = _decode_by_torchvision(image, data)
        if pixels is not None:
            return pixels
    if exceeds_8_bits(image, start):
        return torch.from_numpy(_decode_deep(image, data, percentiles))
    return torch.from_numpy(_decode_by_pillow(image))


def _decoder_reason(error: Exception, image: Image.Image) -> str:
    lines = str(error).strip().splitlines()
    if any("truncated" in line.lower() for line in lines):
        return "the file is truncated"
    detail = printable(lines[0]) if lines else type(error).__name__
    return f"damaged or unusual {image.format} data ({detail})"


def _operator(name: str) -> Callable[..., Tensor] | None:
    """A decoder of torchvision, below its deprecated Python wrapper; None if torchvision was built without it."""
    try:
        operator: Callable[..., Tensor] = getattr(torch.ops.image, name)
    except AttributeError:
        return None
    return operator


_decode_jpeg = _operator("decode_jpeg")
_decode_webp = _operator("decode_webp")
_decode_png = _operator("decode_png")


def _decode_by_torchvision(image: Image.Image, data: bytes) -> Tensor | None:
    """Decode into [h, w, 3] what torchvision reads correctly and faster than Pillow; None for everything else."""
    try:
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and _decode_jpeg is not None:
            pixels = _decode_jpeg(_as_tensor(data), _RGB, False)
        elif image.format == "WEBP" and image.mode == "RGB" and _decode_webp is not None:
            pixels = _decode_webp(_as_tensor(data), _RGB)
        else:
            return None
    except RuntimeError:  # animated, damaged or unusual: Pillow tries it, and reports what is wrong
        return None
    return pixels.permute(1, 2, 0)


def _decode_smaller(image: Image.Image, min_side: int) -> bool:
    """Prepare a JPEG to be decoded at the smallest scale whose shorter side has `min_side` pixels, if there is one."""
    if min_side == 0 or image.format not in ("JPEG", "MPO"):
        return False
    factor = max((f for f in (2, 4, 8) if min(image.size) >= f * min_side), default=1)
    if factor == 1:
        return False
    return image.draft(None, (image.width // factor, image.height // factor)) is not None


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _decode_by_pillow(image: Image.Image) -> np.ndarray:
    """Decode an image of at most 8 bits per channel: [h, w, 3]."""
    image.load()
    if image.mode.upper().endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _decode_deep(image: Image.Image, data: bytes, percentiles: tuple[float, float]) -> np.ndarray:
    """Decode an image of more than 8 bits per channel and rescale it: [h, w, 3]."""
    if image.format == "PNG" and image.mode in _COLOR_MODES and _decode_png is not None:
        values = _decode_png(_as_tensor(data), _UNCHANGED, False).permute(1, 2, 0).numpy()
    else:
        values = np.asarray(image)
    if values.ndim == 2:
        values = values[:, :, None]
    colors = 1 if values.shape[2] <= 2 else 3
    out = rescale(values[:, :, :colors], percentiles)
    if values.shape[2] > colors:  # the last channel is alpha
        alpha = values[:, :, colors:] / np.iinfo(values.dtype).max
        out = (out * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(out, (*out.shape[:2], 3)))


def _orientation(image: Image.Image) -> int:
    """The orientation in the EXIF data, 1 to 8; 1 if it is missing or cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data is no reason to refuse the pixels
        return 1


def _apply_orientation(pixels: Tensor, orientation: int) -> Tensor:
    """Turn stored pixels [h, w, 3] as the EXIF orientation demands: [H, W, 3], contiguous."""
    if orientation not in _FLIPS:
        return pixels.contiguous()
    turned = pixels.transpose(0, 1) if orientation >= 5 else pixels
    return turned.flip(_FLIPS[orientation]).contiguous()
