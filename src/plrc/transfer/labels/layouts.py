"""The table of label layouts. A new layout is a reader, its signs in `signs`, a row here, and a name in `Layout`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError, LayoutError
from plrc.transfer.labels import signs
from plrc.transfer.labels.cityscapes import CityscapesReader
from plrc.transfer.labels.coco import CocoReader
from plrc.transfer.labels.contents import Contents, survey
from plrc.transfer.labels.folders import FolderReader
from plrc.transfer.labels.reader import LabelReader
from plrc.transfer.labels.signs import Signs
from plrc.transfer.labels.voc import open_voc
from plrc.transfer.labels.yolo import YoloReader
from plrc.transfer.labels.yolo_source import YAML_ENDINGS
from plrc.transfer.protocols import LabelledConfig, Task

_ALL_TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class LabelLayout:
    """A layout of labelled images.

    Attributes:
        tasks: The tasks that it may have labels for.
        look: Returns what a folder has of the layout, and what it lacks.
        open: Opens a source for a task; raises LayoutError if the source does not fit.
    """

    tasks: tuple[Task, ...]
    look: Callable[[Contents], Signs]
    open: Callable[[LabelledConfig, Task, ReadingReport], LabelReader]


LAYOUTS = {
    "voc": LabelLayout(("detection", "semantic"), signs.voc, open_voc),
    "cityscapes": LabelLayout(_ALL_TASKS, signs.cityscapes, CityscapesReader),
    "coco": LabelLayout(_ALL_TASKS, signs.coco, CocoReader),
    "yolo": LabelLayout(("detection", "instances"), signs.yolo, YoloReader),
    "folders": LabelLayout(("semantic",), signs.folders, FolderReader),
}
"""Layouts by name."""


def open_labels(config: LabelledConfig, task: Task, reading: ReadingReport) -> LabelReader:
    """Open a folder of labelled images.

    Args:
        config: Names the folder, or the data.yaml of a YOLO data set, and the layout.
        task: What the labels are for.
        reading: Receives what a user should know about the source.

    Raises:
        ConfigError: A setting that the layout does not know.
        DataError: The source is not a folder.
        LayoutError: The folder does not have the layout, or no known one, or no labels for the task.
    """
    root = Path(config.source)
    layout: str = config.layout
    if root.is_file() and root.name.lower().endswith(YAML_ENDINGS) and layout in ("auto", "yolo"):
        layout = "yolo"
    elif not root.is_dir():
        raise DataError(f"{root} is not a folder; name the folder with the labelled images with --data")
    elif layout == "auto":
        layout = _recognize(root, task)
    if config.unlabelled != "auto" and layout not in ("yolo", "voc"):
        raise ConfigError(
            f"data.unlabelled is for the layouts yolo and voc, but {root} is read as {layout}; leave it out"
        )
    if config.four_point_polygons and layout != "yolo":
        raise ConfigError(
            f"data.four_point_polygons is for the layout yolo, but {root} is read as {layout}; leave it out"
        )
    return LAYOUTS[layout].open(config, task, reading)


def _recognize(root: Path, task: Task) -> str:
    """The only layout that a folder has; of several, the only one for the task."""
    contents = survey(root)
    seen = {name: layout.look(contents) for name, layout in LAYOUTS.items()}
    complete = [name for name, its_signs in seen.items() if its_signs.are_complete]
    fitting = [name for name in complete if task in LAYOUTS[name].tasks]
    if len(fitting) == 1:
        return fitting[0]
    if len(complete) == 1:
        return complete[0]
    if complete:
        choices = ", ".join(f"{name} ({seen[name].present})" for name in fitting or complete)
        raise LayoutError(
            f"{root} has labels in more than one layout: {choices}; name one with --data.layout "
            "(plrc transfer probe: --layout)"
        )
    near = []
    for name, its_signs in seen.items():
        if its_signs.present:
            near.append(f"{name} has {its_signs.present}, but {its_signs.missing}")
    inside = [folder for folder in contents.files if folder and "/" not in folder and _has_layout(root / folder)]
    reasons = "".join(f"; {reason}" for reason in near)
    advice = f"the folder with the labels, such as {root / inside[0]}" if inside else "the folder with the labels"
    raise LayoutError(
        f"{root} has no labels in a known layout ({', '.join(LAYOUTS)}): it has {contents.describe()}{reasons}; name "
        f"{advice}, or the layout with --data.layout (plrc transfer probe: --layout)"
    )


def _has_layout(folder: Path) -> bool:
    contents = survey(folder)
    return any(layout.look(contents).are_complete for layout in LAYOUTS.values())
