"""COCO files of any content: an error is a sentence, and each object is kept or counted as lost."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.transfer.sources import POLYGON, coco_source, read, thing

from plrc.config import DataConfig
from plrc.data.masks import read_coco_masks
from plrc.data.sources import find_images
from plrc.errors import PlrcError
from plrc.transfer.labels.splits import Splits
from plrc.transfer.protocols import Task

QUICK = settings(max_examples=40, deadline=4000, suppress_health_check=[HealthCheck.too_slow])

NUMBER = st.one_of(
    st.integers(-3, 40),
    st.floats(-3, 40),
    st.sampled_from([None, True, "3", " 4.5", "", "cat", 10**400, -0.0, float("nan"), float("inf"), [], {}]),
)
ANY = st.recursive(NUMBER, lambda inner: st.lists(inner, max_size=7), max_leaves=12)
BOX = st.one_of(st.just([2, 3, 10, 5]), st.lists(NUMBER, min_size=4, max_size=4), ANY)
RUNS = st.one_of(st.just([63, 5, 532]), st.lists(NUMBER, max_size=5), st.sampled_from(["", "zz", "0" * 30, "é", None]))
SIZE = st.one_of(st.just([20, 30]), ANY)
SEGMENTATION = st.one_of(
    st.just(POLYGON),
    st.just(POLYGON[0]),
    st.lists(st.lists(NUMBER, max_size=8), max_size=3),
    st.fixed_dictionaries({"size": SIZE, "counts": RUNS}),
    ANY,
)
ID = st.one_of(st.integers(1, 9), st.sampled_from(["1", "2", "x", 1.0, 2.5, None, True, 10**30, [1]]))
OBJECT = st.fixed_dictionaries(
    {"image_id": ID, "category_id": st.one_of(st.just(7), ID), "bbox": BOX},
    optional={"id": ID, "segmentation": SEGMENTATION, "iscrowd": ANY, "area": ANY},
)
NAME = st.one_of(
    st.sampled_from(
        ["1.jpg", "2.jpg", "train2017\\3.jpg", "C:\\a\\4.jpg", "http://[/1.jpg", "../1.jpg", "%00", "\0", ".", "/"]
    ),
    st.text(max_size=6),
    ANY,
)
IMAGE = st.fixed_dictionaries({"id": ID, "file_name": NAME}, optional={"height": ANY, "width": ANY})
CATEGORY = st.fixed_dictionaries({"id": ID, "name": st.one_of(st.sampled_from(["cat", "dog"]), ANY)})


def edit(root: Path, change: dict[str, Any]) -> Path:
    """Add entries to the lists of the training file, or put other values in their place."""
    polygon = {"segmentation": POLYGON}
    path = coco_source(root, [thing(1, **polygon), thing(2, image=2, **polygon)]) / "annotations"
    table = json.loads((path / "instances_train2017.json").read_text())
    for key, value in change.items():
        table[key] = table.get(key, []) + value if isinstance(value, list) else value
    (path / "instances_train2017.json").write_text(json.dumps(table))
    return path / "instances_train2017.json"


def try_to_read(root: Path, task: Task) -> Splits | None:
    """The splits; None if they are refused with a sentence."""
    try:
        return read(root, task, val="none")
    except PlrcError:
        return None


def lost_objects(splits: Splits) -> int:
    counts = splits.reading.to_dict().get("dropped", {})
    return sum(
        entry["count"] for reason, entry in counts.items() if reason.split()[0] in ("objects", "boxes", "annotations")
    )


def kept_objects(splits: Splits) -> int:
    return sum(len(image.classes) for part in (splits.train, splits.test) for image in part.images)


@QUICK
@given(st.lists(OBJECT, max_size=5), st.sampled_from(["detection", "instances"]))
@example([thing(5), thing(5), thing(5)], "detection")
@example([{**thing(5), "segmentation": {"size": [20, 30], "counts": [600.0]}}], "instances")
def test_each_object_is_kept_or_counted(objects: list[dict[str, Any]], task: Task) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = edit(Path(folder), {"annotations": objects})
        splits = try_to_read(Path(folder), task)
        if splits is not None:
            assert kept_objects(splits) + lost_objects(splits) == 3 + len(objects)
        read_masks(path)


@QUICK
@given(st.lists(IMAGE, max_size=4), st.lists(CATEGORY, max_size=2))
@example([{"id": "a", "file_name": "%00"}, {"id": "b", "file_name": "\ud800"}], [])
def test_images_and_categories_of_any_kind(images: list[dict[str, Any]], categories: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = edit(Path(folder), {"images": images, "categories": categories})
        splits = try_to_read(Path(folder), "detection")
        if splits is not None:
            assert kept_objects(splits) + lost_objects(splits) == 3
        read_masks(path)


@QUICK
@given(st.dictionaries(st.sampled_from(["images", "annotations", "categories"]), ANY, max_size=3))
def test_lists_of_any_kind(change: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = edit(Path(folder), change)
        try_to_read(Path(folder), "detection")
        read_masks(path)


def read_masks(path: Path) -> None:
    try:
        images = find_images(DataConfig(source=str(path)))
        masks = read_coco_masks(path, images)
        for name in masks.entries:
            masks.objects(name, 8)
    except PlrcError:
        pass
