"""The annotations of an image: as its source states them, and checked and stacked into arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plrc.data.channels import NPY_START, ChannelsError, read_npy_size
from plrc.data.decode import decode
from plrc.data.image_files import DecodeError, read_header
from plrc.data.masks import encode_segment
from plrc.data.reading import ReadingReport
from plrc.pixels import RGB_CHANNELS

NO_BOX = "objects without a box of four numbers"
EMPTY_BOX = "boxes without width or height"
_TOLERANCE = 0.1  # pixels that a box may lie outside by rounding
_ORIENTATION = 0x0112  # EXIF tag; with 5 to 8, height and width are exchanged
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
        height: In pixels.
        width: In pixels.
        objects: Filled by the reader of the layout.
        id_map: Path of its map of class ids; empty if it has none.
    """

    name: str
    path: str
    height: int
    width: int
    objects: list[ObjectAnnotation] = field(default_factory=list)
    id_map: str = ""


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
        id_map: Path of its map of class ids (semantic), to be read through `LabelledSet.class_of_id`.
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


def annotate_image(
    root: Path,
    path: Path,
    reading: ReadingReport,
    stated_size: tuple[int, int] | None = None,
    channels: int = RGB_CHANNELS,
) -> ImageAnnotation | None:
    """Start the annotation of an image file, its size taken from its header.

    Args:
        root: The source; the image is named relative to it.
        path: The image file.
        reading: Counts images that cannot be used.
        stated_size: Height and width according to the source; 0 is unknown.
        channels: Channels of the images, for arrays (.npy).

    Returns:
        An annotation without objects; None if the image cannot be read or has another size than stated.
    """
    name = os.path.relpath(path, root).replace(os.sep, "/")
    try:
        height, width = _size_of_whole_image(path, channels)
    except ChannelsError as error:
        reading.count("dropped", f"image files of other channels ({error.reason})", name)
        return None
    except DecodeError:
        problem = "cannot be read" if path.exists() else "are missing"
        reading.count("dropped", f"image files that {problem}", name)
        return None
    if stated_size is not None and min(stated_size) > 0 and stated_size != (height, width):
        reading.count("dropped", "images of another size than their annotation says", name)
        return None
    return ImageAnnotation(name, str(path), height, width)


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
        x0, y0, x1, y1 = item.box
        if item.class_name not in classes:
            reading.count("dropped", "objects of an unknown class", f"{item.location} {item.class_name}")
            continue
        if not (x1 > x0 and y1 > y0):
            reading.count("dropped", EMPTY_BOX, item.location)
            continue
        box = np.clip(item.box, 0, border).astype(np.float32)
        if not (box[2] > box[0] and box[3] > box[1]):
            reading.count("dropped", "boxes outside of the image", item.location)
            continue
        if masks:
            segment = encode_segment(item.segmentation, annotation.height, annotation.width)
            if segment is None:
                reading.count("dropped", "objects without a usable mask", item.location)
                continue
            segments.append(segment)
        if np.abs(box - np.array(item.box)).max() > _TOLERANCE:
            reading.count("clipped", "boxes partly outside of the image", item.location)
        boxes.append(box)
        numbers.append(classes[item.class_name])
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


def _size_of_whole_image(path: Path, channels: int) -> tuple[int, int]:
    """(height, width) as `decode` gives them, from the header; a JPEG or PNG whose last bytes are unusual is decoded.

    Raises DecodeError.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(NPY_START)) == NPY_START:
                file.seek(0)
                return read_npy_size(file, channels)
            file.seek(0)
            header = read_header(file)
            file.seek(0)
            turned = header.format in ("JPEG", "MPO") and Image.open(file).getexif().get(_ORIENTATION, 1) in range(5, 9)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
    except (OSError, Image.DecompressionBombError) as error:
        raise DecodeError(str(error), str(path)) from error
    if _FILE_ENDS.get(header.format, b"") not in tail:
        decode(path)
    return (header.width, header.height) if turned else (header.height, header.width)
