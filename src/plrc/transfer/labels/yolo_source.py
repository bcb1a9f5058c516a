"""Where a YOLO data set keeps its images and the names of its classes: data.yaml, or folders and lists without one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plrc.data.layouts import read_numbered_lines
from plrc.data.reading import ReadingReport
from plrc.errors import DataError, LayoutError
from plrc.transfer.labels.contents import folder_named, read_start, survey
from plrc.transfer.labels.reader import WHOLE
from plrc.transfer.labels.yolo_paths import Locator, as_path, has_label_file

YAML_ENDINGS = (".yaml", ".yml")

_ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLITS = tuple(_ROLES)  # names that a data.yaml and lists may have
_NAME_FILES = ("classes.txt", "obj.names", "data/obj.names", "labels/classes.txt")
_LARGEST_YAML = 500_000  # bytes
_MOST_BRACKETS = 1_000  # in a YAML file: the time to parse nested ones grows with the square of their number


@dataclass(frozen=True)
class YoloSource:
    """A YOLO data set.

    Attributes:
        names: Number of a class -> its name; None: the classes have no names.
        names_file: The file that names the classes, for messages.
        splits: Split -> folders of images, and text files that list images.
        locator: Finds the paths that lists name.
    """

    names: dict[int, str] | None
    names_file: Path
    splits: dict[str, list[Path]]
    locator: Locator


def find_yolo_source(source: Path, reading: ReadingReport) -> YoloSource:
    """Find the splits and the names of the classes.

    Args:
        source: A folder, or its data.yaml.
        reading: Receives what was repaired, and what was chosen without a data.yaml.

    Raises:
        LayoutError: There are neither a data.yaml nor folders or lists of images.
        DataError: A data.yaml that cannot be used.
    """
    root = source if source.is_dir() else source.parent
    path = yaml_file(source)
    if path is None:
        return _source_without_yaml(root, reading)
    table = _read_yaml(path)
    if "kpt_shape" in table:
        raise DataError(
            f"{path} has kpt_shape: its labels are keypoints, which plrc does not read; export boxes or polygons"
        )
    if table.get("task") == "obb":
        raise DataError(
            f"{path} has task: obb: its labels are oriented boxes, which plrc does not read; export boxes or polygons"
        )
    stated_root = table.get("path", "")
    locator = Locator(root, root / as_path(stated_root) if isinstance(stated_root, str) else root)
    splits = _splits_of_yaml(path, table, locator, reading)
    names, names_file = _names_of_yaml(path, table, locator, reading)
    if names is None:
        reading.add(f"{path} has no names: the classes are called by their numbers")
    return YoloSource(names, names_file, splits, locator)


def yaml_file(source: Path) -> Path | None:
    """Return the YAML file of a source: itself, data.yaml, or the only one with `names` or `train`; None without one.

    Raises:
        DataError: There are several, none of which is called data.yaml.
    """
    if source.is_file():
        return source
    paths = sorted(path for path in source.iterdir() if path.name.lower().endswith(YAML_ENDINGS) and path.is_file())
    for path in paths:
        if path.stem.lower() == "data":
            return path
    fitting = [path for path in paths if re.search(rb"(?m)^['\"]?(names|train)\b", read_start(path, _LARGEST_YAML))]
    if len(fitting) > 1:
        raise DataError(
            f"{source} has {len(fitting)} files that may describe the data ({fitting[0].name}, {fitting[1].name}); "
            "name one of them: --data FILE"
        )
    return fitting[0] if fitting else None


def _read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a YAML file; every value is text, a list or a dictionary."""
    try:
        text = ""
        if path.stat().st_size <= _LARGEST_YAML:
            text = path.read_text(encoding="utf-8-sig")
        if not text or text.count("[") + text.count("{") > _MOST_BRACKETS:
            raise DataError(f"{path} is empty, or too large to be the description of a YOLO data set")
        table = yaml.load(text, Loader=yaml.BaseLoader)  # builds nothing but text, lists and dictionaries
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not readable YAML ({reason}); fix it") from error
    if not isinstance(table, dict):
        raise DataError(f"{path} is not the description of a YOLO data set: it has no entries train, val and names")
    return {key: value for key, value in table.items() if isinstance(key, str)}


def _source_without_yaml(root: Path, reading: ReadingReport) -> YoloSource:
    splits = _splits_by_name(root)
    if not splits:
        raise LayoutError(
            f"{root} has no YOLO labels (looked for data.yaml, images/SPLIT with labels/SPLIT, SPLIT/images with "
            "SPLIT/labels, and images with .txt files next to them)"
        )
    names, names_file = _names_of_file(root)
    if names is None:
        reading.add(f"{root} has no data.yaml and no classes.txt: the classes are called by their numbers")
    return YoloSource(names, names_file, splits, Locator(root, root))


