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
    """An image and its annotation file; one of them may be missing."""

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

    def has_labels(self, split: str) -> bool:
        return _has_labels(self.pairs[split])

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        return fixed_classes({}, maps, self.root)

    def _read(self, pair: _Pair) -> ImageAnnotation | None:
        location = "" if pair.xml is None else relative_name(self.root, pair.xml)
        if pair.image is None:
            self.reading.count("left out", _NO_IMAGE, location)
            return None
        return read_annotation(
            self.root, pair.image, pair.xml, location, self.leave_out, self.reading, self.channels, self.first_pixel
        )


def _pair(
    root: Path, image_names: Iterable[str], xml_names: Iterable[str], reading: ReadingReport
) -> dict[str, list[_Pair]]:
    """Split -> images with their annotation files.

    An annotation file belongs to the images of its own path, without regard to the folders in _FOLDERS and to the
    ending; if there are none, to those that its <filename> names.
    """
    images_of_stem: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(image_names):
        images_of_stem[_stem(name)].append(name)
    xml_of_image: dict[str, str] = {}
    pairs: defaultdict[str, list[_Pair]] = defaultdict(list)
    # those that have images of their own path come first, and keep these images
    for xml in sorted(xml_names, key=lambda name: _stem(name) not in images_of_stem):
        images = images_of_stem.get(_stem(xml)) or _images_named_by(root, xml, images_of_stem)
        if not images:
            pairs[_split_of(xml)].append(_Pair(None, root / xml))
        if len(images) > 1:
            reading.count("read", "annotation files that several images share", xml)
        for image in images:
            if image in xml_of_image:
                reading.count("left out", FURTHER_FILES, xml)
            else:
                xml_of_image[image] = xml
    for images in images_of_stem.values():
        for image in images:
            xml_path = root / xml_of_image[image] if image in xml_of_image else None
            pairs[_split_of(image)].append(_Pair(root / image, xml_path))
    return _without_unlabelled_splits(root, pairs, reading)


def _without_unlabelled_splits(
    root: Path, pairs: Mapping[str, list[_Pair]], reading: ReadingReport
) -> dict[str, list[_Pair]]:
    """The splits that have an image with an annotation file, if there are any; otherwise all."""
    labelled = {split: content for split, content in pairs.items() if _has_labels(content)}
    if not labelled:
        return dict(pairs)
    for split, content in pairs.items():
        if split in labelled:
            continue
        for pair in content:
            if pair.image is not None:
                name = relative_name(root, pair.image)
                reading.count("left out", "images in folders without annotation files", name)
            elif pair.xml is not None:
                reading.count("left out", _NO_IMAGE, relative_name(root, pair.xml))
    return labelled


def _has_labels(content: Iterable[_Pair]) -> bool:
    return any(pair.image is not None and pair.xml is not None for pair in content)


def _images_named_by(root: Path, xml: str, images_of_stem: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The images that the <filename> of an annotation file names, with or without its ending, in the same folder."""
    stated_path = read_xml(root / xml).findtext("filename", "").strip().replace("\\", "/")
    stated_name = stated_path.rpartition("/")[2]
    folder = _key(xml).rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    for stem in (stated_name, os.path.splitext(stated_name)[0]):
        if prefix + stem in images_of_stem:
            return images_of_stem[prefix + stem]
    return ()


def _key(name: str) -> str:
    """A path without its folders in _FOLDERS."""
    *folders, base = name.split("/")
    return "/".join([*(folder for folder in folders if folder.lower() not in _FOLDERS), base])


def _stem(name: str) -> str:
    """A path without such folders and without its ending."""
    return os.path.splitext(_key(name))[0]


def _split_of(name: str) -> str:
    """The first folder of a path that is none of these."""
    folder, separator, _ = _key(name).partition("/")
    return folder if separator else WHOLE
