"""The orientations of EXIF, 1 to 8: how stored pixels and boxes are turned into those that are shown.

Shapes: h x w pixels as stored, H x W as shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

_FLIPS: dict[int, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
_EXCHANGED = (5, 6, 7, 8)  # orientations that exchange height and width


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels or a mask [h, w, ...] as an orientation demands: [H, W, ...], contiguous."""
    if orientation not in _FLIPS:
        return np.ascontiguousarray(pixels)
    turned = pixels.swapaxes(0, 1) if orientation in _EXCHANGED else pixels
    return np.ascontiguousarray(np.flip(turned, _FLIPS[orientation]))


def turn_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Exchange height and width as an orientation demands: of the stored pixels, or back from those that are shown."""
    return (width, height) if orientation in _EXCHANGED else (height, width)


def turn_box(box: Box, orientation: int, height: int, width: int) -> Box:
    """Turn a box of the stored pixels as an orientation demands.

    Args:
        box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
        orientation: 1 to 8.
        height: H, as shown.
        width: W, as shown.
    """
    x0, y0, x1, y1 = box
    if orientation in _EXCHANGED:
        x0, y0, x1, y1 = y0, x0, y1, x1
    flips = _FLIPS.get(orientation, ())
    if 0 in flips:
        y0, y1 = height - y1, height - y0
    if 1 in flips:
        x0, x1 = width - x1, width - x0
    return x0, y0, x1, y1
