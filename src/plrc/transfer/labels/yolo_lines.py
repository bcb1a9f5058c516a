"""The lines of a YOLO label file: the number of a class, then a box or a polygon in shares of width and height."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from plrc.data.reading import ReadingReport
from plrc.errors import DataError

FAR_OUTSIDE = 2.0  # a share above it is no rounding, and no box that reaches over the border
_BOX = 4  # values of a box


@dataclass(frozen=True)
class LabelLine:
    """A line of a label file.

    Attributes:
        location: The file and the line, such as "labels/a.txt line 2".
        class_number: From 0, not checked.
        values: Center x, center y, width and height of a box; or x and y of at least three points of a polygon.
    """

    location: str
    class_number: int
    values: tuple[float, ...]

    @property
    def is_polygon(self) -> bool:
        """Whether the values are points."""
        return len(self.values) > _BOX

    @property
    def is_tilted_quad(self) -> bool:
        """Whether the values are four points that are not the corners of an upright rectangle."""
        if len(self.values) != 8:
            return False
        return len(set(self.values[0::2])) > 2 or len(set(self.values[1::2])) > 2

    @property
    def is_far_outside(self) -> bool:
        """Whether a value cannot be a share of the image's size."""
        return max(map(abs, self.values)) > FAR_OUTSIDE

    def points(self, height: int, width: int) -> list[float]:
        """Return the points of a polygon in pixels, x and y in turn."""
        sides = (width, height)
        return [value * sides[i % 2] for i, value in enumerate(self.values)]

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return (x0, y0, x1, y1) in pixels: the box, or the bounds of the polygon."""
        if self.is_polygon:
            points = self.points(height, width)
            return min(points[0::2]), min(points[1::2]), max(points[0::2]), max(points[1::2])
        x, y, box_width, box_height = self.values
        return (
            (x - box_width / 2) * width,
            (y - box_height / 2) * height,
            (x + box_width / 2) * width,
            (y + box_height / 2) * height,
        )


@dataclass
class LabelFile:
    """The content of a label file.

    Attributes:
        lines: Its labels, each once.
        dropped: Number of lines that are no labels.
    """

    lines: list[LabelLine]
    dropped: int = 0


def read_label_file(path: Path, name: str, reading: ReadingReport) -> LabelFile:
    """Read a label file; lines that are repeated or are no labels are dropped.

    Args:
        path: The file.
        name: Its name in messages.
        reading: Counts what is dropped.

    Raises:
        DataError: The file is not a text file, or has lines that are neither boxes nor polygons.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable text file ({error}); fix or remove it") from error
    lines: dict[tuple[float, ...], LabelLine] = {}
    dropped = 0
    for number, line in enumerate(text.split("\n"), start=1):
        location = f"{name} line {number}"
        if not line.strip():
            continue
        numbers = _numbers(line)
        if numbers is None or not numbers[0].is_integer() or len(numbers) <= _BOX:
            reading.count("dropped", "lines that are not the number of a class and a box or polygon", location)
            dropped += 1
            continue
        values = numbers[1:]
        if len(values) == 5:
            raise DataError(
                f"{location} has 5 values after the class: a box with a confidence, as predictions have it, or with an "
                "angle; plrc reads boxes (4 values) and polygons (x and y of 3 points or more): export these"
            )
        if len(values) % 2:
            raise DataError(
                f"{location} has {len(values)} values after the class, which is neither a box (4) nor a polygon (x and "
                "y of 3 points or more); keypoints are not read: export boxes or polygons"
            )
        if numbers in lines:
            reading.count("dropped", "labels that a file repeats", location)
            continue
        lines[numbers] = LabelLine(location, int(numbers[0]), values)
    return LabelFile(list(lines.values()), dropped)


def _numbers(line: str) -> tuple[float, ...] | None:
    try:
        numbers = tuple(map(float, line.split()))
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None
