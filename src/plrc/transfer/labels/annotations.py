"""The annotations of an image: as its source states them, and as checked arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.data.channels import ChannelsError
from plrc.data.decode import decode
from plrc.data.image_errors import DecodeError
from plrc.data.image_header import Header, read_header
from plrc.data.orientation import turn_size
from plrc.data.reading import ReadingReport

NO_BOX = "objects without a box of four numbers"
EMPTY_BOX = "boxes without width or height"
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


@dataclass
class ImageAnnotation:
    """An image and its objects as the source states them.

    Attributes:
        name: Path of the image relative to the source.
        path: Path of the image.
        height: In pixels, as shown.
        width: In pixels, as shown.
        objects: Added by the reader of the layout.
        dropped: Number of its objects that the reader could not use.
        id_map: Path of its map of class ids; empty if it has none.
        turn_objects: EXIF orientation by which the objects are turned, if the annotation states the size of the stored
            pixels; see `turned.settle_turned`. 1 for objects annotated on the image as shown.
    """

    name: str
    path: str
    height: int
    width: int
    objects: list[ObjectAnnotation] = field(default_factory=list)
    dropped: int = 0
    id_map: str = ""
    turn_objects: int = 1

    @property
    def annotated_size(self) -> tuple[int, int]:
        """Height and width of the pixels on which the objects are annotated."""
        return turn_size(self.height, self.width, self.turn_objects)


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
