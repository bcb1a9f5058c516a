"""Folders of images and id maps: images/SPLIT/NAME.* and labels/SPLIT/NAME.png.

Classes are named by classes.txt, one per line, the first that of id 0. Without it, files named as CamVid's have
CamVid's classes, and others "class 0", ... for the ids that occur.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, LayoutError
from plrc.transfer.labels.annotations import ImageAnnotation
from plrc.transfer.labels.label_maps import table_of_source
from plrc.transfer.labels.reader import (
    NoLabelsForTask,
    SplitAnnotations,
    files_by_stem,
    pair_with_id_maps,
    split_for_each_role,
)
from plrc.transfer.protocols import LabelledConfig, Task

CAMVID_IDS = dict(enumerate("sky building pole road pavement tree sign fence car pedestrian bicyclist".split()))
"""CamVid as prepared for SegNet; 11 is unlabelled."""

_CAMVID_FILE = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_")  # its four sequences


class FolderReader:
    """Labels in folders of images and id maps.

    Raises:
        LayoutError: The task needs boxes, or there is no folder `images`.
    """

    def __init__(self, config: LabelledConfig, task: Task, reading: ReadingReport) -> None:
        root = Path(config.source)
        if not (root / "images").is_dir():
            raise LayoutError(f"{root} has no folder images")
        if task != "semantic":
            raise NoLabelsForTask(f"{root} has images and id maps, but no boxes", "semantic")
        self.root = root
        self.reading = reading
        self.splits = sorted(path.name for path in (root / "images").glob("*") if path.is_dir())
        self.roles = split_for_each_role(self.splits)

    def read(self, split: str) -> SplitAnnotations:
        if split not in self.splits:
            raise ConfigError(f"{self.root}/images has no folder {split}; write one of: {', '.join(self.splits)}")
        images = files_by_stem(self.root / "images" / split, self.reading)
        id_maps = files_by_stem(self.root / "labels" / split, self.reading)
        return SplitAnnotations(pair_with_id_maps(self.root, images, id_maps, self.reading))

    def class_ids(self, images: Sequence[ImageAnnotation]) -> Mapping[int, str]:
        id_maps = [image.id_map for image in images]
        camvid = all(_CAMVID_FILE.match(Path(path).name) for path in id_maps)
        if camvid and not (self.root / "classes.txt").is_file():
            self.reading.add("files named as CamVid's: its 11 classes are taken; id 11 is unlabelled and ignored")
            return CAMVID_IDS
        return table_of_source(self.root, id_maps)
