"""Pascal VOC's .xml files without its lists of splits: next to their images, or in a folder of their own.

Roboflow writes SPLIT/NAME.jpg and SPLIT/NAME.xml, LabelImg a single folder, others images/ and annotations/. Corners of
these boxes are edges, counted from 0, unless they show that they are pixels, counted from 1 as in Pascal VOC's own
layout.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.data.layouts import list_folder
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, LayoutError
from plrc.transfer.labels.annotations import ImageAnnotation, relative_name
from plrc.transfer.labels.class_table import ClassTable, fixed_classes
from plrc.transfer.labels.contents import files_below
from plrc.transfer.labels.label_maps import MapValues
from plrc.transfer.labels.reader import FURTHER_FILES, WHOLE, SplitAnnotations, split_for_each_role
from plrc.transfer.labels.voc_xml import class_names, first_pixel_of, read_annotation, read_xml

_NO_IMAGE = "annotation files without an image"
_FOLDERS = "images image imgs img jpegimages annotations annotation annots xmls xml labels".split()


@dataclass(frozen=True)
class _Pair:
    """An image and its annotation; either may be missing."""

    image: Path | None
    xml: Path | None


class VocFilesReader:
    """Labels in .xml files of Pascal VOC, without lists of splits.

    Raises:
        LayoutError: There are no .xml files.
        DataError: There are no images.
    """

    def __init__(self, root: Path, leave_out: bool, channels: int, reading: ReadingReport) -> None:
        self.root = root
        self.leave_out = leave_out
        self.channels = channels
        self.reading = reading
        xml_files = files_below(root, ".xml")
        if not xml_files:
            raise LayoutError(f"{root} has no annotations of Pascal VOC (looked for ImageSets/Main and for .xml files)")
        listing = list_folder(str(root))
        reading.extend(listing.reading)
        self.pairs = _pair(root, listing.names, xml_files, reading)
        self.splits = sorted(self.pairs)
        self.roles = split_for_each_role(self.splits)
        self.first_pixel = first_pixel_of((root / name for name in xml_files), default=0)
        meaning = "pixels counted from 1" if self.first_pixel == 1 else "edges counted from 0"
        reading.add(f"{root} has no lists in ImageSets/Main: corners of boxes are read as {meaning}")

    def read(self, split: str) -> SplitAnnotations:
        if split not in self.pairs:
            raise ConfigError(f"{self.root} has no folder {split}; write one of: {', '.join(self.splits)}")
        images = []
        for pair in self.pairs[split]:
            image = self._read(pair)
            if image is not None:
                images.append(image)
        return SplitAnnotations(images, class_names(images))

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        return fixed_classes({}, maps, self.root)

    def _read(self, pair: _Pair) -> ImageAnnotation | None:
        if pair.image is None:
            name = "" if pair.xml is None else relative_name(self.root, pair.xml)
            self.reading.count("left out", _NO_IMAGE, name)
            return None
        if pair.xml is None:
            return read_annotation(self.root, pair.image, None, "", self.leave_out, self.reading, self.channels)
        location = relative_name(self.root, pair.xml)
        return read_annotation(
            self.root, pair.image, pair.xml, location, self.leave_out, self.reading, self.channels, self.first_pixel
        )


def _pair(
    root: Path, image_names: Iterable[str], xml_names: Iterable[str], reading: ReadingReport
) -> dict[str, list[_Pair]]:
    """Split -> images with their annotations: those of equal paths, apart from the folders `images` and `annotations`.

    An annotation without such an image belongs to the image that its <filename> names. A folder without an annotated
    image is no split, unless there is no annotated image at all.
    """
    images: defaultdict[str, list[str]] = defaultdict(list)  # path without ending -> images
    for name in sorted(image_names):
        images[os.path.splitext(_key(name))[0]].append(name)
    xml_of_image: dict[str, str] = {}
    pairs: defaultdict[str, list[_Pair]] = defaultdict(list)
    for name in sorted(xml_names, key=lambda name: os.path.splitext(_key(name))[0] not in images):  # equal paths first
        path = _key(name)
        names = images.get(os.path.splitext(path)[0]) or _named_by_xml(root / name, path, images)
        if not names:
            pairs[_split_of(path)].append(_Pair(None, root / name))
        if len(names) > 1:
            reading.count("read", "annotation files that several images share", name)
        for image in names:
            if xml_of_image.setdefault(image, name) != name:
                reading.count("left out", FURTHER_FILES, name)
    for names in images.values():
        for image in names:
            xml = xml_of_image.get(image)
            split = _split_of(_key(image))
            pairs[split].append(_Pair(root / image, None if xml is None else root / xml))
    splits = {split: content for split, content in pairs.items() if any(pair.image and pair.xml for pair in content)}
    for split, content in pairs.items():
        for pair in content:
            if splits and split not in splits:
                _count_left_out(root, pair, reading)
    return splits or pairs


def _count_left_out(root: Path, pair: _Pair, reading: ReadingReport) -> None:
    """Count what lies in a folder that is no split."""
    if pair.image is not None:
        name = relative_name(root, pair.image)
        reading.count("left out", "images in folders without annotation files", name)
    elif pair.xml is not None:
        reading.count("left out", _NO_IMAGE, relative_name(root, pair.xml))


def _named_by_xml(xml: Path, path: str, images: Mapping[str, Sequence[str]]) -> Sequence[str]:
    stated = read_xml(xml).findtext("filename", "").strip().replace("\\", "/").rpartition("/")[2]
    folder = path.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    return images.get(prefix + stated) or images.get(prefix + os.path.splitext(stated)[0]) or ()


def _key(name: str) -> str:
    """A path without its folders `images`, `annotations` and the like."""
    *folders, base = name.split("/")
    return "/".join([*(folder for folder in folders if folder.lower() not in _FOLDERS), base])


def _split_of(path: str) -> str:
    return path.split("/", maxsplit=1)[0] if "/" in path else WHOLE
