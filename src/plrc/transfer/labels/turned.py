"""Labels of images that EXIF turns, whose annotation states the size before the turn.

Either the objects were annotated before the turn, or only the size comes from a tool that ignores EXIF. The boxes of
all such images together show which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plrc.data.reading import ReadingReport
from plrc.transfer.labels.annotations import ImageAnnotation

_TOLERANCE = 0.03  # of a side, by which a box may lie outside of its image by careless drawing
_FEWEST_IMAGES = 2  # that do not fit as stored; fewer are careless boxes, unless the source has fewer images
_SMALLEST_SHARE = 0.05  # of the images, which do not fit as stored
_MAJORITY = 3  # the images that do not fit as stored are more than so many times those that do not fit as shown


def settle_turned(images: Iterable[ImageAnnotation], reading: ReadingReport) -> None:
    """Decide whether objects of images that EXIF turns are turned with them, and count these images.

    They are turned, unless clearly more images have boxes that lie outside of the stored pixels than boxes that lie
    outside of the image as shown. A few careless boxes decide nothing.

    Args:
        images: All images of a source that are used; `turn_objects` of those that are not to be turned becomes 1.
        reading: Counts the images.
    """
    turned = [image for image in images if image.turn_objects != 1]
    reason = "objects annotated before the turn of their image by EXIF, turned with it"
    if _are_annotated_as_shown(turned):
        reason = "images whose annotation states the size before their turn by EXIF, and boxes after it"
        for image in turned:
            image.turn_objects = 1
    for image in turned:
        reading.count("repaired", reason, image.name)


def _are_annotated_as_shown(turned: Sequence[ImageAnnotation]) -> bool:
    """Whether the boxes of these images lie on the images as shown, not on the stored pixels."""
    misfits_as_stored = sum(not _fits(image, *image.annotated_size) for image in turned)
    misfits_as_shown = sum(not _fits(image, image.height, image.width) for image in turned)
    if misfits_as_stored <= _MAJORITY * misfits_as_shown:
        return False
    return misfits_as_stored >= max(min(_FEWEST_IMAGES, len(turned)), _SMALLEST_SHARE * len(turned))


def _fits(image: ImageAnnotation, height: int, width: int) -> bool:
    """Whether all boxes of an image lie inside of this size."""
    right = width * (1 + _TOLERANCE)
    bottom = height * (1 + _TOLERANCE)
    return all(item.box[2] <= right and item.box[3] <= bottom for item in image.objects)
