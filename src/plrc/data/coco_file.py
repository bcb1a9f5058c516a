"""The images and objects of a COCO file, as exporters write them, under ids of any kind."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plrc.data.coco_names import find_images, image_folders, plain_name, split_of_file
from plrc.data.coco_table import read_entries
from plrc.data.coco_values import (
    Box,
    Ids,
    has_text_numbers,
    read_box,
    read_crowd,
    read_id,
    read_number,
    read_side,
)
from plrc.data.reading import ReadingReport
from plrc.errors import DataError
from plrc.text import some


@dataclass
class CocoImage:
    """An image of a COCO file.

    Attributes:
        file_name: As written.
        height: In pixels; 0 if it is not stated.
        width: In pixels; 0 if it is not stated.
        objects: Its objects.
        dropped: Number of its objects that could not be read.
    """

    file_name: str
    height: int
    width: int
    objects: list[CocoObject] = field(default_factory=list)
    dropped: int = 0


@dataclass(frozen=True)
class CocoObject:
    """An object of an image.

    Attributes:
        category: Name of its category; "(category 3)" if the file does not name it.
        box: x, y, width, height in pixels; None if it has none.
        area: In square pixels; None if it is not stated.
        crowd: Whether it is a crowd: an area whose objects are not annotated one by one.
        segmentation: As written; None if it has none.
        location: Where it is annotated, such as "train.json annotation 3".
    """

    category: str
    box: Box | None
    area: float | None
    crowd: bool
    segmentation: Any
    location: str


def read_images(
    path: str | Path, table: Mapping[str, Any], reading: ReadingReport, folders: Sequence[str] = ()
) -> Ids[CocoImage]:
    """Read the images, without objects. A file that is listed twice is one image under two ids.

    Args:
        path: The file.
        table: Its content.
        reading: Counts what is repaired and dropped.
        folders: Where its images may lie, to tell two spellings of a name from two files; empty: the usual places.

    Raises:
        DataError: There is no list of images, or different images have one id.
    """
    named = _images_with_names(path, table, reading)
    names = {name for _, name, _ in named}
    file_of_name = _files_of_names(names, folders or image_folders(str(path), split_of_file(str(path))))
    images: Ids[CocoImage] = Ids()
    image_of_file: dict[str, CocoImage] = {}
    conflicts: dict[int | str, set[str]] = defaultdict(set)  # id -> names of the different images that have it
    for key, name, entry in named:
        file = file_of_name[name]
        if key in images:
            first_name = images[key].file_name
            if file_of_name[first_name] == file:
                reading.count("dropped", "images that are listed twice", name)
            else:
                conflicts[key] |= {first_name, name}
            continue
        if file in image_of_file:
            reading.count("repaired", "images that are listed under several ids, their objects joined", name)
        else:
            image_of_file[file] = CocoImage(name, read_side(entry.get("height")), read_side(entry.get("width")))
        images[key] = image_of_file[file]
    if conflicts:
        example = sorted(next(iter(conflicts.values())))
        raise DataError(
            f"{path}: different images have the same id, such as {some(example, 3)} ({len(conflicts)} such ids), as "
            "when two exports are joined, so the image of an object is not certain; give each image its own id"
        )
    return images


def read_objects(
    path: str | Path,
    table: Mapping[str, Any],
    images: Ids[CocoImage],
    categories: Ids[str],
    reading: ReadingReport,
    label: str = "",
) -> int:
    """Read the objects into their images; an object that is annotated twice counts once.

    Args:
        path: The file, for messages.
        table: Its content.
        images: Its images, which receive the objects.
        categories: Its categories.
        reading: Counts what is repaired and dropped.
        label: Name of the file in locations; empty: without its folder.

    Returns:
        The number of objects that were read.

    Raises:
        DataError: There is no list of annotations, or the boxes are not in pixels.
    """
    segmentations_of: dict[Any, list[Any]] = defaultdict(list)  # those of the objects that agree in all else
    number = 0
    for location, entry in _located_annotations(path, table, label or Path(path).name):
        image = images.get(read_id(entry.get("image_id")))
        if image is None:
            reading.count("dropped", "annotations of an image that is not listed", location)
            continue
        crowd = read_crowd(entry.get("iscrowd"))
        if crowd is None:
            reading.count("dropped", "objects whose iscrowd is neither 0 nor 1", location)
            image.dropped += 1
            continue
        box = read_box(entry.get("bbox"))
        if box is not None and has_text_numbers(entry):
            reading.count("repaired", "objects with numbers written as text", location)
        category = categories.get(read_id(entry.get("category_id"))) or f"(category {entry.get('category_id')})"
        segmentation = entry.get("segmentation") or None
        has_shape = box is not None or segmentation is not None
        segmentations = segmentations_of[id(image), category, box, crowd]
        if has_shape and segmentation in segmentations:
            reading.count("dropped", "objects that are annotated twice", location)
            continue
        segmentations.append(segmentation)
        area = read_number(entry.get("area"))
        if area is not None and area <= 0:
            area = None
            reading.count("repaired", "objects with an area of 0 or less, which their box gives", location)
        image.objects.append(CocoObject(category, box, area, crowd, segmentation, location))
        number += 1
    _require_pixels(path, images.values())
    return number


def _images_with_names(
    path: str | Path, table: Mapping[str, Any], reading: ReadingReport
) -> list[tuple[int | str, str, dict[str, Any]]]:
    """(id, `file_name`, entry) of the images; those without an id or name are dropped."""
    named: list[tuple[int | str, str, dict[str, Any]]] = []
    for location, entry in read_entries(path, table, "images"):
        key = read_id(entry.get("id"))
        name = entry.get("file_name")
        if key is None or not isinstance(name, str) or not name:
            reading.count("dropped", "images without an id and a file name", location)
        else:
            named.append((key, name, entry))
    return named


def _files_of_names(names: Collection[str], folders: Sequence[str]) -> dict[str, str]:
    """`file_name` -> its file: two spellings of a name may be one file, or two.

    The plain names tell files apart, unless two names have the same one; then the files are looked for.
    """
    plain_names = {name: plain_name(name) for name in names}
    if len(set(plain_names.values())) == len(plain_names):
        return plain_names
    return {name: os.path.normpath(path) for name, path in find_images(sorted(names), folders).paths.items()}


def _located_annotations(
    path: str | Path, table: Mapping[str, Any], label: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, entry) of the annotations; the location has the id, or without a unique one the position."""
    seen: set[str] = set()
    for position, entry in enumerate(entry for _, entry in read_entries(path, table, "annotations")):
        location = f"{label} annotation {entry.get('id', position)}"
        if location in seen:
            location += f" (entry {position})"
        seen.add(location)
        yield location, entry


def _require_pixels(path: str | Path, images: Iterable[CocoImage]) -> None:
    """Raise DataError if all boxes are fractions of the sides of their images."""
    boxes = [item.box for image in images for item in image.objects if item.box is not None]
    largest = 0.0
    has_fractions = False
    for box in boxes:
        x, y, width, height = box
        largest = max(largest, abs(x) + abs(width), abs(y) + abs(height))
        has_fractions = has_fractions or any(value % 1 for value in box)
    if has_fractions and largest <= 1.001:
        raise DataError(
            f"{path}: all {len(boxes)} boxes lie between 0 and 1, so they are shares of the sides of the images, but "
            "COCO's boxes are in pixels; multiply x and width by the width of the image, y and height by its height"
        )
