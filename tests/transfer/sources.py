"""Small labelled sources in every layout, written for the tests of their readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plrc.transfer.labels.splits import LabelledSet, Splits, read_labelled
from plrc.transfer.protocols import LabelledConfig, Task

Box = tuple[str, float, float, float, float]


def read(source: Path, task: Task = "detection", **config: Any) -> Splits:
    return read_labelled(LabelledConfig(source=str(source), **config), task)


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def blank(path: Path, height: int = 20, width: int = 30) -> None:
    save(path, np.zeros((height, width, 3)))


def voc_image(folder: Path, name: str, *objects: Box, size: tuple[int, int] = (20, 30), extra: str = "") -> None:
    blank(folder / "JPEGImages" / f"{name}.jpg")
    text = f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
    for kind, *corners in objects:
        ends = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        text += f"<object><name>{kind}</name>{extra}<bndbox>{ends}</bndbox></object>"
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(text + "</annotation>")


def voc_list(folder: Path, split: str, *names: str, kind: str = "Main") -> None:
    path = folder / "ImageSets" / kind / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def voc_years(root: Path) -> Path:
    """VOC2007 with trainval (train, val) and test, VOC2012 with trainval alone."""
    for year, prefix in (("VOC2007", "07"), ("VOC2012", "12")):
        for i in range(6):
            voc_image(root / year, f"{prefix}_{i}", ("dog", 1, 1, 10, 10), ("cat", 5, 6, 30, 20))
        voc_list(root / year, "train", f"{prefix}_0", f"{prefix}_1")
        voc_list(root / year, "val", f"{prefix}_2")
        voc_list(root / year, "trainval", *(f"{prefix}_{i}" for i in range(3)))
    voc_list(root / "VOC2007", "test", "07_3", "07_4")
    return root


def coco_file(path: Path, images: list[dict[str, Any]], things: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    table = {
        "images": images,
        "annotations": things,
        "categories": [{"id": 7 + i, "name": n} for i, n in enumerate(names)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


POLYGON = [[2.0, 3.0, 12.0, 3.0, 12.0, 8.0, 2.0, 8.0]]


def coco_source(root: Path, things: list[dict[str, Any]], test_things: list[dict[str, Any]] | None = None) -> Path:
    """Four training images (ids 1 to 4) and one of val (id 9), 20 x 30; objects of the category 7 (cat) and 8 (dog)."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (1, 2, 3, 4, 9)]
    for image in images:
        blank(root / ("val2017" if image["id"] == 9 else "train2017") / str(image["file_name"]))
    coco_file(root / "annotations" / "instances_train2017.json", images[:4], things, ("cat", "dog"))
    coco_file(
        root / "annotations" / "instances_val2017.json",
        images[4:],
        [thing(90, image=9, segmentation=POLYGON)] if test_things is None else test_things,
        ("cat", "dog"),
    )
    return root


def thing(i: int, image: int = 1, category: int = 7, **more: Any) -> dict[str, Any]:
    return {"id": i, "image_id": image, "category_id": category, "bbox": [2, 3, 10, 5], **more}


def names(labelled: LabelledSet) -> list[str]:
    return [Path(image.name).stem for image in labelled.images]


def mask_folders(root: Path, *splits: str, ids: Any = ((0, 3, 5, 255),), prefix: str = "") -> Path:
    for split in splits:
        for i in range(5):
            blank(root / "images" / split / f"{prefix}{split}{i}.jpg", len(ids), len(ids[0]))
            save(root / "labels" / split / f"{prefix}{split}{i}.png", ids)
    return root


def cityscapes(root: Path) -> Path:
    labels = np.array([[7, 26, 26, 24], [7, 26, 26, 33], [0, 29, 26, 25]])
    objects = np.array([[7, 26001, 26001, 24], [7, 26001, 26000, 33000], [0, 29000, 26000, 25]])
    for split in ("train", "val", "test"):
        for i in range(5):
            stem = f"aachen/aachen_{i:06d}_000019"
            blank(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", 3, 4)
            save(root / "gtFine" / split / f"{stem}_gtFine_labelIds.png", labels)
            Image.fromarray(objects.astype(np.uint16)).save(root / "gtFine" / split / f"{stem}_gtFine_instanceIds.png")
    return root
