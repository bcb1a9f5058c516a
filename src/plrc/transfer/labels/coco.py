"""COCO, as exporters write it.

One file for each split in the folder `annotations` (instances_SPLIT.json), in the folder of the split
(SPLIT/_annotations.coco.json, SPLIT/annotations.json, ...) or in the source itself (train.json, labels.json, ...); see
`coco_files`. The images lie next to the file, in the source, or in a folder `images`, `data` or SPLIT of either.

Semantic segmentation: semantic/SPLIT/*.png, where 0 is unlabelled, as in COCO's own maps; or, next to
SPLIT/annotations.json, SPLIT/semantic/*.png, where 0 is the class "background".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plrc.data.coco_categories import read_categories, without_unused_groups
from plrc.data.coco_file import CocoImage, read_images, read_objects
from plrc.data.coco_names import count_spellings, find_images, image_folders
from plrc.data.coco_table import read_coco_table
from plrc.data.coco_values import box_of_polygons
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError, LayoutError
from plrc.measures.segmentation import IGNORED
from plrc.transfer.labels.annotations import NO_BOX, ImageAnnotation, ObjectAnnotation, annotate_image, drop_objects
from plrc.transfer.labels.class_table import ClassTable, fixed_classes, used_ids
from plrc.transfer.labels.coco_files import find_coco_files
from plrc.transfer.labels.label_maps import MapValues
from plrc.transfer.labels.pairs import pair_folders
from plrc.transfer.labels.reader import NoLabelsForTask, SplitAnnotations, split_for_each_role
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
        files = find_coco_files(root, reading)
        self.central = files.central
        self.files = files.by_split
        if not self.files:
            raise LayoutError(f"{root} has no COCO annotations (looked for annotations/*.json, */*.json and *.json)")
        self.splits = list(self.files)
        self._tables: dict[str, dict[str, Any]] = {}  # split -> content of its file, kept by `has_labels` for `read`
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

    def has_labels(self, split: str) -> bool:
        if self.task == "semantic":
            return self._id_map_folder(split).is_dir()
        self._tables[split] = read_coco_table(self.files[split])
        return bool(self._tables[split].get("annotations"))

    def class_table(self, maps: Mapping[str, MapValues]) -> ClassTable:
        path = self.files[self.splits[0]]
        categories = read_categories(path, read_coco_table(path), self.reading)
        names = {i: categories[i] for i in categories if isinstance(i, int) and 0 < i < IGNORED}
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
        return SplitAnnotations(pair_folders(root, images, self._id_map_folder(split), self.reading, self.channels))

    def _read_objects(self, split: str) -> SplitAnnotations:
        path = self.files[split]
        table = self._tables.pop(split, None) or read_coco_table(path)
        categories = without_unused_groups(path, read_categories(path, table, self.reading), table, self.reading)
        folders = image_folders(str(path), split, str(self.root))
        images_by_id = read_images(path, table, self.reading, folders)
        label = path.name if self.central else path.relative_to(self.root).as_posix()
        count = read_objects(path, table, images_by_id, categories, self.reading, label)
        images = list({id(image): image for image in images_by_id.values()}.values())
        if self.task == "instances" and count and not any(_has_masks(image) for image in images):
            raise NoLabelsForTask(f"{path} has boxes without masks", "detection")
        places = find_images([image.file_name for image in images], folders)
        if len(places.missing()) == len(places.paths):
            raise DataError(places.describe_failure(str(path)))
        count_spellings(places, self.reading)
        annotations = [self._annotate(image, Path(places.paths[image.file_name])) for image in images]
        usable = [annotation for annotation in annotations if annotation is not None]
        return SplitAnnotations(usable, tuple(dict.fromkeys(categories.values())))

    def _annotate(self, image: CocoImage, path: Path) -> ImageAnnotation | None:
        """The image with its objects; None if it cannot be used."""
        annotation = annotate_image(self.root, path, self.reading, self.channels, (image.height, image.width))
        if annotation is None:
            drop_objects((item.location for item in image.objects), self.reading)
            return None
        annotation.dropped = image.dropped
        if not image.objects and not image.dropped:
            self.reading.count("read", "images without an annotation, as background", annotation.name)
        for item in image.objects:
            box = item.box
            if box is None:
                box = box_of_polygons(item.segmentation)
                if box is not None:
                    self.reading.count("repaired", "objects without a box, which their polygons give", item.location)
            if box is None:
                self.reading.count("dropped", NO_BOX, item.location)
                annotation.dropped += 1
                continue
            x, y, width, height = box
            annotation.objects.append(
                ObjectAnnotation(
                    class_name=item.category,
                    box=(x, y, x + width, y + height),
                    location=item.location,
                    ignored=item.crowd,
                    area=item.area,
                    segmentation=item.segmentation,
                )
            )
        return annotation


def _has_masks(image: CocoImage) -> bool:
    return any(item.segmentation is not None for item in image.objects)
