"""The table of label layouts. A new layout is a file with a reader, a row here, and its name in `protocols.Layout`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plrc.data.reading import ReadingReport
from plrc.errors import DataError, LayoutError
from plrc.transfer.labels.cityscapes import CityscapesReader
from plrc.transfer.labels.coco import CocoReader
from plrc.transfer.labels.folders import FolderReader
from plrc.transfer.labels.reader import LabelReader
from plrc.transfer.labels.voc import VocReader
from plrc.transfer.protocols import Task


@dataclass(frozen=True)
class LabelLayout:
    """A layout of labelled images.

    Attributes:
        marks: Glob patterns, relative to the source, of which at least one matches.
        open: Opens a source for a task; raises LayoutError if the source does not fit.
    """

    marks: tuple[str, ...]
    open: Callable[[Path, Task, ReadingReport], LabelReader]


LAYOUTS = {
    "voc": LabelLayout(("ImageSets", "JPEGImages", "VOCdevkit", "VOC20[0-9][0-9]"), VocReader),
    "cityscapes": LabelLayout(("leftImg8bit",), CityscapesReader),
    "coco": LabelLayout(("annotations/*.json", "*/annotations.json"), CocoReader),
    "folders": LabelLayout(("labels",), FolderReader),
}
"""Layouts by name, in the order in which they are tried."""


def open_labels(root: Path, layout: str, task: Task, reading: ReadingReport) -> LabelReader:
    """Open a folder of labelled images.

    Args:
        root: The folder.
        layout: Name of its layout, or "auto" to recognize it by its content.
        task: What the labels are for.
        reading: Receives what a user should know about the source.

    Raises:
        DataError: `root` is not a folder.
        LayoutError: The folder does not have the layout, or no known one, or no labels for the task.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; name the folder with the labelled images with --data")
    if layout == "auto":
        layout = _recognize(root)
    return LAYOUTS[layout].open(root, task, reading)


def _recognize(root: Path) -> str:
    patterns = []
    for name, layout in LAYOUTS.items():
        for pattern in layout.marks:
            if next(root.glob(pattern), None) is not None:
                return name
            patterns.append(pattern)
    raise LayoutError(
        f"{root} has no labels in a known layout (looked for {', '.join(patterns)}); name the folder that contains the "
        "splits, or the layout with --data.layout"
    )
