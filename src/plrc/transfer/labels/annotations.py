"""The annotations of an image: as its source states them, and checked and stacked into arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.data.channels import ChannelsError
from plrc.data.decode import decode
from plrc.data.image_errors import DecodeError
from plrc.data.image_header import Header, read_header
from plrc.data.masks import count_short_parts, decode_masks, encode_mask, encode_segment
from plrc.data.orientation import turn, turn_box
from plrc.data.reading import ReadingReport

NO_BOX = "objects without a box of four numbers"
EMPTY_BOX = "boxes without width or height"
_TOLERANCE = 0.1  # pixels that a box may lie outside by rounding
_FILE_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 64  # bytes in which the end of a file is looked for


@dataclass(frozen=True)
class ObjectAnnotation:
    """An object as its source states it.

    Attributes:
        class_name: Name of its class.
        box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; not clipped to the image.
        location: Where it is annotated, such as "000012.xml object 3".
        ignored: A crowd of COCO: neither trained on nor scored.
        area: Area in square pixels; None: that of the box.
        segmentation: COCO's `segmentation`, if the source has masks.
        difficult: Marked as difficult by VOC: not scored; trained on if the configuration asks for it.
    """

    class_name: str
    box: tuple[float, float, float, float]
    location: str
    ignored: bool = False
    area: float | None = None
    segmentation: Any = None
    difficult: bool = False


@dataclass(frozen=True)
class ImageAnnotation:
    """An image and its objects as the source states them.

    Attributes:
        name: Path of the image relative to the source.
        path: Path of the image.
        height: In pixels, as shown.
        width: In pixels, as shown.
        objects: Filled by the reader of the layout.
        id_map: Path of its map of class ids; empty if it has none.
        turn_objects: EXIF orientation by which the objects are turned, if the annotation states the size of the stored
            pixels; see `turned.settle_turned`. 1 for objects annotated on the image as shown.
    """

    name: str
    path: str
    height: int
    width: int
    objects: list[ObjectAnnotation] = field(default_factory=list)
    id_map: str = ""
    turn_objects: int = 1


@dataclass(frozen=True)
class LabelledImage:
    """An image with n checked objects.

    Attributes:
        name: Path relative to the source; unique in its set.
        path: Path of the image.
        height: In pixels.
        width: In pixels.
        boxes: [n, 4], x0 y0 x1 y1 in pixels, x1 and y1 exclusive, inside the image, never empty.
        classes: [n], from 0.
        ignored: [n], objects that are neither trained on nor scored (crowds of COCO, difficult objects of VOC).
        areas: [n], in square pixels, by which COCO's scores sort objects into sizes.
        segments: n masks as compressed COCO run lengths; empty if only boxes are read.
        id_map: Path of its map of class ids (semantic), to be read through `LabelledSet.read_classes`.
    """

    name: str
    path: str
    height: int
    width: int
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    segments: tuple[Any, ...] = ()
    id_map: str = ""


def relative_name(root: Path, path: Path) -> str:
    """Return the path of a file relative to the source, with "/" as separator."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def annotate_image(
    root: Path,
    path: Path,
    reading: ReadingReport,
    channels: int,
    stated_size: tuple[int, int] | None = None,
) -> ImageAnnotation | None:
    """Start the annotation of an image file, its size taken from its header.

    Boxes are taken for the size that the source states: that of the image as shown, or as stored before EXIF turns it.

    Args:
        root: The source; the image is named relative to it.
        path: The image file.
        reading: Counts images that cannot be used.
        channels: Channels that the images must have (`data.channels`).
        stated_size: Height and width according to the source; 0 is unknown.

    Returns:
        An annotation without objects; None if the image cannot be read or has another size than stated.
    """
    name = relative_name(root, path)
    try:
        header = _header_of_whole_image(path, channels)
    except ChannelsError as error:
        reading.count("dropped", f"image files of other channels ({error.reason})", name)
        return None
    except DecodeError:
        problem = "cannot be read" if path.exists() else "are missing"
        reading.count("dropped", f"image files that {problem}", name)
        return None
    shown_size = (header.height, header.width)
    turn_objects = 1
    if stated_size is not None and min(stated_size) > 0 and stated_size != shown_size:
        if stated_size != header.stored_size:
            reading.count("dropped", "images of another size than their annotation says", name)
            return None
        turn_objects = header.orientation
    return ImageAnnotation(name, str(path), header.height, header.width, turn_objects=turn_objects)


