"""What the reader of a label layout provides, and the steps that several layouts share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from plrc.data import layouts
from plrc.data.image_files import read_file_header
from plrc.data.reading import ReadingReport
from plrc.errors import LayoutError
from plrc.transfer.labels.annotations import ImageAnnotation, annotate_image
from plrc.transfer.labels.class_table import ClassTable
from plrc.transfer.labels.label_maps import MODES, MapValues, check_map_format

ROLES = ("train", "val", "test")
FURTHER_FILES = "further annotation files of an image"
WHOLE = "all"
"""Name of the only split of a source without splits."""


class NoLabelsForTask(LayoutError):
    """A source that has labels, but none for the task.

    Args:
        problem: What it has and what it lacks.
        tasks: The tasks that it has labels for, as a message names them.
    """

    def __init__(self, problem: str, tasks: str) -> None:
        super().__init__(f"{problem}; choose the task {tasks}")
        self.problem = problem


@dataclass(frozen=True)
class SplitAnnotations:
    """The content of a split.

    Attributes:
        images: Its images.
        classes: Names of the classes of its objects; empty for semantic segmentation.
    """

    images: list[ImageAnnotation]
    classes: tuple[str, ...] = ()


class LabelReader(Protocol):
    """A source in a certain layout, opened for a task.

    Attributes:
        splits: Names of all splits of the source.
        roles: The splits for "train", "val" and "test", as far as the source has them.
    """

    splits: list[str]
    roles: dict[str, str]

    def read(self, split: str) -> SplitAnnotations:
        """Read a split. Raises ConfigError for an unknown split, DataError for files that cannot be read."""
        ...

    def has_labels(self, split: str) -> bool:
        """Whether at least one image of a split has labels. Raises DataError for files that cannot be read."""
        ...

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        """The classes of a semantic source, given the values of all of its label maps that are used."""
        ...


def split_for_each_role(splits: Sequence[str]) -> dict[str, str]:
    """Choose splits by name, in any case: Train or train2017 is for training; the first in alphabetical order."""
    roles = {}
    for role in ROLES:
        candidates = sorted(split for split in splits if split.lower().startswith(role))
        if candidates:
            roles[role] = candidates[0]
    return roles


def label_files_by_stem(names: Iterable[str], reading: ReadingReport) -> dict[str, str]:
    """Return names of label files by their name without its ending: of a.TXT and a.txt, the latter.

    Args:
        names: The names.
        reading: Counts the files that are left out.
    """
    files: dict[str, str] = {}
    for name in sorted(names, reverse=True):
        if files.setdefault(os.path.splitext(name)[0], name) != name:
            reading.count("left out", FURTHER_FILES, name)
    return files


def files_by_stem(folder: Path, reading: ReadingReport) -> dict[str, Path]:
    """List the images below a folder by their relative path without its ending.

    Raises:
        DataError: There are none.
    """
    listing = layouts.list_folder(str(folder))
    reading.extend(listing.reading)
    files: dict[str, Path] = {}
    for name in sorted(listing.names):
        stem = os.path.splitext(name)[0]
        if stem in files:
            reading.count("left out", "files that differ from another one only in the ending of their name", name)
        else:
            files[stem] = folder / name
    return files


def pair_with_id_maps(
    root: Path,
    images: Mapping[str, Path | None],
    id_maps: Mapping[str, Path],
    reading: ReadingReport,
    channels: int,
    modes: tuple[str, ...] = MODES,
) -> list[ImageAnnotation]:
    """Pair images with their id maps by common key; drop what has no partner or a partner of another size.

    Args:
        root: The source; images are named relative to it.
        images: Image files by key.
        id_maps: Files of id maps by key.
        reading: Counts what is dropped.
        channels: Channels that the images must have (`data.channels`).
        modes: Pillow's modes that an id map may have.

    Raises:
        DataError: An id map has another mode.
    """
    annotations = []
    for key in sorted({*images, *id_maps}):
        image = images.get(key)
        id_map = id_maps.get(key)
        if image is None:
            reading.count("dropped", "label maps without an image", key)
            continue
        if id_map is None or not id_map.is_file():
            reading.count("dropped", "images without a label map", key)
            continue
        annotation = annotate_image(root, image, reading, channels)
        if annotation is None:
            continue
        header = read_file_header(id_map)
        check_map_format(id_map, header.format, header.mode, modes)
        if (header.height, header.width) == (annotation.height, annotation.width):
            annotations.append(replace(annotation, id_map=str(id_map)))
        else:
            reading.count("dropped", "label maps of another size than the image", key)
    return annotations
