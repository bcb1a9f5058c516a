"""Pascal VOC: JPEGImages, Annotations/NAME.xml, SegmentationClass/NAME.png, and lists of splits in ImageSets.

Years lie next to each other (VOC2007, VOC2012) in the source or in its folder VOCdevkit, or the source is one of them.
"trainval07+12" joins the lists `trainval` of two years.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from plrc.data import layouts
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError, LayoutError
from plrc.transfer.labels.annotations import (
    EMPTY_BOX,
    NO_BOX,
    ImageAnnotation,
    ObjectAnnotation,
    annotate_image,
)
from plrc.transfer.labels.label_maps import table_of_source
from plrc.transfer.labels.reader import ROLES, SplitAnnotations, files_by_stem, pair_with_id_maps
from plrc.transfer.protocols import Task

_CLASSES = """background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor"""
CLASS_IDS = dict(enumerate(_CLASSES.split()))


class VocReader:
    """Labels in the layout of Pascal VOC.

    Raises:
        LayoutError: The source has no labels for the task.
    """

    def __init__(self, root: Path, task: Task, reading: ReadingReport) -> None:
        if task == "instances":
            raise LayoutError(
                f"{root} has the layout of Pascal VOC, which has boxes without masks; choose the task detection"
            )
        self.root = root
        self.reading = reading
        self.semantic = task == "semantic"
        self.list_folder = Path("ImageSets", "Segmentation" if self.semantic else "Main")
        self.years = _folders_by_year(root)
        if not any((folder / self.list_folder).is_dir() for folder in self.years.values()):
            if self.semantic:
                raise LayoutError(
                    f"{root} has boxes, but no label maps (no {self.list_folder}); choose the task detection"
                )
            raise LayoutError(f"{root} has no lists of images with boxes (no {self.list_folder})")
        self.splits = self._split_names()
        self.roles = {role: role for role in ROLES if self._lists_of(role)}

    def read(self, split: str) -> SplitAnnotations:
        lists = self._lists_of(split)
        if not lists:
            names = ", ".join(self.splits) or "(no lists)"
            raise ConfigError(f"{self.root} has no list {split} in {self.list_folder}; write one of: {names}")
        images: list[ImageAnnotation] = []
        for folder, path in lists:
            files = files_by_stem(folder / "JPEGImages", self.reading)
            keys = list(dict.fromkeys(_image_of_line(line, files) for line in layouts.read_lines(str(path))))
            if self.semantic:
                maps = folder / ("SegmentationClassAug" if path.stem.endswith("_aug") else "SegmentationClass")
                listed = {key: files.get(key) for key in keys}
                id_maps = {key: maps / f"{key}.png" for key in keys}
                images += pair_with_id_maps(self.root, listed, id_maps, self.reading)
            else:
                for key in keys:
                    file = files.get(key, folder / "JPEGImages" / f"{key}.jpg")
                    image = _read_image(self.root, file, folder / "Annotations" / f"{key}.xml", self.reading)
                    if image is not None:
                        images.append(image)
        return SplitAnnotations(images, _class_names(images))

    def class_ids(self, images: Sequence[ImageAnnotation]) -> Mapping[int, str]:
        if "" in self.years:  # a folder of another name has classes of its own
            return table_of_source(self.root, [image.id_map for image in images])
        return CLASS_IDS

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
    """Year ("07") -> folder; the year is empty if the source is a folder of another name."""
    base = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    years = {path.name[5:]: path for path in sorted(base.glob("VOC20[0-9][0-9]"))}
    if years:
        return years
    year = re.fullmatch(r"VOC20(\d\d)", root.resolve().name)
    return {year[1] if year else "": root}


def _class_names(images: list[ImageAnnotation]) -> tuple[str, ...]:
    names: set[str] = set()
    for image in images:
        names |= {item.class_name for item in image.objects}
    return tuple(sorted(names))


def _image_of_line(line: str, files: Mapping[str, Path]) -> str:
    """The image of a line: its name, which lists of a class follow with a second column and SBD's write as paths."""
    first = line.split(maxsplit=1)[0]
    for key in (line, first, Path(line).stem):
        if key in files:
            return key
    return Path(first).stem


def _read_image(root: Path, file: Path, xml: Path, reading: ReadingReport) -> ImageAnnotation | None:
    if not xml.is_file():
        reading.count("dropped", "images without an annotation file", file.name)
        return None
    try:
        tree = ET.parse(xml).getroot()
    except (ET.ParseError, OSError, ValueError) as error:
        raise DataError(f"{xml} is not readable XML ({error}); fix or remove it") from error
    sides = [tree.findtext(f"size/{side}", "").strip() for side in ("height", "width")]
    stated_size = (int(sides[0]), int(sides[1])) if all(map(str.isdecimal, sides)) else None
    image = annotate_image(root, file, reading, stated_size)
    if image is None:
        return None
    for number, element in enumerate(tree.findall("object"), start=1):
        item = _read_object(element, f"{xml.name} object {number}", reading)
        if item is not None:
            image.objects.append(item)
    return image


def _read_object(element: ET.Element, location: str, reading: ReadingReport) -> ObjectAnnotation | None:
    """Corners count pixels from 1 and are both inside the box, hence the - 1; equal corners are not a box."""
    name = element.findtext("name", "").strip()
    try:
        x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        reading.count("dropped", NO_BOX, location)
        return None
    if not name:
        reading.count("dropped", "objects without a name", location)
        return None
    if not (x1 > x0 and y1 > y0):
        reading.count("dropped", EMPTY_BOX, location)
        return None
    difficult = element.findtext("difficult", "").strip() == "1"
    return ObjectAnnotation(name, (x0 - 1, y0 - 1, x1, y1), location, difficult=difficult)
