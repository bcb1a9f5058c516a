"""Images of any number of channels: NumPy arrays (.npy), and what Pillow opens, without a change of colors.

Shapes: H x W pixels, C channels.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageMode
from torch import Tensor

from plrc.data.image_errors import DecodeError
from plrc.pixels import RGB_CHANNELS

NPY_START = b"\x93NUMPY"  # the first bytes of every .npy file
NPY_EXTENSION = ".npy"

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_STORED_MODES = ("L", "LA", "RGB", "RGBA", "F", "I")  # bands that are channels; palettes and CMYK are colors to convert


class ChannelsError(DecodeError):
    """An image of another number of channels than `data.channels`."""


def starts_as_npy(file: BinaryIO) -> bool:
    """Whether an open file is a .npy file; it is at its beginning before and after."""
    start = file.read(len(NPY_START))
    file.seek(0)
    return start == NPY_START


def read_npy_header(file: BinaryIO, channels: int) -> tuple[int, int, np.dtype[Any]]:
    """Read the header of a .npy file, which is open at its beginning, and check that it holds such an image.

    Args:
        file: The file.
        channels: How many channels the image must have.

    Returns:
        (height, width, type of the values).

    Raises:
        DecodeError: The header is damaged, or the array is no image of so many channels.
    """
    try:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, EOFError) as error:
        raise DecodeError("a .npy file whose header is damaged or of a kind that cannot be read") from error
    if dtype.kind not in "buif":
        raise DecodeError(f"an array of {dtype}, which are no numbers of pixels")
    axis = _channel_axis(shape, channels)
    height, width = [size for number, size in enumerate(shape) if number != axis]
    if 0 in shape:
        raise DecodeError("the image has no pixels")
    return height, width, dtype


def read_npy(data: bytes, channels: int) -> NDArray[np.generic]:
    """Read a .npy file with an array [H, W, C], [C, H, W], or [H, W] for a single channel.

    Args:
        data: The contents of the file.
        channels: C.

    Returns:
        [H, W, C] in the type of the file.

    Raises:
        DecodeError: The file is damaged, or the array is no image of so many channels.
    """
    read_npy_header(io.BytesIO(data), channels)
    try:
        values: NDArray[np.generic] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DecodeError("the file is truncated") from error
    axis = _channel_axis(values.shape, channels)
    if axis < 0:
        return values[:, :, None]
    return np.moveaxis(values, axis, -1)


def read_bands(image: Image.Image) -> NDArray[np.generic]:
    """The bands of an image that Pillow opened, as they are stored: [H, W, C]. Palettes and CMYK become RGB."""
    mode = _stored_mode(image.mode)
    values = np.asarray(image if mode == image.mode else image.convert(mode))
    return values[:, :, None] if values.ndim == 2 else values


def count_bands(image: Image.Image) -> int:
    """The number of bands that `read_bands` returns, without decoding the image."""
    return len(ImageMode.getmode(_stored_mode(image.mode)).bands)


def require_channels(actual: int, channels: int) -> None:
    """Raise DecodeError if an image has not the channels that the settings expect."""
    if actual != channels:
        plural = "s" if actual != 1 else ""
        raise ChannelsError(f"the image has {actual} channel{plural}, but data.channels is {channels}")


def require_rgb(unmarked: str) -> None:
    """Raise DecodeError if an image cannot become RGB; for `unmarked` see `tiff.TiffPage`."""
    if unmarked:
        raise ChannelsError(
            f"a TIFF of {unmarked} that are not marked as red, green and blue; set data.channels to the number of "
            "channels to train on all of them"
        )


def shown_pixels(image: Tensor) -> NDArray[np.uint8]:
    """Return what people are shown of an image [C, H, W]: its first three channels, or else the first.

    Args:
        image: uint8 [C, H, W].

    Returns:
        uint8 [H, W, 3].
    """
    chosen = image[:RGB_CHANNELS] if len(image) >= RGB_CHANNELS else image[:1].expand(RGB_CHANNELS, -1, -1)
    return np.ascontiguousarray(chosen.permute(1, 2, 0).numpy())


def _stored_mode(mode: str) -> str:
    """The mode of Pillow in which the bands of an image of a mode are read."""
    if mode == "1":
        return "L"
    return mode if mode in _STORED_MODES or mode.startswith("I;") else "RGB"


def _channel_axis(shape: tuple[int, ...], channels: int) -> int:
    """The axis of an array that holds the channels; -1 if the array is [H, W]. Raises DecodeError."""
    described = " x ".join(map(str, shape)) or "a single number"
    if len(shape) == 2:
        require_channels(1, channels)
        return -1
    if len(shape) != 3:
        raise DecodeError(f"an array of shape {described}; an image is [H, W, channels] or [channels, H, W]")
    candidates = [axis for axis in (0, 2) if shape[axis] == channels]
    if not candidates:
        raise ChannelsError(f"an array of shape {described}, but data.channels is {channels}")
    if len(candidates) == 2:
        raise DecodeError(
            f"an array of shape {described}: with data.channels {channels}, its first and its last axis can be the "
            "channels; crop or pad the image, so that only one has this size"
        )
    return candidates[0]
