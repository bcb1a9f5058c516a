"""YOLO: a .txt file for each image, with a line for each object; data.yaml names the splits and the classes.

Images lie in images/SPLIT with labels in labels/SPLIT, in SPLIT/images with SPLIT/labels, or next to their labels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from plrc.data.image_kinds import NO_IMAGE_EXTENSIONS, file_extension
from plrc.data.layouts import list_folder, read_lines
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError
from plrc.transfer.labels.annotations import (
    ImageAnnotation,
    ObjectAnnotation,
    annotate_image,
    drop_objects,
    relative_name,
)
from plrc.transfer.labels.class_table import ClassTable, fixed_classes
from plrc.transfer.labels.contents import files_below
from plrc.transfer.labels.label_maps import MapValues
from plrc.transfer.labels.reader import NoLabelsForTask, SplitAnnotations, label_files_by_stem, split_for_each_role
from plrc.transfer.labels.yolo_lines import FAR_OUTSIDE, LabelFile, LabelLine, read_label_file
from plrc.transfer.labels.yolo_paths import as_path, has_label_file, label_folder, may_hold_labels
from plrc.transfer.labels.yolo_source import find_yolo_source
from plrc.transfer.protocols import LabelledConfig, Task


class _LabelledFile(NamedTuple):
    """An image and its label file; None: it has no such file."""

    image: Path
    labels: LabelFile | None

    @property
    def lines(self) -> list[LabelLine]:
        return [] if self.labels is None else self.labels.lines


class YoloReader:
    """Labels in the layout of YOLO.

    Raises:
        LayoutError: The source has no labels for the task.
        DataError: Its data.yaml cannot be used.
    """

    def __init__(self, config: LabelledConfig, task: Task, reading: ReadingReport) -> None:
        self.channels = config.channels
        source = Path(config.source)
        self.root = source if source.is_dir() else source.parent
        self.task = task
        self.reading = reading
        self.leave_out = config.unlabelled == "leave_out"
        self.quads_are_polygons = config.four_point_polygons
        self.source = find_yolo_source(source, reading)
        self.names = self.source.names
        self.splits = list(self.source.splits)
        self.roles = split_for_each_role(self.splits)
        self._label_files: dict[Path, dict[str, Path]] = {}  # folder of images -> stem -> label file
        if task == "semantic":
            raise NoLabelsForTask(
                f"{self.root} has the layout of YOLO, which has boxes or polygons, but no label maps",
                "detection, or instances if the labels are polygons",
            )

    def read(self, split: str) -> SplitAnnotations:
        if split not in self.splits:
            names = ", ".join(self.splits)
            raise ConfigError(f"{self.root} has no split {split} in the layout of YOLO; write one of: {names}")
        files = []
        for place in self.source.splits[split]:
            images = self._images_of_list(place) if place.is_file() else self._images_of_folder(place)
            files += [_LabelledFile(image, self._read_labels(image)) for image in images]
        lines = [line for file in files for line in file.lines]
        self._check_values(lines, split)
        self._check_classes(lines)
        annotations = []
        for file in files:
            annotation = self._annotate(file)
            if annotation is not None:
                annotations.append(annotation)
        return SplitAnnotations(annotations, self._class_names(lines))

    def has_labels(self, split: str) -> bool:
        return any(has_label_file(place, self.source.locator) for place in self.source.splits[split])

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        return fixed_classes({}, maps, self.root)

    def _images_of_folder(self, folder: Path) -> list[Path]:
        listing = list_folder(str(folder))
        self.reading.extend(listing.reading)
        labels = label_folder(folder)
        stems = {os.path.splitext(name)[0] for name in listing.names}
        for name in files_below(labels, ".txt"):  # also in folders without images
            if os.path.splitext(name)[0] not in stems and may_hold_labels(name):
                self.reading.count("left out", "label files without an image", self._name(labels / name))
        return [folder / name for name in sorted(listing.names)]

    def _images_of_list(self, path: Path) -> list[Path]:
        images = []
        for line in read_lines(str(path), lambda line: self._locate(line, path) is not None):
            image = self._locate(line, path)
            if image is None:
                self.reading.count("left out", "entries of a list that are no file", f"{self._name(path)}: {line}")
            else:
                images.append(image)
        return images

    def _locate(self, line: str, path: Path) -> Path | None:
        """The image of a line of a list; None if there is no such file."""
        image = self.source.locator.locate(as_path(line), path.parent)
        return image if image is not None and image.is_file() else None

    def _read_labels(self, image: Path) -> LabelFile | None:
        """The labels of an image; several images may share a label file."""
        if image.parent not in self._label_files:
            self._label_files[image.parent] = self._list_label_files(image.parent)
        path = self._label_files[image.parent].get(image.stem)
        if path is None:
            return None
        return read_label_file(path, self._name(path), self.reading)

    def _list_label_files(self, images: Path) -> dict[str, Path]:
        """Stem -> label file, for a folder of images; counts those that belong to no image or to several."""
        folder = label_folder(images)
        names = os.listdir(folder) if folder.is_dir() else []
        texts = [name for name in names if name.lower().endswith(".txt") and may_hold_labels(name)]
        label_files = {stem: folder / name for stem, name in label_files_by_stem(texts, self.reading).items()}
        images_of_stem = Counter(os.path.splitext(name)[0] for name in _possible_images(images))
        for stem, path in label_files.items():
            if images_of_stem[stem] == 0:
                self.reading.count("left out", "label files without an image", self._name(path))
            if images_of_stem[stem] > 1:
                self.reading.count("read", "label files that several images share", self._name(path))
        return label_files

    def _check_values(self, lines: list[LabelLine], split: str) -> None:
        """Refuse values whose meaning is not that of YOLO's boxes and polygons."""
        far_outside = [line for line in lines if line.is_far_outside]
        if 2 * len(far_outside) > len(lines):
            first = far_outside[0]
            raise DataError(
                f"{len(far_outside)} of {len(lines)} labels of the split {split} have values above {FAR_OUTSIDE:g}, "
                f"such as {max(first.values):g} in {first.location}: they look like pixels, but YOLO's values are "
                "shares of the image's width and height, from 0 to 1; export them again"
            )
        polygons = [line for line in lines if line.is_polygon]
        if any(len(line.values) != 8 for line in polygons):
            self.quads_are_polygons = True  # in this split and those that are read after it
        tilted = [line for line in polygons if line.is_tilted_quad]
        if tilted and not self.quads_are_polygons:
            raise DataError(
                f"{tilted[0].location} has 8 values after the class, and no label of the split {split} has more: they "
                "are oriented boxes, which plrc does not read, or polygons of four points; if they are polygons, write "
                "--data.four-point-polygons (plrc transfer probe: --four-point-polygons)"
            )
        if self.task == "instances" and lines and not polygons:
            raise NoLabelsForTask(f"{self.root}: the split {split} has boxes without masks", "detection")

    def _check_classes(self, lines: list[LabelLine]) -> None:
        """Refuse classes that have no name, if classes have names."""
        if self.names is None:
            return
        for line in lines:
            if line.class_number not in self.names:
                raise DataError(
                    f"{line.location} has the class {line.class_number}, but {self.source.names_file} names only "
                    f"{len(self.names)} classes{_numbered(self.names)}; correct one of the two"
                )

    def _annotate(self, file: _LabelledFile) -> ImageAnnotation | None:
        name = self._name(file.image)
        if file.labels is None and self.leave_out:
            self.reading.count("left out", "images without a label file", name)
            return None
        annotation = annotate_image(self.root, file.image, self.reading, self.channels)
        if annotation is None:
            drop_objects((line.location for line in file.lines), self.reading)
            return None
        if file.labels is None:
            self.reading.count("read", "images without a label file, as background", name)
            return annotation
        annotation.dropped = file.labels.dropped
        for line in file.lines:
            if line.is_far_outside:
                self.reading.count("dropped", "labels with values far outside of 0 to 1", line.location)
                annotation.dropped += 1
            else:
                annotation.objects.append(self._object(line, annotation.height, annotation.width))
        return annotation

    def _object(self, line: LabelLine, height: int, width: int) -> ObjectAnnotation:
        return ObjectAnnotation(
            class_name=self._class_name(line.class_number),
            box=line.box(height, width),
            location=line.location,
            segmentation=[line.points(height, width)] if line.is_polygon else None,
        )

    def _class_names(self, lines: list[LabelLine]) -> tuple[str, ...]:
        if self.names is not None:
            return tuple(self.names.values())
        return tuple(self._class_name(number) for number in sorted({line.class_number for line in lines}))

    def _class_name(self, number: int) -> str:
        return f"class {number}" if self.names is None else self.names[number]

    def _name(self, path: Path) -> str:
        return relative_name(self.root, path)


def _possible_images(folder: Path) -> list[str]:
    """The files of a folder that may be images, by their endings."""
    with os.scandir(folder) as entries:
        files = [entry.name for entry in entries if entry.is_file()]
    return [name for name in files if file_extension(name) not in NO_IMAGE_EXTENSIONS]


def _numbered(names: Mapping[int, str]) -> str:
    return f" ({min(names)} to {max(names)})" if names else ""
