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
from PIL import Image
from torch import Tensor

from plrc.data.channels import NPY_START, read_bands, read_npy, read_npy_header, require_channels, require_rgb
from plrc.data.image_errors import DecodeError
from plrc.data.image_files import MAX_MEGAPIXELS, name_errors, read_bytes
from plrc.data.image_header import CUT_MODES, OpenedImage, check_megapixels, check_pixels, open_image, quiet_pillow
from plrc.data.orientation import turn
from plrc.data.rescale import RESCALE_PERCENTILES, rescale
from plrc.data.tiff import TiffPage, read_tiff_page, require_page
from plrc.pixels import RGB_CHANNELS
from plrc.text import printable

_UNCHANGED, _RGB = 0, 3  # read modes of torchvision's operators


def decode(
    path: str | os.PathLike[str],
    channels: int = RGB_CHANNELS,
    percentiles: tuple[float, float] = RESCALE_PERCENTILES,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Tensor:
    """Read and decode an image file.

    Args:
        path: The file.
        channels: See `decode_bytes`, as for the others.
        percentiles: How images of more than 8 bits per channel are rescaled.
        max_megapixels: Larger images are refused.

    Returns:
        Pixels, uint8 [channels, H, W].

    Raises:
        DecodeError: The image cannot be decoded or is refused; names the file.
    """
    with name_errors(path):
        return decode_bytes(
            read_bytes(path, max_megapixels), percentiles=percentiles, max_megapixels=max_megapixels, channels=channels
        )


def decode_bytes(
    data: bytes,
    *,
    percentiles: tuple[float, float] = RESCALE_PERCENTILES,
    max_megapixels: float = MAX_MEGAPIXELS,
    min_side: int = 0,
    channels: int = RGB_CHANNELS,
    page: int = 0,
    remarks: list[str] | None = None,
) -> Tensor:
    """Decode the contents of an image file of one of `image_kinds.readable_formats`.

    The EXIF orientation is applied, in every format. Of animations the first frame is used. Transparent images are
    blended with white. Of a TIFF whose first three channels are colors, the other channels are not used.

    Args:
        data: The contents of the file.
        percentiles: Images of more than 8 bits per channel (16-bit, integer, floating point) are rescaled so that these
            percentiles of all their values become 0 and 255; see `rescale`.
        max_megapixels: Larger images are refused.
        min_side: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is much faster, as long as its shorter side
            keeps this many pixels. 0: always at full size.
        channels: 3: images become RGB. Otherwise images must have so many channels, which are taken as they are stored;
            those of other types than uint8 are rescaled channel by channel.
        page: Number of the page of a TIFF, from 0.
        remarks: Takes FILL_REMARK if it holds for the image.

    Returns:
        Pixels, uint8 [channels, H, W].

    Raises:
        DecodeError: The image cannot be decoded or is refused, or the page does not exist.
    """
    with quiet_pillow():
        if data.startswith(NPY_START):
            require_page(page, 1)
            height, width, _ = read_npy_header(io.BytesIO(data), channels)
            check_megapixels(height, width, max_megapixels)
            return _as_pixels(read_npy(data, channels), percentiles).permute(2, 0, 1)
        opened = open_image(io.BytesIO(data), page)
        check_pixels(opened, data, max_megapixels)
        try:
            if channels != RGB_CHANNELS:
                no_data = opened.tiff.no_data if opened.tiff is not None else None
                stored = _read_stored(opened, data, page, channels)
                return _as_pixels(stored, percentiles, no_data, remarks).permute(2, 0, 1)
            if opened.tiff is not None:
                pixels = torch.from_numpy(_decode_tiff(opened.tiff, data, page, percentiles, remarks))
            else:
                pixels = _decode_pixels(opened, data, percentiles, min_side, remarks)
                if opened.format != "TIFF":  # Pillow has turned it
                    pixels = torch.from_numpy(turn(pixels.numpy(), opened.orientation))
            return pixels.permute(2, 0, 1)
        except DecodeError:
            raise
        except Exception as error:  # the decoders raise almost every type there is on damaged data
            raise DecodeError(_decoder_reason(error, opened.format)) from error


def _read_stored(opened: OpenedImage, data: bytes, page: int, channels: int) -> np.ndarray:
    """The channels of an image in the type of the file, as shown: [H, W, channels]."""
    if opened.tiff is not None or opened.unused_channels:
        values = read_tiff_page(data, page)
    else:
        assert opened.pillow is not None
        values = _read_bands_in_full(opened.pillow, data, opened.is_deep)
        if opened.format != "TIFF":  # Pillow has turned it
            values = turn(values, opened.orientation)
    require_channels(values.shape[2], channels)
    return values


def _as_pixels(
    values: np.ndarray,
    percentiles: tuple[float, float],
    no_data: float | None = None,
    remarks: list[str] | None = None,
) -> Tensor:
    """Rescale stored channels [h, w, C] to uint8, each by its own percentiles: channels may have different units."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype != np.uint8:
        bands = np.moveaxis(values, -1, 0)
        values = np.stack([rescale(band, percentiles, no_data, remarks) for band in bands], axis=-1)
    return torch.from_numpy(np.ascontiguousarray(values))


def _read_bands_in_full(image: Image.Image, data: bytes, is_deep: bool) -> np.ndarray:
    """The bands of an image as they are stored, [h, w, C]; torchvision reads a PNG that Pillow would cut to 8 bits."""
    if is_deep and image.format == "PNG" and image.mode in CUT_MODES and _decode_png is not None:
        values: np.ndarray = _decode_png(_as_tensor(data), _UNCHANGED, False).permute(1, 2, 0).numpy()
        return values
    return read_bands(image)


def _decode_pixels(
    opened: OpenedImage, data: bytes, percentiles: tuple[float, float], min_side: int, remarks: list[str] | None
) -> Tensor:
    """Decode the pixels as they are stored: uint8 [h, w, 3]."""
    image = opened.pillow
    assert image is not None
    if not _decode_smaller(image, min_side):
        pixels = _decode_by_torchvision(image, data)
        if pixels is not None:
            return pixels
    if opened.is_deep:
        return torch.from_numpy(_decode_deep(image, data, percentiles, remarks))
    return torch.from_numpy(_decode_by_pillow(image))


def _decode_tiff(
    header: TiffPage, data: bytes, page: int, percentiles: tuple[float, float], remarks: list[str] | None
) -> np.ndarray:
    """Decode a TIFF that Pillow does not know, as shown: [H, W, 3]."""
    require_rgb(header.unmarked)
    values = read_tiff_page(data, page)
    alpha = None
    if header.alpha >= 0:
        alpha = values[:, :, header.alpha : header.alpha + 1]
    colors = values[:, :, : 3 if header.is_color else 1]
    return _scale_and_blend(colors, alpha, percentiles, header.no_data, remarks)


def _decoder_reason(error: Exception, format_name: str) -> str:
    lines = str(error).strip().splitlines()
    if any("truncated" in line.lower() for line in lines):
        return "the file is truncated"
    detail = printable(lines[0]) if lines else type(error).__name__
    return f"damaged or unusual {format_name} data ({detail})"


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


def _decode_deep(
    image: Image.Image, data: bytes, percentiles: tuple[float, float], remarks: list[str] | None
) -> np.ndarray:
    """Decode an image of more than 8 bits per channel that is no TIFF, and rescale it: [h, w, 3]."""
    values = _read_bands_in_full(image, data, is_deep=True)
    colors = 1 if values.shape[2] <= 2 else 3
    alpha = values[:, :, colors:] if values.shape[2] > colors else None
    return _scale_and_blend(values[:, :, :colors], alpha, percentiles, None, remarks)


def _scale_and_blend(
    values: np.ndarray,
    alpha: np.ndarray | None,
    percentiles: tuple[float, float],
    no_data: float | None,
    remarks: list[str] | None,
) -> np.ndarray:
    """Rescale gray or colors [h, w, 1 or 3], unless they have 8 bits, and blend them with white: [h, w, 3]."""
    out = values if values.dtype == np.uint8 else rescale(values, percentiles, no_data, remarks)
    if alpha is not None:
        largest = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1.0
        opacity = alpha / largest
        out = (out * opacity + 255 * (1 - opacity) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(out, (*out.shape[:2], 3)))
