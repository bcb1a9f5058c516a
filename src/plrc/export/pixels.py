"""What a detector must do with pixels, as the run did it: part of every receipt. Layer 5: imports data."""

from __future__ import annotations

from typing import Any

from plrc.data.photometric import MEAN, STD


def pixels(top: int = 1) -> dict[str, Any]:
    """Channel order, mean and standard deviation of pixels whose largest value is `top`: 1 or 255."""
    return {
        "channels": "RGB",
        "pixels": f"0 to {top}",
        "mean": [round(value * top, 3) for value in MEAN],
        "std": [round(value * top, 3) for value in STD],
    }
