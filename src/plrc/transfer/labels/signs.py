"""The signs of each label layout: what a folder has of it, and what it lacks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from plrc.transfer.labels.contents import Contents, read_start
from plrc.transfer.labels.yolo_source import YAML_ENDINGS

_HEAD = 4096  # bytes of a file that are looked at
_SAMPLE = 20  # files of a kind that are looked at
_YEAR = re.compile(r"VOC20\d\d")
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
    files = [name for folder in contents.files for name in contents.named(folder, ".xml")]
    if not files:
        folders = contents.find("JPEGImages")
        if folders:
            return Signs(f"the folder {folders[0]}", "there is no folder ImageSets and no .xml file")
        return Signs()
    if not _any_head(contents.root, files, re.compile(rb"<annotation[\s>]")):
        return Signs(f"{len(files)} .xml files such as {files[0]}", "none of them is an annotation of Pascal VOC")
    if not _has_images(contents):
        return Signs(f"{len(files)} .xml files such as {files[0]}", "there is no image")
    return Signs(f"{len(files)} .xml files such as {files[0]}")


def cityscapes(contents: Contents) -> Signs:
    """Look for leftImg8bit."""
    folders = contents.find("leftImg8bit")
    return Signs(f"the folder {folders[0]}") if folders else Signs()


def coco(contents: Contents) -> Signs:
    """Look for COCO's .json files in the folder, its folders, and the folder annotations."""
    files = [name for folder in contents.files if "/" not in folder for name in contents.named(folder, ".json")]
    if not files:
        return Signs()
    if not _any_head(contents.root, files, _COCO_KEY):
        return Signs(f"{len(files)} .json files such as {files[0]}", "none of them is a COCO file")
    return Signs(f"{len(files)} .json files such as {files[0]}")


def yolo(contents: Contents) -> Signs:
    """Look for .txt files with lines of labels: below a folder `labels`, or next to images."""
    label_folders = [folder for folder in contents.files if "labels" in folder.lower().split("/")]
    image_folders = [folder for folder in contents.files if folder not in label_folders and contents.images(folder)]
    texts = [name for folder in label_folders for name in contents.named(folder, ".txt")]
    texts = [name for name in texts if os.path.basename(name).lower() != "classes.txt"]
    next_to_images = [name for folder in image_folders for name in contents.named(folder, ".txt")]
    described = [
        name for name in contents.named("", *YAML_ENDINGS) if os.path.basename(name).lower().startswith("data")
    ]
    if texts:
        if not _has_images(contents):
            return Signs(f"{len(texts)} .txt files such as {texts[0]}", "there is no image")
        if _any_head(contents.root, texts, _NUMBERS) or described or _all_empty(contents.root, texts):
            return Signs(f"{len(texts)} .txt files such as {texts[0]}")
        return Signs(f"{len(texts)} .txt files such as {texts[0]}", "none of them has lines of a class and a box")
    if next_to_images and _any_head(contents.root, next_to_images, _NUMBERS):
        return Signs(f"{len(next_to_images)} .txt files next to images such as {next_to_images[0]}")
    if described:
        return Signs(described[0], "there is no .txt file in a folder labels or next to an image")
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


def _has_images(contents: Contents) -> bool:
    return any(contents.images(folder) for folder in contents.files)


def _any_head(root: Path, names: list[str], pattern: re.Pattern[bytes]) -> bool:
    """Whether the beginning of one of the files, of which some are looked at, has the pattern."""
    return any(pattern.search(read_start(root / name, _HEAD)) for name in names[:: max(1, len(names) // _SAMPLE)])


def _all_empty(root: Path, names: list[str]) -> bool:
    return not any(read_start(root / name, _HEAD).strip() for name in names[:: max(1, len(names) // _SAMPLE)])