def _splits_of_yaml(
    path: Path, table: dict[str, Any], locator: Locator, reading: ReadingReport
) -> dict[str, list[Path]]:
    """The splits that data.yaml names, and those that only their folders name."""
    splits: dict[str, list[Path]] = {}
    for split in _SPLITS:
        places = _places_of_yaml(path, split, table.get(split) or [], locator, reading)
        if places and places in splits.values():
            reading.add(f"{path.name}: {split} names the same images as another split; it is left out")
        elif places:
            splits[split] = places
    reading.add(*(f"{path.name} names {entry}: {place} is read" for entry, place in locator.replaced.items()))
    if not splits:
        return _splits_by_name(locator.root)
    named_roles = {_ROLES[split] for split in _SPLITS if table.get(split)}
    for split, places in _splits_by_name(locator.root).items():
        role = _ROLES.get(split.lower())
        if role is None or role in named_roles:
            continue
        place = places[0].relative_to(locator.root)
        if has_label_file(places[0], locator):
            reading.add(f"{path.name} names no split {split}: {place} is read as {split}")
            splits[split] = places
        else:
            reading.add(f"{path.name} names no split {split}, and {place} has no label files: it is left out")
    return splits


def _places_of_yaml(path: Path, split: str, entries: Any, locator: Locator, reading: ReadingReport) -> list[Path]:
    """The folders and lists that data.yaml names for a split."""
    if isinstance(entries, str):
        entries = [entries]
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{path}: {split} is neither a path nor a list of paths")
    places: list[Path] = []
    for entry in entries:
        place = locator.locate(as_path(entry))
        if place is not None:
            places.append(place)
        elif split == "train":
            raise DataError(
                f"{path}: {split} names {entry}, which is no folder or list of images in {locator.base} or "
                f"{locator.root}; correct it"
            )
        else:
            reading.add(f"{path.name}: {split} names {entry}, which does not exist; it is left out")
    return places


def _splits_by_name(root: Path) -> dict[str, list[Path]]:
    """Split -> its folder or list, in the first of the usual forms that the source has.

    These are several folders images/SPLIT or SPLIT/images; lists SPLIT.txt; a single such folder; the folder images;
    folders of images with .txt files.
    """
    contents = survey(root)
    in_folders: dict[str, list[Path]] = {}
    for folder in contents.files:
        parts = folder.split("/")
        if len(parts) != 2 or not survey(root / folder).has_images:
            continue
        if parts[0].lower() == "images":
            in_folders[parts[1]] = [root / folder]
        elif parts[1].lower() == "images":
            in_folders[parts[0]] = [root / folder]
    if len(in_folders) > 1:
        return in_folders
    in_lists = {split: [root / f"{split}.txt"] for split in _SPLITS if (root / f"{split}.txt").is_file()}
    if in_lists or in_folders:
        return in_lists or in_folders
    images = folder_named(root, "images")
    if images is not None and contents.images(images.name):
        return {WHOLE: [images]}
    with_labels: dict[str, list[Path]] = {}
    for folder in contents.files:
        if "/" not in folder and contents.images(folder) and contents.named(folder, ".txt"):
            with_labels[folder or WHOLE] = [root / folder]
    return with_labels


def _names_of_yaml(
    path: Path, table: dict[str, Any], locator: Locator, reading: ReadingReport
) -> tuple[dict[int, str] | None, Path]:
    """(number of a class -> its name, the file that names it); None without names."""
    stated = table.get("names")
    if not stated:
        return _names_of_file(locator.root)
    if isinstance(stated, str):
        file = locator.locate(as_path(stated))
        if file is None or not file.is_file():
            raise DataError(f"{path}: names is {stated}, neither a list of names nor a file with names; correct it")
        return _names_of_lines(file), file
    numbered = dict(enumerate(stated)) if isinstance(stated, list) else stated
    try:
        names = {int(number): name for number, name in numbered.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: names has a key that is not the number of a class; correct it") from error
    count = table.get("nc")
    if isinstance(count, str) and count.strip() not in ("", str(len(names))):
        reading.add(f"{path.name}: nc is {count}, but names has {len(names)} entries; names is used")
    return _check_names(names, path), path


def _names_of_file(root: Path) -> tuple[dict[int, str] | None, Path]:
    for name in _NAME_FILES:
        path = root / name
        if path.is_file():
            return _names_of_lines(path), path
    return None, root


def _names_of_lines(path: Path) -> dict[int, str]:
    return _check_names(dict(enumerate(read_numbered_lines(str(path)))), path)


def _check_names(names: dict[int, Any], path: Path) -> dict[int, str]:
    """The names by number, without blanks at their ends; raises DataError if a name is missing or occurs twice."""
    if not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise DataError(f"{path} has a class without a name, or whose name is not text; correct it")
    stripped = {number: name.strip() for number, name in sorted(names.items())}
    repeated = [name for name, count in Counter(stripped.values()).items() if count > 1]
    if repeated:
        raise DataError(f"{path} gives {repeated[0]!r} to more than one class; give each class a name of its own")
    return stripped
