"""Pixel statistics: the mean and standard deviation of each channel that a network was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from plrc.errors import ConfigError

RGB_CHANNELS = 3
MEAN_KEY = "pixel_mean"
STD_KEY = "pixel_std"
"""Under these names an export, or any other weights file, says with which statistics its network was trained."""


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of each channel; a network sees (pixel / 255 - mean) / std.

    Attributes:
        mean: A number for each channel, on the scale 0 to 1; for three channels those of red, green and blue.
        std: A number for each channel, on the same scale.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        problem = statistics_problem(self.mean, self.std, channels=len(self.mean) or RGB_CHANNELS)
        if problem:
            raise ValueError(problem)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def __str__(self) -> str:
        return f"mean {_listed(self.mean)}, std {_listed(self.std)}"

    def metadata(self) -> dict[str, str]:
        """Return the statistics as the metadata of a weights file."""
        return {MEAN_KEY: json.dumps(list(self.mean)), STD_KEY: json.dumps(list(self.std))}


def statistics_problem(
    mean: Sequence[float], std: Sequence[float], section: str = "", channels: int = RGB_CHANNELS
) -> str:
    """Describe why numbers cannot be pixel statistics.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        section: What the names "mean" and "std" start with in the sentence, such as "data.".
        channels: How many channels images have.

    Returns:
        A sentence; empty if they can.
    """
    count = "three numbers"
    meaning = "red, green, blue"
    if channels != RGB_CHANNELS:
        count = "one number" if channels == 1 else f"{channels} numbers"
        meaning = f"images of {channels} channels" if channels > 1 else "gray"
    for name, values in ((f"{section}mean", mean), (f"{section}std", std)):
        wanted = f"{name} must be {count} from 0 to 1 ({meaning}), got {_listed(values)}"
        if len(values) != channels or min(values) < 0:
            return wanted
        if max(values) > 1:
            return f"{wanted}; if they are for pixels from 0 to 255, divide them by 255"
    if min(std) <= 0:
        return f"{section}std must be {count} above 0 ({meaning}), got {_listed(std)}"
    return ""


def given_statistics(
    mean: tuple[float, ...], std: tuple[float, ...], section: str = "data", channels: int = RGB_CHANNELS
) -> PixelStatistics | None:
    """Return the statistics that the settings `mean` and `std` of a section give; None if both are empty.

    Args:
        mean: The setting `mean`.
        std: The setting `std`.
        section: The section of the settings, for the message.
        channels: How many channels images have.

    Raises:
        ConfigError: They cannot be statistics.
    """
    if not mean and not std:
        return None
    problem = statistics_problem(mean, std, f"{section}.", channels)
    if problem:
        raise ConfigError(problem)
    return PixelStatistics(mean, std)


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values) or "none"


IMAGENET = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's backbones, and most others, are trained with."""
