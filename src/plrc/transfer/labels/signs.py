"""The signs of each label layout: what a folder has of it, and what it lacks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.transfer.labels.contents import Contents, read_start
from plrc.transfer.labels.yolo_source import YAML_ENDINGS

_START = 4096  # bytes of a file that are looked at
_SAMPLE = 20  # files of a kind that are looked at
_YEAR = re.compile(r"VOC20\d\d")
_VOC_ANNOTATION = re.compile(rb"<annotation[\s>]")
_COCO_KEY = re.compile(rb'"(images|annotations)"\s*:')
_NUMBERS = re.compile(rb"\s*[0-9.+-]+([ \t]+[0-9.eE+-]+){4,}\s*(\n|$)")


@dataclass(frozen=True)
class Signs:
    """The signs of a layout in a folder.

    Attributes:
        present: What the folder has of the layout; empty if it has nothing of it.
        missing: What it lacks, as "there is no ..."; empty if it lacks nothing.
    """

    present: str = ""
    missing: str = ""

    @property
    def are_complete(self) -> bool:
        """Whether the folder has the layout."""
        return bool(self.present) and not self.missing


def voc(contents: Contents) -> Signs:
    """Look for ImageSets, folders of years, or .xml files of Pascal VOC."""
    lists = contents.find("ImageSets", "VOCdevkit")
    lists += [folder for folder in contents.files if _YEAR.fullmatch(folder)]
    if lists:
        return Signs(f"the folder {lists[0]}")
    files = contents.named_in(contents.files, ".xml")
    if not files:
        image_folders = contents.find("JPEGImages")
        if image_folders:
            return Signs(f"the folder {image_folders[0]}", "there is no folder ImageSets and no .xml file")
        return Signs()
    present = f"{len(files)} .xml files such as {files[0]}"
    if not _any_start_matches(contents.root, files, _VOC_ANNOTATION):
        return Signs(present, "none of them is an annotation of Pascal VOC")
    if not contents.has_images:
        return Signs(present, "there is no image")
    return Signs(present)


def cityscapes(contents: Contents) -> Signs:
    """Look for leftImg8bit."""
    folders = contents.find("leftImg8bit")
    return Signs(f"the folder {folders[0]}") if folders else Signs()


def coco(contents: Contents) -> Signs:
    """Look for COCO's .json files in the folder, its folders, and the folder annotations."""
    files = contents.named_in((folder for folder in contents.files if "/" not in folder), ".json")
    if not files:
        return Signs()
    present = f"{len(files)} .json files such as {files[0]}"
    if not _any_start_matches(contents.root, files, _COCO_KEY):
        return Signs(present, "none of them is a COCO file")
    return Signs(present)


def yolo(contents: Contents) -> Signs:
    """Look for .txt files with lines of labels, below a folder `labels` or next to images, and for data.yaml."""
    label_folders = [folder for folder in contents.files if "labels" in folder.lower().split("/")]
    label_files = contents.named_in(label_folders, ".txt")
    label_files = [name for name in label_files if os.path.basename(name).lower() != "classes.txt"]
    yaml_files = [name for name in contents.named("", *YAML_ENDINGS) if name.lower().startswith("data")]
    if label_files:
        present = f"{len(label_files)} .txt files such as {label_files[0]}"
        if not contents.has_images:
            return Signs(present, "there is no image")
        has_labels = _any_start_matches(contents.root, label_files, _NUMBERS)
        if has_labels or yaml_files or _are_empty(contents.root, label_files):
            return Signs(present)
        return Signs(present, "none of them has lines of a class and a box")
    other_folders = [folder for folder in contents.files if folder not in label_folders]
    texts = contents.named_in((folder for folder in other_folders if contents.images(folder)), ".txt")
    if texts and _any_start_matches(contents.root, texts, _NUMBERS):
        return Signs(f"{len(texts)} .txt files next to images such as {texts[0]}")
    if yaml_files:
        return Signs(yaml_files[0], "there is no .txt file in a folder labels or next to an image")
    return Signs()


def folders(contents: Contents) -> Signs:
    """Look for id maps below `labels`."""
    labels = contents.find("labels")
    if not labels:
        return Signs()
    if not any(contents.images(folder) for folder in contents.below(labels[0])):
        return Signs(f"the folder {labels[0]}", "there are no id maps (.png) in it")
    if not contents.find("images"):
        return Signs(f"the folder {labels[0]}", "there is no folder images")
    return Signs(f"id maps in the folder {labels[0]}")


def _any_start_matches(root: Path, names: Sequence[str], pattern: re.Pattern[bytes]) -> bool:
    """Whether the start of a file has the pattern; of many files, some are looked at."""
    return any(pattern.search(start) for start in _starts(root, names))


def _are_empty(root: Path, names: Sequence[str]) -> bool:
    """Whether files are empty; of many files, some are looked at."""
    return not any(start.strip() for start in _starts(root, names))


def _starts(root: Path, names: Sequence[str]) -> Iterator[bytes]:
    """The starts of evenly spaced files."""
    for name in names[:: max(1, len(names) // _SAMPLE)]:
        yield read_start(root / name, _START)