def drop_objects(locations: Iterable[str], reading: ReadingReport) -> None:
    """Count the objects of an image that cannot be used, which are lost with it.

    Args:
        locations: Where they are annotated.
        reading: Counts them.
    """
    for location in locations:
        reading.count("dropped", "objects of images that cannot be used", location)


def check_annotation(
    annotation: ImageAnnotation,
    classes: Mapping[str, int],
    masks: bool,
    train_on_difficult: bool,
    reading: ReadingReport,
) -> LabelledImage:
    """Check the objects of an image and stack them into arrays.

    Boxes partly outside of the image are clipped. Objects of an unknown class, without a box inside the image or (with
    `masks`) without a usable mask are dropped.

    Args:
        annotation: The image.
        classes: Name of a class -> its number.
        masks: Whether objects need masks.
        train_on_difficult: Whether objects marked as difficult are kept as ordinary ones.
        reading: Counts what is dropped or clipped.
    """
    border = np.array([annotation.width, annotation.height] * 2)
    boxes: list[NDArray[np.float32]] = []
    numbers: list[int] = []
    ignored: list[bool] = []
    areas: list[float] = []
    segments: list[Any] = []
    for item in annotation.objects:
        stated_box = turn_box(item.box, annotation.turn_objects, annotation.height, annotation.width)
        x0, y0, x1, y1 = stated_box
        if item.class_name not in classes:
            reading.count("dropped", "objects of an unknown class", f"{item.location} {item.class_name}")
            continue
        if not (x1 > x0 and y1 > y0):
            reading.count("dropped", EMPTY_BOX, item.location)
            continue
        box = np.clip(stated_box, 0, border).astype(np.float32)
        if not (box[2] > box[0] and box[3] > box[1]):
            reading.count("dropped", "boxes outside of the image", item.location)
            continue
        if masks:
            segment = _encode_as_shown(item.segmentation, annotation)
            if segment is None:
                reading.count("dropped", "objects without a usable mask", item.location)
                continue
            count_short_parts(item.segmentation, item.location, reading)
            segments.append(segment)
        if np.abs(box - np.array(stated_box)).max() > _TOLERANCE:
            reading.count("clipped", "boxes partly outside of the image", item.location)
        boxes.append(box)
        numbers.append(classes[item.class_name])
        if item.ignored:
            reading.count("left out", "crowds, neither trained on nor scored", item.location)
        elif item.difficult and not train_on_difficult:
            reading.count("left out", "objects marked as difficult, neither trained on nor scored", item.location)
        ignored.append(item.ignored or (item.difficult and not train_on_difficult))
        area = item.area
        if area is None:
            area = float((box[2] - box[0]) * (box[3] - box[1]))
        areas.append(area)
    return LabelledImage(
        name=annotation.name,
        path=annotation.path,
        height=annotation.height,
        width=annotation.width,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        classes=np.array(numbers, dtype=np.int64),
        ignored=np.array(ignored, dtype=np.bool_),
        areas=np.array(areas, dtype=np.float64),
        segments=tuple(segments),
        id_map=annotation.id_map,
    )


def _encode_as_shown(segmentation: Any, annotation: ImageAnnotation) -> dict[str, Any] | None:
    """The compressed run lengths of a mask on the image as shown; None if it is not usable."""
    height, width, orientation = annotation.height, annotation.width, annotation.turn_objects
    if orientation == 1:
        return encode_segment(segmentation, height, width)
    if orientation >= 5:
        height, width = width, height
    segment = encode_segment(segmentation, height, width)
    if segment is None:
        return None
    return encode_mask(turn(decode_masks((segment,), height, width)[0], orientation).astype(bool))


def _header_of_whole_image(path: Path, channels: int) -> Header:
    """The header of an image; a JPEG or PNG whose last bytes are unusual is decoded. Raises DecodeError."""
    try:
        with open(path, "rb") as file:
            header = read_header(file, channels)
            header.require_channels(channels)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte or half of a character in the name
        raise DecodeError(str(error), str(path)) from error
    if _FILE_ENDS.get(header.format, b"") not in tail:
        decode(path)
    return header
