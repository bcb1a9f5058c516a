"""The values of a COCO file: ids, numbers, boxes and crowd marks, also where an exporter writes them as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""

_CROWD_MARKS = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True, "": False}

_MAX_DIGITS = 20  # Python refuses to convert texts of many digits

T = TypeVar("T")


class Ids(Generic[T]):
    """Values by id. An id that is a number in one place and the same number as text in another is the same id."""

    def __init__(self) -> None:
        self._values: dict[int | str, T] = {}

    def __contains__(self, key: int | str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._values)

    def __setitem__(self, key: int | str, value: T) -> None:
        self._values[key] = value

    def __getitem__(self, key: int | str) -> T:
        return self._values[key]

    def values(self) -> list[T]:
        """Return the values in the order in which their ids were added."""
        return list(self._values.values())

    def get(self, key: int | str | None) -> T | None:
        """Return the value of an id; None if there is none."""
        if key is None:
            return None
        if key in self._values:
            return self._values[key]
        if isinstance(key, int):
            return self._values.get(str(key))
        if key.isdecimal() and len(key) < _MAX_DIGITS:
            return self._values.get(int(key))
        return None


def read_id(value: Any) -> int | str | None:
    """Return an id as a whole number or a text; None if it is neither."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def read_number(value: Any) -> float | None:
    """Return a finite number, also if it is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_side(value: Any) -> int:
    """Return the height or width of an image in pixels; 0 if it is not stated."""
    number = read_number(value)
    return int(number) if number is not None and 0 < number < 2**31 else 0


def read_box(value: Any) -> Box | None:
    """Return a box of four finite numbers; None for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = map(read_number, value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height


def box_of_polygons(segmentation: Any) -> Box | None:
    """Return the smallest box around polygons [[x, y, x, y, ...], ...]; None for run lengths and anything else."""
    if not isinstance(segmentation, list):
        return None
    if not any(isinstance(polygon, list) for polygon in segmentation):
        segmentation = [segmentation]  # a single polygon
    elif not all(isinstance(polygon, list) for polygon in segmentation):
        return None
    xs: list[float] = []
    ys: list[float] = []
    for polygon in segmentation:
        for position, value in enumerate(polygon):
            number = read_number(value)
            if number is None:
                return None
            (ys if position % 2 else xs).append(number)
    if not ys:
        return None
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def read_crowd(value: Any) -> bool | None:
    """Return whether `iscrowd` marks a crowd; a missing mark is none. None if it is neither 0 nor 1."""
    if value is None:
        return False
    if isinstance(value, str):
        return _CROWD_MARKS.get(value.strip().lower())
    return _CROWD_MARKS.get(value) if isinstance(value, (int, float)) else None


def has_text_numbers(entry: Mapping[str, Any]) -> bool:
    """Return whether the crowd mark, the area or a side of the box of an object is written as text."""
    values = [entry.get("iscrowd"), entry.get("area")]
    box = entry.get("bbox")
    if isinstance(box, list):
        values += box
    return any(isinstance(value, str) for value in values)
