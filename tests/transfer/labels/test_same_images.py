"""The same 60 images written in six layouts have the same boxes, the same classes and the same score."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.transfer.labels.test_yolo import put
from tests.transfer.sources import read, voc_list

from plrc.scenes import render_scene, scene_names
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.splits import LabelledSet
from plrc.transfer.metrics import Prediction, coco_metrics, voc_metrics

SIZE = 64  # a power of two: shares of it are exact
SPLITS = {"train": range(30), "val": range(30, 40), "test": range(40, 60)}
NAMES = sorted(scene_names())


@dataclass(frozen=True)
class Labelled:
    """An image of a split, its name, and (name of the class, x0, y0, x1, y1) of its objects in whole pixels."""

    split: str
    name: str
    image: Image.Image
    objects: list[tuple[str, int, int, int, int]]


Images = Sequence[Labelled]


@pytest.fixture(scope="module")
def scenes() -> Images:
    images = []
    for split, numbers in SPLITS.items():
        for i in numbers:
            scene = render_scene(5, i, SIZE)
            classes = [scene_names()[k] for k in scene.classes]
            boxes = scene.boxes.astype(int).tolist()
            objects = [(name, *box) for name, box in zip(classes, boxes, strict=True)]
            images.append(Labelled(split, f"{split}{i}", Image.fromarray(scene.image), objects))
    return images


def save_image(one: Labelled, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    one.image.save(folder / f"{one.name}.png")


def write_voc(root: Path, images: Images) -> None:
    for one in images:
        save_image(one, root / "JPEGImages")
        text = f"<annotation><size><width>{SIZE}</width><height>{SIZE}</height></size>"
        for name, x0, y0, x1, y1 in one.objects:
            corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            text += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
        put(root / "Annotations" / f"{one.name}.xml", text + "</annotation>")
    for split in SPLITS:
        voc_list(root, split, *(one.name for one in images if one.split == split))


def coco_table(images: Images, prefix: str = "", first_id: int = 1, gap: int = 1) -> str:
    entries = []
    things = []
    for i, one in enumerate(images):
        entries.append({"id": i, "file_name": f"{prefix}{one.name}.png", "width": SIZE, "height": SIZE})
        for name, x0, y0, x1, y1 in one.objects:
            category = first_id + gap * NAMES.index(name)
            box = [x0, y0, x1 - x0, y1 - y0]
            things.append({"id": len(things), "image_id": i, "category_id": category, "bbox": box, "iscrowd": 0})
    categories = [{"id": first_id + gap * i, "name": name} for i, name in enumerate(NAMES)]
    return json.dumps({"images": entries, "annotations": things, "categories": categories})


def of_split(images: Images, split: str) -> Images:
    return [one for one in images if one.split == split]


def write_coco_central(root: Path, images: Images) -> None:
    for split in SPLITS:
        for one in of_split(images, split):
            save_image(one, root / split)
        put(root / "annotations" / f"instances_{split}.json", coco_table(of_split(images, split)))


def write_coco_folders(root: Path, images: Images) -> None:
    for split in SPLITS:
        for one in of_split(images, split):
            save_image(one, root / split / "images")
        put(root / split / "annotations.json", coco_table(of_split(images, split), "images/", first_id=0))


def write_coco_one_folder(root: Path, images: Images) -> None:
    for split in SPLITS:
        for one in of_split(images, split):
            save_image(one, root / "images")
        put(root / "annotations" / f"{split}.json", coco_table(of_split(images, split), first_id=3, gap=7))


def label_lines(one: Labelled) -> str:
    lines = []
    for name, x0, y0, x1, y1 in one.objects:
        values = [(x0 + x1) / 2 / SIZE, (y0 + y1) / 2 / SIZE, (x1 - x0) / SIZE, (y1 - y0) / SIZE]
        lines.append(" ".join(map(str, [NAMES.index(name), *values])))
    return "\n".join(lines)


def write_yolo(root: Path, images: Images, form: str) -> None:
    yaml = json.dumps({split: form.format(split) for split in SPLITS} | {"names": NAMES})  # JSON is YAML
    put(root / "data.yaml", yaml)
    for one in images:
        folder = form.format(one.split)
        save_image(one, root / folder)
        put(root / folder.replace("images", "labels") / f"{one.name}.txt", label_lines(one))


WRITERS: dict[str, Callable[[Path, Images], None]] = {
    "voc": write_voc,
    "coco, a folder of annotations": write_coco_central,
    "coco, a file in each split": write_coco_folders,
    "coco, one folder of images": write_coco_one_folder,
    "yolo, images/SPLIT": lambda root, images: write_yolo(root, images, "images/{}"),
    "yolo, SPLIT/images": lambda root, images: write_yolo(root, images, "{}/images"),
}


def content(labelled: LabelledSet) -> list[tuple[str, list[tuple[str, bytes, float, bool]]]]:
    """Images by their names; objects by their classes, boxes, areas and whether they are ignored."""
    images = []
    for image in labelled.images:
        objects = zip(image.classes, image.boxes, image.areas, image.ignored, strict=True)
        described = [(labelled.classes[k], box.tobytes(), float(area), bool(x)) for k, box, area, x in objects]
        images.append((Path(image.name).stem, described))
    return images


def score(labelled: LabelledSet, images: Images) -> dict[str, float]:
    """The scores of a fixed detector: every object, moved a little and sometimes of another class."""
    of_name = {one.name: one for one in images}
    predictions = []
    for i, image in enumerate(labelled.images):
        draws = np.random.default_rng(i)
        objects = of_name[Path(image.name).stem].objects
        boxes = np.array([corners for _, *corners in objects]) + draws.normal(0, 2, (len(objects), 4))
        classes = np.array([labelled.classes.index(name) for name, *_ in objects])
        classes = np.where(draws.random(len(objects)) < 0.2, 0, classes)
        predictions.append(Prediction(boxes.astype(np.float32), draws.random(len(objects), np.float32), classes))
    scores = coco_metrics(labelled, predictions, "bbox")
    return scores | voc_metrics(labelled, predictions, eleven_points=False)


def truth_of(images: Images) -> LabelledSet:
    """The labels as the scenes have them, without any file of labels."""
    labelled = []
    for one in sorted(images, key=lambda one: one.name):
        boxes = np.array([corners for _, *corners in one.objects], dtype=np.float32)
        labelled.append(
            LabelledImage(
                name=f"{one.name}.png",
                path="",
                height=SIZE,
                width=SIZE,
                boxes=boxes,
                classes=np.array([NAMES.index(name) for name, *_ in one.objects]),
                ignored=np.zeros(len(boxes), dtype=np.bool_),
                areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float64),
            )
        )
    return LabelledSet(tuple(labelled), tuple(NAMES))


@pytest.mark.parametrize("form", WRITERS)
def test_a_form_of_labels_changes_nothing(form: str, scenes: Images, tmp_path: Path) -> None:
    WRITERS[form](tmp_path, scenes)
    splits = read(tmp_path)
    for part, split in ((splits.train, "train"), (splits.val, "val"), (splits.test, "test")):
        assert part.classes == tuple(NAMES)
        assert content(part) == content(truth_of(of_split(scenes, split)))
    assert len(splits.reading.lines()) == 3  # nothing was repaired, clipped, dropped or left out
    scores = score(splits.test, scenes)
    assert 20 < scores["AP"] < 80
    np.testing.assert_equal(scores, score(truth_of(of_split(scenes, "test")), scenes))


def test_exporters_forms_of_pascal_voc_have_the_same_boxes(scenes: Images, tmp_path: Path) -> None:
    for one in scenes:
        save_image(one, tmp_path / one.split)
        text = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}.0</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for name, x0, y0, x1, y1 in one.objects
        )
        put(tmp_path / one.split / f"{one.name}.xml", f"<annotation>{text}</annotation>")
    write_yolo(tmp_path / "yolo", scenes, "images/{}")
    first = read(tmp_path, layout="voc", train="train", test="test", val="val")
    second = read(tmp_path / "yolo")
    for part, other in ((first.train, second.train), (first.val, second.val), (first.test, second.test)):
        assert content(part) == content(other)
