"""The content of a COCO file, as exporters write it: images, categories and objects under ids of any kind."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plrc.data.coco_names import find_images, image_folders, plain_name, split_of_file
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
from plrc.files import parse_json
from plrc.text import some


@dataclass
class CocoImage:
    """An image of a COCO file.

    Attributes:
        file_name: As written.
        height: In pixels; 0 if it is not stated.
        width: In pixels; 0 if it is not stated.
        objects: Its objects.
    """

    file_name: str
    height: int
    width: int
    objects: list[CocoObject] = field(default_factory=list)


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


def read_coco_table(path: str | Path) -> dict[str, Any]:
    """Read the JSON object of a COCO file. Raises DataError if it is not one."""
    try:
        table = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a COCO file") from error
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON ({error}); fix or remove it") from error
    if not isinstance(table, dict):
        raise DataError(f"{path} is not a COCO file of instances: it holds a {type(table).__name__}, not an object")
    return table


def read_categories(path: str | Path, table: Mapping[str, Any], reading: ReadingReport) -> Ids[str]:
    """Read the names of the categories, in the order of the ids.

    Args:
        path: The file, for messages.
        table: Its content.
        reading: Counts what is repaired and dropped.

    Raises:
        DataError: There are none, or two of one id.
    """
    names: dict[int | str, str] = {}
    for location, entry in _entries(path, table, "categories"):
        key = read_id(entry.get("id"))
        name = entry.get("name")
        if key is None or not isinstance(name, (str, int, float)):
            reading.count("dropped", "categories without an id and a name", location)
            continue
        if names.setdefault(key, str(name)) != str(name):
            raise DataError(
                f"{path}: two categories, {names[key]} and {name}, have the id {key}, so the class of an object is not "
                "certain; give each category its own id"
            )
    if not names:
        raise DataError(f'{path} is not a COCO file of instances: it has no "categories" with id and name')
    ids: Ids[str] = Ids()
    known: set[str] = set()
    for key in sorted(names, key=lambda key: (isinstance(key, str), key)):
        if names[key] in known:
            reading.count("repaired", "categories of the same name, read as one", f"{names[key]} (id {key})")
        known.add(names[key])
        ids[key] = names[key]
    return ids


def without_groups(
    path: str | Path, categories: Ids[str], table: Mapping[str, Any], reading: ReadingReport
) -> Ids[str]:
    """Return the categories without those that no object has and that only stand for a group or the background.

    Some exporters write such a category with the id 0.

    Args:
        path: The file, for messages.
        categories: All categories.
        table: Content of the file.
        reading: Counts what is left out.

    Raises:
        DataError: There is no list of annotations.
    """
    used: set[str] = set()
    for _, entry in _entries(path, table, "annotations"):
        used.add(str(read_id(entry.get("category_id"))))
    group_of: dict[int | str, str] = {}
    for _, entry in _entries(path, table, "categories"):
        key = read_id(entry.get("id"))
        if key is not None:
            group_of[key] = str(entry.get("supercategory") or "")
    members = Counter(group_of.values())
    has_groups = len(members) > ("none" in members)
    kept: Ids[str] = Ids()
    for key in categories:
        name = categories[key]
        is_group = members[name] > (group_of[key] == name) or (group_of[key] == "none" and has_groups)
        if str(key) not in used and (is_group or name.strip("_").lower() == "background"):
            reading.count("left out", "categories of a group or the background that no object has", name)
        else:
            kept[key] = name
    return kept if kept.values() else categories


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
    images: Ids[CocoImage] = Ids()
    by_file: dict[str, CocoImage] = {}
    shared: dict[int | str, set[str]] = defaultdict(set)
    named: list[tuple[int | str, str, dict[str, Any]]] = []
    for location, entry in _entries(path, table, "images"):
        key = read_id(entry.get("id"))
        name = entry.get("file_name")
        if key is None or not isinstance(name, str) or not name:
            reading.count("dropped", "images without an id and a file name", location)
        else:
            named.append((key, name, entry))
    file_of = _files_of_names(
        {name for _, name, _ in named}, folders or image_folders(str(path), split_of_file(str(path)))
    )
    for key, name, entry in named:
        file = file_of[name]
        if key in images and file_of[images[key].file_name] != file:
            shared[key] |= {images[key].file_name, name}
            continue
        if key in images:
            reading.count("dropped", "images that are listed twice", name)
            continue
        if file in by_file:
            reading.count("repaired", "images that are listed under several ids, their objects joined", name)
        else:
            by_file[file] = CocoImage(name, read_side(entry.get("height")), read_side(entry.get("width")))
        images[key] = by_file[file]
    if shared:
        names = sorted(next(iter(shared.values())))
        raise DataError(
            f"{path}: different images have the same id, such as {some(names, 3)} ({len(shared)} such ids), as when "
            "two exports are joined, so the image of an object is not certain; give each image its own id"
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
    label = label or Path(path).name
    seen: set[str] = set()
    repeats: dict[Any, list[Any]] = defaultdict(list)
    number = 0
    for location, entry in _entries(path, table, "annotations"):
        position = location.rpartition(" ")[2]
        location = f"{label} annotation {entry.get('id', position)}"
        if location in seen:
            location += f" (entry {position})"
        seen.add(location)
        image = images.get(read_id(entry.get("image_id")))
        if image is None:
            reading.count("dropped", "annotations of an image that is not listed", location)
            continue
        crowd = read_crowd(entry.get("iscrowd"))
        if crowd is None:
            reading.count("dropped", "objects whose iscrowd is neither 0 nor 1", location)
            continue
        segmentation = entry.get("segmentation") or None
        box = read_box(entry.get("bbox"))
        if box is not None and has_text_numbers(entry):
            reading.count("repaired", "objects with numbers written as text", location)
        category_id = read_id(entry.get("category_id"))
        category = categories.get(category_id) or f"(category {entry.get('category_id')})"
        same = repeats[id(image), category, box, crowd]
        if segmentation in same and (box is not None or segmentation is not None):
            reading.count("dropped", "objects that are annotated twice", location)
            continue
        same.append(segmentation)
        area = read_number(entry.get("area"))
        if area is not None and area <= 0:
            area = None
            reading.count("repaired", "objects with an area of 0 or less, which their box gives", location)
        image.objects.append(CocoObject(category, box, area, crowd, segmentation, location))
        number += 1
    _require_pixels(path, images.values())
    return number


def _files_of_names(names: Collection[str], folders: Sequence[str]) -> dict[str, str]:
    """`file_name` -> its plain name, or its path if two names have the same plain name, which may be two files."""
    plain_names = {name: plain_name(name) for name in names}
    if len(set(plain_names.values())) == len(plain_names):
        return plain_names
    return {name: os.path.normpath(path) for name, path in find_images(sorted(names), folders).paths.items()}


def _entries(path: str | Path, table: Mapping[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, entry) of a list; raises DataError for anything else."""
    entries = table.get(key)
    if not isinstance(entries, list):
        raise DataError(f'{path} is not a COCO file of instances: it has no list "{key}"')
    for number, entry in enumerate(entries):
        location = f"{Path(path).name} {key} {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{path} is not a COCO file of instances: entry {number} of its {key} is not an object")
        yield location, entry


def _require_pixels(path: str | Path, images: Iterable[CocoImage]) -> None:
    """Raise DataError if all boxes are fractions of the sides of their images."""
    largest = 0.0
    fractions = 0
    number = 0
    for image in images:
        for item in image.objects:
            if item.box is not None:
                number += 1
                x, y, width, height = item.box
                largest = max(largest, abs(x) + abs(width), abs(y) + abs(height))
                fractions += any(value % 1 for value in item.box)
    if fractions and largest <= 1.001:
        raise DataError(
            f"{path}: all {number} boxes lie between 0 and 1, so they are shares of the sides of the images, but "
            "COCO's boxes are in pixels; multiply x and width by the width of the image, y and height by its height"
        )
