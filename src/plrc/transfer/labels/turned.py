"""Labels of images that EXIF turns, whose annotation states the size before the turn.

Either the objects were annotated before the turn, or only the size comes from a tool that ignores EXIF. The boxes of
all such images together show which.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from plrc.data.reading import ReadingReport
from plrc.transfer.labels.annotations import ImageAnnotation

_TOLERANCE = 0.03  # of a side, by which a box may lie outside of its image by careless drawing
_FEWEST = 2  # images that must speak for boxes on the image as shown, if there are as many
_SMALLEST_SHARE = 0.05  # of the images, that must speak for it
_MAJORITY = 3  # more than so many times as many images must speak for it as against it


def settle_turned(
    images_of_role: Mapping[str, Sequence[ImageAnnotation]], reading: ReadingReport
) -> dict[str, list[ImageAnnotation]]:
    """Decide whether objects of images that EXIF turns are turned with them, and count these images.

    They are turned, unless clearly more images have boxes that lie outside of the stored pixels than boxes that lie
    outside of the image as shown. A few careless boxes decide nothing.

    Args:
        images_of_role: All images of a source that are used, by what they are for (train, val, test).
        reading: Counts the images.

    Returns:
        The images by role.
    """
    images = itertools.chain.from_iterable(images_of_role.values())
    turned = [image for image in images if image.turn_objects != 1]
    outside_stored = sum(not _fit(image, stored=True) for image in turned)
    outside_shown = sum(not _fit(image, stored=False) for image in turned)
    needed = max(min(_FEWEST, len(turned)), _SMALLEST_SHARE * len(turned))
    keep = outside_stored > _MAJORITY * outside_shown and outside_stored >= needed
    reason = "objects annotated before the turn of their image by EXIF, turned with it"
    if keep:
        reason = "images whose annotation states the size before their turn by EXIF, and boxes after it"
    for image in turned:
        reading.count("repaired", reason, image.name)
    settled: dict[str, list[ImageAnnotation]] = {}
    for role, content in images_of_role.items():
        settled[role] = [replace(image, turn_objects=1) for image in content] if keep else list(content)
    return settled


def _fit(image: ImageAnnotation, stored: bool) -> bool:
    """Whether all boxes lie inside the image, as stored or as shown."""
    height, width = image.height, image.width
    if stored and image.turn_objects >= 5:
        height, width = width, height
    right = width * (1 + _TOLERANCE)
    bottom = height * (1 + _TOLERANCE)
    return all(item.box[2] <= right and item.box[3] <= bottom for item in image.objects)
