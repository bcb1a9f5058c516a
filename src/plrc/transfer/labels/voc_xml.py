"""The .xml files of Pascal VOC: the size of an image, and its objects."""

from __future__ import annotations

import contextlib
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from plrc.data.reading import ReadingReport
from plrc.errors import DataError
from plrc.transfer.labels.annotations import (
    EMPTY_BOX,
    NO_BOX,
    ImageAnnotation,
    ObjectAnnotation,
    annotate_image,
    drop_objects,
    relative_name,
)


def read_xml(path: Path) -> ET.Element:
    """Parse a file. Raises DataError."""
    try:
        return ET.parse(path).getroot()
    except (ET.ParseError, OSError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DataError(f"{path} is not readable XML ({error}); fix or remove it") from error


def read_annotation(
    root: Path,
    image: Path,
    xml: Path | None,
    location: str,
    leave_out: bool,
    reading: ReadingReport,
    channels: int,
    first_pixel: int = 1,
) -> ImageAnnotation | None:
    """Read the annotation of an image.

    Args:
        root: The source.
        image: The image file.
        xml: Its annotation file; None: it has none.
        location: Name of the annotation file in messages.
        leave_out: Whether an image without an annotation file is left out; otherwise it is background.
        reading: Counts what is dropped.
        channels: Channels that the images must have (`data.channels`).
        first_pixel: 1: corners are pixels, counted from 1 and both inside the box. 0: they are edges, counted from 0.

    Returns:
        The annotation; None if the image cannot be used.

    Raises:
        DataError: The annotation file cannot be read.
    """
    if xml is None:
        if leave_out:
            reading.count("left out", "images without an annotation file", relative_name(root, image))
            return None
        annotation = annotate_image(root, image, reading, channels)
        if annotation is not None:
            reading.count("read", "images without an annotation file, as background", annotation.name)
        return annotation
    tree = read_xml(xml)
    annotation = annotate_image(root, image, reading, channels, _stated_size(tree))
    elements = {f"{location} object {number}": item for number, item in enumerate(tree.findall("object"), start=1)}
    if annotation is None:
        drop_objects(elements, reading)
        return None
    for place, element in elements.items():
        item = _read_object(element, place, first_pixel, reading)
        if item is not None:
            annotation.objects.append(item)
    annotation.dropped = len(elements) - len(annotation.objects)
    return annotation


def first_pixel_of(files: Iterable[Path], default: int) -> int:
    """Return from which number the corners of boxes are counted: see `read_annotation`.

    Objects at the edges of images show it: a corner at 0 is counted from 0. A corner at 1 is counted from 1, unless
    the default is 0: labelling tools that count from 0 write 1 for 0, so there the whole side, from 1 to the width or
    height of the image, is needed.

    Args:
        files: All annotation files of a source.
        default: 0 or 1, which the other number replaces if it is the more frequent one.
    """
    counts = Counter[int]()
    for file in files:
        with contextlib.suppress(DataError):  # reported when its turn comes
            tree = read_xml(file)
            height, width = _stated_size(tree) or (0, 0)
            for box in tree.iter("bndbox"):
                for axis, side in (("y", height), ("x", width)):
                    first = _number(box, f"{axis}min")
                    covers_side = first == 1 and _number(box, f"{axis}max") == side
                    if first == 0 or covers_side or (first == 1 and default == 1):
                        counts[int(first)] += 1
    other = 1 - default
    return other if counts[other] > counts[default] else default


def class_names(images: Iterable[ImageAnnotation]) -> tuple[str, ...]:
    """Return the sorted names of the classes of all objects."""
    names: set[str] = set()
    for image in images:
        names |= {item.class_name for item in image.objects}
    return tuple(sorted(names))


def _stated_size(tree: ET.Element) -> tuple[int, int] | None:
    """(height, width); None if the file does not state both."""
    sides = []
    for side in ("height", "width"):
        number = _number(tree, f"size/{side}")
        if not math.isfinite(number) or number < 0:
            return None
        sides.append(round(number))
    return sides[0], sides[1]


def _number(element: ET.Element, path: str) -> float:
    """The number in an element below this one; nan if it has none."""
    try:
        return float(element.findtext(path, ""))
    except ValueError:
        return math.nan


def _read_object(
    element: ET.Element, location: str, first_pixel: int, reading: ReadingReport
) -> ObjectAnnotation | None:
    """Equal corners are not a box."""
    name = element.findtext("name", "").strip()
    try:
        x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        reading.count("dropped", NO_BOX, location)
        return None
    if any(map(math.isinf, (x0, y0, x1, y1))):
        reading.count("dropped", NO_BOX, location)
        return None
    if not name:
        reading.count("dropped", "objects without a name", location)
        return None
    if not (x1 > x0 and y1 > y0):
        reading.count("dropped", EMPTY_BOX, location)
        return None
    difficult = element.findtext("difficult", "").strip() == "1"
    box = (x0 - first_pixel, y0 - first_pixel, x1, y1)
    return ObjectAnnotation(name, box, location, difficult=difficult)
