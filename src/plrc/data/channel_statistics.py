"""Mean and standard deviation of each channel of a sample of images, for images that are not RGB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plrc.config import DataConfig
from plrc.data.image_errors import ImageError
from plrc.data.sources import ImageList
from plrc.errors import DataError
from plrc.pixels import PixelStatistics

SAMPLE = 256
"""Largest number of images that are read."""

Moments = NDArray[np.float64]
"""Mean and mean square of each channel of an image, on the scale 0 to 1: [2, C]."""

_DIGITS = 6


def measure_pixels(images: ImageList, positions: Sequence[int], data: DataConfig) -> tuple[PixelStatistics, int]:
    """Measure the statistics of at most SAMPLE images, evenly spread; every image counts alike.

    Args:
        images: All images.
        positions: Positions of the images to choose from.
        data: How images are read.

    Returns:
        (statistics, number of images that were read).

    Raises:
        DataError: None of them can be read, or a channel has a single value.
    """
    count = min(SAMPLE, len(positions))
    measured: list[Moments] = []
    reason = ""
    for number in range(count):
        position = int(positions[number * len(positions) // count])
        try:
            measured.append(channel_moments(images.decode(position, data)))
        except ImageError as error:
            reason = reason or f"{images.names[position]}: {error.reason}"
    if not measured:
        raise DataError(f"none of {count} images can be read to measure data.mean and data.std; the first, {reason}")
    return statistics_of(measured), len(measured)


def channel_moments(image: Tensor) -> Moments:
    """Compute mean and mean square of each channel of an image, uint8 [C, H, W]."""
    values = image.flatten(1).double() / 255
    return np.stack([values.mean(dim=1).numpy(), values.square().mean(dim=1).numpy()])


def statistics_of(moments: Iterable[Moments]) -> PixelStatistics:
    """Combine the moments of images into the statistics of all, each image counted alike.

    Raises:
        DataError: A channel has a single value in all images.
    """
    mean, square = np.mean(list(moments), axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0)).round(_DIGITS)
    constant = np.flatnonzero(std == 0)
    if len(constant):
        raise DataError(
            f"channel {constant[0]} (counted from 0) has the same value everywhere, so data.std cannot be measured; "
            "leave this channel out of the files, or set data.mean and data.std"
        )
    return PixelStatistics(tuple(map(float, mean.round(_DIGITS))), tuple(map(float, std)))
