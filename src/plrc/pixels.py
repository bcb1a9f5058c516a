"""Pixel statistics: the mean and standard deviation of red, green and blue that a network was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from plrc.errors import ConfigError

COLORS = 3
MEAN_KEY = "pixel_mean"
STD_KEY = "pixel_std"
"""Under these names an export, or any other weights file, says with which statistics its network was trained."""


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of red, green and blue; a network sees (pixel / 255 - mean) / std.

    Attributes:
        mean: Three numbers on the scale 0 to 1.
        std: Three numbers on the same scale.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        problem = statistics_problem(self.mean, self.std)
        if problem:
            raise ValueError(problem)

    def __str__(self) -> str:
        return f"mean {_listed(self.mean)}, std {_listed(self.std)}"

    def metadata(self) -> dict[str, str]:
        """Return the statistics as the metadata of a weights file."""
        return {MEAN_KEY: json.dumps(list(self.mean)), STD_KEY: json.dumps(list(self.std))}


def statistics_problem(mean: Sequence[float], std: Sequence[float], section: str = "") -> str:
    """Describe why numbers cannot be pixel statistics.

    Args:
        mean: Mean of red, green and blue.
        std: Standard deviation of red, green and blue.
        section: What the names "mean" and "std" start with in the sentence, such as "data.".

    Returns:
        A sentence; empty if they can.
    """
    for name, values in ((f"{section}mean", mean), (f"{section}std", std)):
        wanted = f"{name} must be three numbers from 0 to 1 (red, green, blue), got {_listed(values)}"
        if len(values) != COLORS or min(values) < 0:
            return wanted
        if max(values) > 1:
            return f"{wanted}; if they are for pixels from 0 to 255, divide them by 255"
    if min(std) <= 0:
        return f"{section}std must be three numbers above 0 (red, green, blue), got {_listed(std)}"
    return ""


def given_statistics(mean: tuple[float, ...], std: tuple[float, ...], section: str = "data") -> PixelStatistics | None:
    """Return the statistics that the settings `mean` and `std` of a section give; None if both are empty.

    Raises:
        ConfigError: They cannot be statistics.
    """
    if not mean and not std:
        return None
    problem = statistics_problem(mean, std, f"{section}.")
    if problem:
        raise ConfigError(problem)
    return PixelStatistics(mean, std)


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values) or "none"


IMAGENET = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's backbones, and most others, are trained with."""
