"""Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY. The public test split has no labels: val serves as test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from plrc.data.masks import encode_mask
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, LayoutError
from plrc.transfer.labels.annotations import ObjectAnnotation
from plrc.transfer.labels.class_table import ClassTable, fixed_classes
from plrc.transfer.labels.contents import files_below
from plrc.transfer.labels.label_maps import MapEncoding, MapValues
from plrc.transfer.labels.reader import SplitAnnotations, files_by_stem, pair_with_id_maps, split_for_each_role
from plrc.transfer.protocols import LabelledConfig, Task

CLASS_IDS = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The 19 classes that are scored, by labelId; their order is that of the trainIds."""

INSTANCE_IDS = {i: name for i, name in CLASS_IDS.items() if i >= 24}
"""The 8 classes that have single objects."""


class CityscapesReader:
    """Labels in the layout of Cityscapes.

    Raises:
        LayoutError: There is no folder leftImg8bit.
    """

    def __init__(self, config: LabelledConfig, task: Task, reading: ReadingReport) -> None:
        root = Path(config.source)
        if not (root / "leftImg8bit").is_dir():
            raise LayoutError(f"{root} has no folder leftImg8bit, as Cityscapes has")
        self.root = root
        self.task = task
        self.reading = reading
        self.channels = config.channels
        self.splits = sorted(path.name for path in (root / "leftImg8bit").glob("*") if path.is_dir())
        self.roles = split_for_each_role([split for split in self.splits if split in ("train", "val")])

    def read(self, split: str) -> SplitAnnotations:
        if split not in self.splits:
            raise ConfigError(f"{self.root}/leftImg8bit has no folder {split}; write one of: {', '.join(self.splits)}")
        images = _with_ending(files_by_stem(self.root / "leftImg8bit" / split, self.reading), "_leftImg8bit")
        maps = files_by_stem(self.root / "gtFine" / split, self.reading)
        if self.task == "semantic":
            id_maps = _with_ending(maps, "_gtFine_labelIds")
            return SplitAnnotations(pair_with_id_maps(self.root, images, id_maps, self.reading, self.channels))
        id_maps = _with_ending(maps, "_gtFine_instanceIds")
        annotations = []
        modes = ("I;16", "I;16B", "I")
        for image in pair_with_id_maps(self.root, images, id_maps, self.reading, self.channels, modes):
            objects = _read_objects(image.id_map, masks=self.task == "instances")
            annotations.append(replace(image, objects=objects, id_map=""))
        return SplitAnnotations(annotations, tuple(INSTANCE_IDS.values()))

    def has_labels(self, split: str) -> bool:
        return bool(files_below(self.root / "gtFine" / split, ".png"))

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        return fixed_classes(CLASS_IDS, maps, self.root)


def _with_ending(files: Mapping[str, Path], ending: str) -> dict[str, Path]:
    """The files whose key has the ending, by the key without it."""
    return {key.removesuffix(ending): path for key, path in files.items() if key.endswith(ending)}


def _read_objects(path: str, masks: bool) -> list[ObjectAnnotation]:
    """Objects of a map of classId * 1000 + number; a bare classId is a group without single objects: ignored.

    Raises:
        DataError: The map cannot be read.
    """
    ids = MapEncoding().read(path).astype(np.int32)
    objects = []
    for value in np.unique(ids).tolist():
        is_group = value < 1000
        class_id = value if is_group else value // 1000
        if class_id not in INSTANCE_IDS:
            continue
        mask = ids == value
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        objects.append(
            ObjectAnnotation(
                class_name=INSTANCE_IDS[class_id],
                box=(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)),
                location=f"{Path(path).name} id {value}",
                ignored=is_group,
                area=float(mask.sum()),
                segmentation=encode_mask(mask) if masks else None,
            )
        )
    return objects
