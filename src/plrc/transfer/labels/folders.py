"""Folders of images and id maps: images/SPLIT/NAME.* and labels/SPLIT/NAME.png.

Classes are named by a file such as classes.txt (`class_list`). Without one, files named as CamVid's have CamVid's
classes, and others those of the values that occur (`class_table`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, LayoutError
from plrc.transfer.labels.class_table import ClassTable, classes_of_source
from plrc.transfer.labels.contents import survey
from plrc.transfer.labels.label_maps import MapValues
from plrc.transfer.labels.pairs import pair_folders
from plrc.transfer.labels.reader import NoLabelsForTask, SplitAnnotations, split_for_each_role
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
        self.channels = config.channels
        self.splits = sorted(path.name for path in (root / "images").glob("*") if path.is_dir())
        self.roles = split_for_each_role(self.splits)

    def read(self, split: str) -> SplitAnnotations:
        if split not in self.splits:
            raise ConfigError(f"{self.root}/images has no folder {split}; write one of: {', '.join(self.splits)}")
        images = self.root / "images" / split
        maps = self.root / "labels" / split
        return SplitAnnotations(pair_folders(self.root, images, maps, self.reading, self.channels))

    def has_labels(self, split: str) -> bool:
        return survey(self.root / "labels" / split).has_images

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        camvid = all(_CAMVID_FILE.match(Path(path).name) for path in maps)
        table = classes_of_source(self.root, maps, self.reading, CAMVID_IDS if camvid else None)
        if camvid and table.names == tuple(CAMVID_IDS.values()):
            self.reading.add("files named as CamVid's: its 11 classes are taken; id 11 is unlabelled and ignored")
        return table
