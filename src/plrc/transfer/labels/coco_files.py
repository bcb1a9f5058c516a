"""The annotation files of a COCO source: which one holds which split, and which ones are not used."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.data.channels import NPY_EXTENSION
from plrc.data.image_kinds import IMAGE_EXTENSIONS
from plrc.data.reading import ReadingReport
from plrc.transfer.labels.contents import survey
from plrc.transfer.labels.reader import split_for_each_role

_ANNOTATIONS = "annotations"
_INSTANCES = "instances_"
_BY_EXPORTERS = ("_annotations.coco.json", "annotations.json")  # names in the folder of a split, the preferred first
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:')
_SAMPLE = 4096  # bytes at both ends of a file in which its keys are looked for


@dataclass(frozen=True)
class CocoFiles:
    """The annotation files in one place.

    Attributes:
        central: Whether they lie in one folder, such as `annotations`, apart from the images.
        by_split: Split -> its file.
    """

    central: bool
    by_split: dict[str, Path]


def find_coco_files(root: Path, reading: ReadingReport) -> CocoFiles:
    """Find the annotation file of each split.

    They lie in the folder `annotations`, in the folders of the splits, in another folder that has several files and no
    images, or in the source itself. The first of these places with a split for training is used; if none has one, the
    first place.

    Args:
        root: The source.
        reading: Counts the COCO files that are not used.
    """
    in_annotations: list[CocoFiles] = []
    in_other_folders: list[CocoFiles] = []
    file_of_split: dict[str, Path] = {}
    every_file: list[Path] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = [path for path in _json_files(folder) if _is_coco(path)]
        every_file += files
        if folder.name.lower() == _ANNOTATIONS:
            in_annotations.append(CocoFiles(True, _central_splits(folder)))
        elif len(files) > 1 and not split_for_each_role([folder.name]) and not _has_images(folder):
            in_other_folders.append(CocoFiles(True, _splits_by_name(files)))
        elif files:
            file_of_split[folder.name] = min(files, key=_rank)
    files_in_source = [path for path in _json_files(root) if _is_coco(path)]
    every_file += files_in_source
    in_splits = CocoFiles(False, file_of_split)
    in_source = CocoFiles(False, _splits_by_name(files_in_source))
    chosen = _first_with_training([*in_annotations, in_splits, *in_other_folders, in_source])
    for path in every_file:
        if path not in chosen.by_split.values():
            reading.count("left out", "further COCO files", path.relative_to(root).as_posix())
    return chosen


def _first_with_training(places: Sequence[CocoFiles]) -> CocoFiles:
    """The first place with a split for training; without one, the first that has files; without files, the last."""
    for place in places:
        if "train" in split_for_each_role(list(place.by_split)):
            return place
    for place in places:
        if place.by_split:
            return place
    return places[-1]


def _central_splits(folder: Path) -> dict[str, Path]:
    """The splits of the folder `annotations`; a file that is named like a split is one, whatever it contains."""
    files = _json_files(folder)
    instances = [path for path in files if path.name.startswith(_INSTANCES)]
    if instances:
        return _splits_by_name(instances)
    return _splits_by_name([path for path in files if split_for_each_role([path.stem]) or _is_coco(path)] or files)


def _splits_by_name(files: Sequence[Path]) -> dict[str, Path]:
    """Split -> file; of two files for one split, the one that is named instances_SPLIT."""
    by_split: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: not path.name.startswith(_INSTANCES)):
        by_split.setdefault(path.stem.removeprefix(_INSTANCES).strip("_").removesuffix(".coco"), path)
    return by_split


def _rank(path: Path) -> int:
    return _BY_EXPORTERS.index(path.name) if path.name in _BY_EXPORTERS else len(_BY_EXPORTERS)


def _json_files(folder: Path) -> list[Path]:
    """The .json files of a folder in the order of their names, without hidden ones."""
    return [path for path in sorted(folder.glob("*.json")) if path.is_file() and not path.name.startswith(".")]


def _has_images(folder: Path) -> bool:
    contents = survey(folder)
    return any(contents.named(below, *IMAGE_EXTENSIONS, NPY_EXTENSION) for below in contents.files)


def _is_coco(path: Path) -> bool:
    """Whether the keys of a COCO file are at the beginning or the end of a file."""
    with open(path, "rb") as file:
        head = file.read(_SAMPLE)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _SAMPLE))
        return bool(_KEYS.search(head) or _KEYS.search(file.read()))
