"""Check the objects of an image against its size and the known classes, and stack them into arrays.

Shapes: H x W pixels of the image as shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plrc.data.masks import count_short_parts, decode_masks, encode_mask, encode_segment
from plrc.data.orientation import turn, turn_box
from plrc.data.reading import ReadingReport
from plrc.transfer.labels.annotations import EMPTY_BOX, ImageAnnotation, LabelledImage, ObjectAnnotation

_TOLERANCE = 0.1  # pixels that a box may lie outside by rounding


class _CheckedObject(NamedTuple):
    """An object with a box inside the image; its fields are rows of the arrays of `LabelledImage`."""

    box: NDArray[np.float32]
    class_number: int
    ignored: bool
    area: float
    segment: Any  # None if only boxes are read


@dataclass(frozen=True)
class ObjectCheck:
    """What the objects of a set of images must have.

    Attributes:
        number_of_class: Name of a class -> its number.
        masks: Whether objects need masks.
        train_on_difficult: Whether objects marked as difficult are kept as ordinary ones.
        reading: Counts what is dropped, clipped or left out.
    """

    number_of_class: Mapping[str, int]
    masks: bool
    train_on_difficult: bool
    reading: ReadingReport

    def check(self, annotation: ImageAnnotation) -> LabelledImage:
        """Check the objects of an image and stack them into arrays.

        Boxes partly outside of the image are clipped. Objects of an unknown class, without a box inside the image or
        (with `masks`) without a usable mask are dropped.
        """
        objects: list[_CheckedObject] = []
        for item in annotation.objects:
            checked = self._check_object(item, annotation)
            if checked is not None:
                objects.append(checked)
        if not objects and (annotation.objects or annotation.dropped):
            self.reading.count("read", "images whose objects were all dropped, as background", annotation.name)
        return _stack(annotation, objects)

    def _check_object(self, item: ObjectAnnotation, annotation: ImageAnnotation) -> _CheckedObject | None:
        """The object with its box inside the image; None if it is dropped."""
        count = self.reading.count
        if item.class_name not in self.number_of_class:
            count("dropped", "objects of an unknown class", f"{item.location} {item.class_name}")
            return None
        stated_box = turn_box(item.box, annotation.turn_objects, annotation.height, annotation.width)
        if not _has_extent(stated_box):
            count("dropped", EMPTY_BOX, item.location)
            return None
        border = np.array([annotation.width, annotation.height] * 2)
        box = np.clip(stated_box, 0, border).astype(np.float32)
        if not _has_extent(box):
            count("dropped", "boxes outside of the image", item.location)
            return None
        segment = None
        if self.masks:
            segment = _encode_as_shown(item.segmentation, annotation)
            if segment is None:
                count("dropped", "objects without a usable mask", item.location)
                return None
            count_short_parts(item.segmentation, item.location, self.reading)
        if np.abs(box - np.array(stated_box)).max() > _TOLERANCE:
            count("clipped", "boxes partly outside of the image", item.location)
        area = item.area
        if area is None:
            area = float((box[2] - box[0]) * (box[3] - box[1]))
        return _CheckedObject(box, self.number_of_class[item.class_name], self._is_ignored(item), area, segment)

    def _is_ignored(self, item: ObjectAnnotation) -> bool:
        """Whether an object is neither trained on nor scored; these are counted."""
        if item.ignored:
            self.reading.count("left out", "crowds, neither trained on nor scored", item.location)
            return True
        if item.difficult and not self.train_on_difficult:
            reason = "objects marked as difficult, neither trained on nor scored"
            self.reading.count("left out", reason, item.location)
            return True
        return False


def without_objects(annotation: ImageAnnotation) -> LabelledImage:
    """Return an image that has a label map instead of objects."""
    return _stack(annotation, [])


def _stack(annotation: ImageAnnotation, objects: list[_CheckedObject]) -> LabelledImage:
    return LabelledImage(
        name=annotation.name,
        path=annotation.path,
        height=annotation.height,
        width=annotation.width,
        boxes=np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4),
        classes=np.array([item.class_number for item in objects], dtype=np.int64),
        ignored=np.array([item.ignored for item in objects], dtype=np.bool_),
        areas=np.array([item.area for item in objects], dtype=np.float64),
        segments=tuple(item.segment for item in objects if item.segment is not None),
        id_map=annotation.id_map,
    )


def _has_extent(box: Any) -> bool:
    x0, y0, x1, y1 = box
    return bool(x1 > x0 and y1 > y0)


def _encode_as_shown(segmentation: Any, annotation: ImageAnnotation) -> dict[str, Any] | None:
    """The compressed run lengths of a mask on the image as shown; None if it is not usable."""
    height, width = annotation.annotated_size
    segment = encode_segment(segmentation, height, width)
    if segment is None or annotation.turn_objects == 1:
        return segment
    mask = decode_masks((segment,), height, width)[0]
    return encode_mask(turn(mask, annotation.turn_objects).astype(bool))
