"""Area and overlap of boxes (left, top, right, bottom) in shares of a frame, straight from METHOD section 2."""

from __future__ import annotations

from plrc.geometry import Box


def area(box: Box) -> float:
    """Area of a box, as a share of its frame; 0 for an empty one."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def overlap(a: Box, b: Box) -> float:
    """area(a and b) / max(area a, area b): the overlap of METHOD section 2, 1 for equal boxes."""
    both = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    larger = max(area(a), area(b))
    return area(both) / larger if larger > 0 else 0.0
