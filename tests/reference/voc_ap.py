"""Average precision as the Pascal VOC devkit defines it, as slow loops over plain lists, for one class.

Boxes are the devkit's: x0 y0 x1 y1 in whole pixels, all inclusive, so a width is x1 - x0 + 1.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

Box = tuple[int, int, int, int]


class Object(NamedTuple):
    image: int
    box: Box
    difficult: bool


class Detection(NamedTuple):
    image: int
    box: Box
    score: float


def iou(a: Box, b: Box) -> Fraction:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return Fraction(width * height, area_a + area_b - width * height)


def average_precision(
    objects: list[Object], detections: list[Detection], threshold: Fraction, eleven_points: bool
) -> Fraction:
    """The class must have an object that is not difficult."""
    taken: set[int] = set()
    right, wrong = 0, 0
    curve: list[tuple[Fraction, Fraction]] = []  # recall, precision
    positives = sum(not one.difficult for one in objects)
    for detection in sorted(detections, key=lambda one: -one.score):
        best, nearest = Fraction(0), -1
        for number, one in enumerate(objects):
            if one.image == detection.image and iou(detection.box, one.box) > best:
                best, nearest = iou(detection.box, one.box), number
        if nearest < 0 or best < threshold or nearest in taken:
            wrong += 1
        elif not objects[nearest].difficult:
            right += 1
            taken.add(nearest)
        if right + wrong:
            curve.append((Fraction(right, positives), Fraction(right, right + wrong)))
    if eleven_points:
        total = Fraction(0)
        for tenth in range(11):
            total += max((p for recall, p in curve if recall >= Fraction(tenth, 10)), default=Fraction(0))
        return total / 11
    recalls = [Fraction(0), *(recall for recall, _ in curve), Fraction(1)]
    precisions = [Fraction(0), *(precision for _, precision in curve), Fraction(0)]
    for i in reversed(range(len(precisions) - 1)):
        precisions[i] = max(precisions[i], precisions[i + 1])
    return sum(
        ((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls))),
        start=Fraction(0),
    )
