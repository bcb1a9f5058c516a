"""Pascal VOC: JPEGImages, Annotations/NAME.xml, SegmentationClass/NAME.png, and lists of splits in ImageSets.

Years lie next to each other (VOC2007, VOC2012) in the source or in its folder VOCdevkit, which may hold folders of
other names with lists as well, or the source is one of them.
"trainval07+12" joins the lists `trainval` of two years.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from plrc.data import layouts
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, LayoutError
from plrc.transfer.labels.annotations import ImageAnnotation
from plrc.transfer.labels.class_table import ClassTable, classes_of_source
from plrc.transfer.labels.contents import files_below
from plrc.transfer.labels.label_maps import MapValues
from plrc.transfer.labels.reader import (
    ROLES,
    LabelReader,
    NoLabelsForTask,
    SplitAnnotations,
    files_by_stem,
    label_files_by_stem,
    pair_with_id_maps,
)
from plrc.transfer.labels.voc_files import VocFilesReader
from plrc.transfer.labels.voc_xml import class_names, first_pixel_of, read_annotation
from plrc.transfer.protocols import LabelledConfig, Task

_CLASSES = """background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor"""
_YEAR = re.compile(r"VOC20(\d\d)")
CLASS_IDS = dict(enumerate(_CLASSES.split()))


def open_voc(config: LabelledConfig, task: Task, reading: ReadingReport) -> LabelReader:
    """Open a folder in the layout of Pascal VOC, with or without lists of splits.

    Args:
        config: Names the folder.
        task: What the labels are for.
        reading: Counts what is dropped.

    Raises:
        LayoutError: The folder has no labels of Pascal VOC, or none for the task.
    """
    root = Path(config.source)
    years = _folders_by_year(root).values()
    if not any((folder / "ImageSets" / kind).is_dir() for folder in years for kind in ("Main", "Segmentation")):
        files = VocFilesReader(root, config.unlabelled != "background", config.channels, reading)
        if task != "detection":
            raise NoLabelsForTask(
                f"{root} has .xml files of Pascal VOC: boxes without masks or label maps", "detection"
            )
        return files
    if task == "instances":
        raise NoLabelsForTask(f"{root} has the layout of Pascal VOC, which has boxes without masks", "detection")
    list_folder = _list_folder(task)
    if any((folder / list_folder).is_dir() for folder in years):
        return VocReader(config, task, reading)
    if task == "semantic":
        raise NoLabelsForTask(f"{root} has boxes, but no label maps (no {list_folder})", "detection")
    raise LayoutError(f"{root} has no lists of images with boxes (no {list_folder})")


class VocReader:
    """Labels in the layout of Pascal VOC, with lists of splits.

    Args:
        config: Names the folder.
        task: detection or semantic.
        reading: Counts what is dropped.
    """

    def __init__(self, config: LabelledConfig, task: Task, reading: ReadingReport) -> None:
        root = Path(config.source)
        self.root = root
        self.reading = reading
        self.leave_out = config.unlabelled != "background"
        self.channels = config.channels
        self.semantic = task == "semantic"
        self.list_folder = _list_folder(task)
        self.years = _folders_by_year(root)
        self.splits = self._split_names()
        self.roles = {split.lower(): split for split in self.splits if split.lower() in ROLES}
        self.first_pixel = 1
        if not self.semantic:
            folders = [folder / "Annotations" for folder in self.years.values()]
            self.first_pixel = first_pixel_of(
                (folder / name for folder in folders for name in files_below(folder, ".xml")), default=1
            )
        if self.first_pixel == 0:
            reading.add(f"{root} has boxes with corners at 0: corners are read as edges counted from 0")

    def read(self, split: str) -> SplitAnnotations:
        lists = self._lists_of(split)
        if not lists:
            names = ", ".join(self.splits) or "(no lists)"
            raise ConfigError(f"{self.root} has no list {split} in {self.list_folder}; write one of: {names}")
        images: list[ImageAnnotation] = []
        for folder, list_file in lists:
            files = files_by_stem(folder / "JPEGImages", self.reading)
            lines = layouts.read_lines(str(list_file), partial(_names_one_of, files))
            keys = list(dict.fromkeys(_image_of_line(line, files) for line in lines))
            if self.semantic:
                images += self._read_label_maps(folder, list_file, keys, files)
            else:
                images += self._read_boxes(folder, keys, files)
        return SplitAnnotations(images, class_names(images))

    def has_labels(self, split: str) -> bool:
        for folder, list_file in self._lists_of(split):
            labels = {os.path.splitext(name)[0] for name in self._label_files(folder, list_file)}
            if any(_names_one_of(labels, line) for line in layouts.read_lines(str(list_file))):
                return True
        return False

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        others = any(_YEAR.fullmatch(folder.resolve().name) is None for folder in self.years.values())
        known = None if others else CLASS_IDS  # a folder of another name has classes of its own
        return classes_of_source(self.root, maps, self.reading, known)

    def _read_label_maps(
        self, folder: Path, list_file: Path, keys: list[str], files: Mapping[str, Path]
    ) -> list[ImageAnnotation]:
        images = {key: files.get(key) for key in keys}
        id_maps = {key: _label_maps(folder, list_file) / f"{key}.png" for key in keys}
        return pair_with_id_maps(self.root, images, id_maps, self.reading, self.channels)

    def _read_boxes(self, folder: Path, keys: list[str], files: Mapping[str, Path]) -> list[ImageAnnotation]:
        annotations = folder / "Annotations"
        xml_files = label_files_by_stem(files_below(annotations, ".xml"), self.reading)
        images: list[ImageAnnotation] = []
        for key in keys:
            file = files.get(key, folder / "JPEGImages" / f"{key}.jpg")
            name = xml_files.get(key, "")
            xml = annotations / name if name else None
            image = read_annotation(
                self.root, file, xml, name, self.leave_out, self.reading, self.channels, self.first_pixel
            )
            if image is not None:
                images.append(image)
        return images

    def _label_files(self, folder: Path, list_file: Path) -> list[str]:
        """The label files of a year that a list may need."""
        if self.semantic:
            return files_below(_label_maps(folder, list_file), ".png")
        return files_below(folder / "Annotations", ".xml")

    def _lists_of(self, split: str) -> list[tuple[Path, Path]]:
        """(folder of a year, its list) for a split, or for a split with years such as trainval07+12."""
        with_years = re.fullmatch(r"(.+?)(\d\d(?:\+\d\d)*)", split)
        if with_years and set(with_years[2].split("+")) <= set(self.years):
            folders = [self.years[year] for year in with_years[2].split("+")]
            return [(folder, folder / self.list_folder / f"{with_years[1]}.txt") for folder in folders]
        lists = [(folder, folder / self.list_folder / f"{split}.txt") for folder in self.years.values()]
        return [(folder, path) for folder, path in lists if path.is_file()]

    def _split_names(self) -> list[str]:
        """All lists but those of a single class, such as dog_train."""
        names = set()
        for folder in self.years.values():
            names |= {path.stem for path in (folder / self.list_folder).glob("*.txt")}
        endings = tuple(f"_{split}" for split in (*ROLES, "trainval"))
        return sorted(name for name in names if not name.endswith(endings))


def _folders_by_year(root: Path) -> dict[str, Path]:
    """Year ("07") -> folder; in VOCdevkit also the name of any other folder with lists -> this folder.

    Without such folders, the source itself is one. Its year is empty if its name has none.
    """
    base = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    folders = {path.name.removeprefix("VOC20"): path for path in sorted(base.glob("VOC20[0-9][0-9]"))}
    if base.resolve().name == "VOCdevkit":
        others = sorted(path.parent for path in base.glob("*/ImageSets"))
        folders |= {path.name: path for path in others if not _YEAR.fullmatch(path.name)}
    if folders:
        return folders
    year = _YEAR.fullmatch(root.resolve().name)
    return {year[1] if year else "": root}


def _label_maps(folder: Path, list_file: Path) -> Path:
    """The folder of the label maps for a list; those of train_aug lie apart."""
    return folder / ("SegmentationClassAug" if list_file.stem.endswith("_aug") else "SegmentationClass")


def _list_folder(task: Task) -> Path:
    return Path("ImageSets", "Segmentation" if task == "semantic" else "Main")


def _names_one_of(stems: Collection[str], line: str) -> bool:
    """Whether a line of a list names a file with one of these stems."""
    return any(stem in stems for stem in _possible_stems(line))


def _image_of_line(line: str, stems: Collection[str]) -> str:
    """The stem of the image that a line of a list names, whether or not it is among those of the files."""
    for stem in _possible_stems(line):
        if stem in stems:
            return stem
    return Path(line.split(maxsplit=1)[0]).stem


def _possible_stems(line: str) -> Iterator[str]:
    """The ways to read a line: lists of a class have a second column, SBD's lists have paths with endings."""
    first_column = line.split(maxsplit=1)[0]
    for name in (line, first_column):
        parts = name.replace("\\", "/").split("/")
        for start in range(len(parts)):
            inner_path = "/".join(parts[start:])
            yield inner_path
            yield os.path.splitext(inner_path)[0]
