"""COCO: annotations/instances_SPLIT.json with the images in SPLIT, or SPLIT/annotations.json with paths relative to it.

Semantic segmentation: semantic/SPLIT/*.png, where 0 is unlabelled, as in COCO's own maps; or, next to
SPLIT/annotations.json, SPLIT/semantic/*.png, where 0 is the class "background".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError, LayoutError
from plrc.files import parse_json
from plrc.measures.segmentation import IGNORED
from plrc.transfer.labels.annotations import NO_BOX, ImageAnnotation, ObjectAnnotation, annotate_image
from plrc.transfer.labels.class_table import ClassTable, fixed_classes, used_ids
from plrc.transfer.labels.label_maps import MapValues
from plrc.transfer.labels.pairs import pair_folders
from plrc.transfer.labels.reader import (
    NoLabelsForTask,
    SplitAnnotations,
    split_for_each_role,
)
from plrc.transfer.protocols import LabelledConfig, Task

STUFF_IDS = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}
"""COCO panoptic's ids beyond the categories of its objects."""

_SAMPLE = 200  # entries that are looked for in each candidate folder of images


class CocoReader:
    """Labels in the layout of COCO.

    Raises:
        LayoutError: The source has no annotation files, or no labels for the task.
    """

    def __init__(self, config: LabelledConfig, task: Task, reading: ReadingReport) -> None:
        self.channels = config.channels
        root = Path(config.source)
        self.root = root
        self.task = task
        self.reading = reading
        self.files = _central_files(root)
        self.central = bool(self.files)
        if not self.central:
            self.files = {path.parent.name: path for path in sorted(root.glob("*/annotations.json"))}
        if not self.files:
            raise LayoutError(f"{root} has no COCO annotations (looked for annotations/*.json and */annotations.json)")
        self.splits = list(self.files)
        self.roles = split_for_each_role(self.splits)
        if task == "semantic" and not any(self._id_map_folder(split).is_dir() for split in self.splits):
            raise NoLabelsForTask(
                f"{root} has boxes, but no label maps (no folder {self._id_map_folder(self.splits[0])})",
                "detection, or instances if the boxes have masks",
            )

    def read(self, split: str) -> SplitAnnotations:
        if split not in self.files:
            names = ", ".join(self.splits)
            raise ConfigError(f"{self.root} has no COCO annotations of a split {split}; write one of: {names}")
        if self.task == "semantic":
            return self._read_id_maps(split)
        return self._read_objects(split)

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        path = self.files[self.splits[0]]
        categories = _categories(_read_json(path), path)
        names = {i: name for i, name in categories.items() if i in range(1, IGNORED)}
        if self.central:
            known = STUFF_IDS | names
            used = [i for i in used_ids(maps) if i not in (0, IGNORED)]
            return fixed_classes({i: known.get(i, f"class {i}") for i in used}, maps, self.root)
        return fixed_classes({0: "background"} | names, maps, self.root)

    def _id_map_folder(self, split: str) -> Path:
        return self.root / "semantic" / split if self.central else self.root / split / "semantic"

    def _read_id_maps(self, split: str) -> SplitAnnotations:
        root = self.root
        images = root
        for folder in (root / split / "images", root / split, root / "images" / split, root / "images"):
            if folder.is_dir():
                images = folder
                break
        return SplitAnnotations(pair_folders(root, images, self._id_map_folder(split), self.reading))

    def _read_objects(self, split: str) -> SplitAnnotations:
        path = self.files[split]
        table = _read_json(path)
        names = _categories(table, path)
        try:
            annotations = list(table["annotations"])
            if self.task == "instances" and annotations and not any("segmentation" in entry for entry in annotations):
                raise NoLabelsForTask(f"{path} has boxes without masks", "detection")
            images = self._read_images(split, table["images"])
            for number, entry in enumerate(annotations):
                location = f"{path.name} annotation {entry.get('id', number)}"
                if entry["image_id"] not in images:
                    self.reading.count("dropped", "annotations of an image that is not listed", location)
                    continue
                image = images[entry["image_id"]]
                item = _read_object(entry, names, location, self.reading) if image is not None else None
                if image is not None and item is not None:
                    image.objects.append(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path} is not a COCO file of instances: {error!r} in its images or annotations"
            ) from error
        usable = [image for image in images.values() if image is not None]
        return SplitAnnotations(usable, tuple(dict.fromkeys(names.values())))

    def _read_images(self, split: str, entries: list[Mapping[str, Any]]) -> dict[Any, ImageAnnotation | None]:
        """Image id -> annotation without objects; None if the image cannot be used."""
        by_id = {entry["id"]: entry for entry in entries}
        names = [str(entry["file_name"]) for entry in by_id.values()]
        folder = self._image_folder(split, names[:: max(1, len(names) // _SAMPLE)])
        images = {}
        for i, entry in by_id.items():
            stated_size = None
            if "height" in entry and "width" in entry:
                stated_size = (int(entry["height"]), int(entry["width"]))
            images[i] = annotate_image(
                self.root, folder / str(entry["file_name"]), self.reading, stated_size, self.channels
            )
        return images

    def _image_folder(self, split: str, names: list[str]) -> Path:
        """The folder that has most of the named images."""
        root = self.root
        folders = (self.files[split].parent, root / split, root / "images" / split, root / "images", root)
        return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))


def _central_files(root: Path) -> dict[str, Path]:
    """Split -> file in the folder annotations; instances_*.json if there are any, else all."""
    folder = root / "annotations"
    instances = {path.stem.removeprefix("instances_"): path for path in sorted(folder.glob("instances_*.json"))}
    return instances or {path.stem: path for path in sorted(folder.glob("*.json"))}


def _read_object(
    entry: Mapping[str, Any], names: Mapping[Any, str], location: str, reading: ReadingReport
) -> ObjectAnnotation | None:
    try:
        x, y, width, height = (float(number) for number in entry["bbox"])
        area = float(entry["area"]) if "area" in entry else None
    except (KeyError, TypeError, ValueError):
        reading.count("dropped", NO_BOX, location)
        return None
    category = entry.get("category_id")
    return ObjectAnnotation(
        class_name=names.get(category, f"(category {category})"),
        box=(x, y, x + width, y + height),
        location=location,
        ignored=bool(entry.get("iscrowd", 0)),
        area=area,
        segmentation=entry.get("segmentation"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON ({error}); fix or remove it") from error
    return table


def _categories(table: dict[str, Any], path: Path) -> dict[Any, str]:
    """Category id -> name, in the order of the ids."""
    try:
        categories = sorted(table["categories"], key=lambda category: category["id"])
        return {category["id"]: str(category["name"]) for category in categories}
    except (KeyError, TypeError) as error:
        raise DataError(f'{path} is not a COCO file of instances: it has no "categories" with id and name') from error
