"""Warnings about splits that overlap in all but name, and about objects that are too small to see."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.transfer.sources import read

from plrc.data.manifest import write_manifest
from plrc.data.sources import ImageList
from plrc.transfer.data_checks import log_data_warnings
from plrc.transfer.presets import protocol

PATTERN = r"(video\d+)_"


def frame(path: Path, video: int, number: int) -> None:
    """A frame of a video: a scene of soft patches, with some noise."""
    patches = np.random.default_rng(video).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(patches).resize((120, 80), Image.Resampling.BICUBIC)).astype(float)
    pixels += np.random.default_rng([video, number]).normal(0, 4, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=70)


def source(root: Path, box: tuple[int, int], **splits: list[tuple[int, int]]) -> Path:
    """A COCO source of frames (video, number), with an object of width x height in each."""
    for split, frames in splits.items():
        images = []
        things = []
        for i, (video, number) in enumerate(frames):
            name = f"video{video}_{number}.jpg"
            frame(root / "images" / name, video, number)
            images.append({"id": i, "file_name": name, "height": 80, "width": 120})
            things.append({"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, *box]})
        table = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "fish"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    return root


def warnings_of(root: Path, *inits: str, test_size: float = 192.0, **data: Any) -> list[str]:
    splits = read(root, **data)
    values = {"data.source": str(root), "input.test_size": test_size, "input.max_size": 1333, "model.min_stride": 4}
    config = protocol("small_detection", "detection").with_values(
        values | {f"data.{name}": value for name, value in data.items()}
    )
    return log_data_warnings(splits, config.data, inits, config)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Ten videos of six frames to train on, and other scenes to test on."""
    train = [(video, number) for video in range(10) for number in range(6)]
    return source(tmp_path / "videos", (60, 40), train=train, test=[(video, 0) for video in range(20, 25)])


def test_frames_of_one_video_are_warned_of_and_kept_together_by_a_group(
    videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parted = warnings_of(videos)
    held_out = read(videos).val.images
    assert len(parted) == 1 and len(held_out) == 12
    assert parted[0].startswith(
        "validation images that look almost like a training image: 12 of 12 (100.0%; compared with 48), such as images/"
    )
    assert parted[0].endswith("with --data.group folder or --data.group PATTERN")
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.WARNING, parted[0])]

    assert warnings_of(videos, group=PATTERN) == []
    splits = read(videos, group=PATTERN)
    groups = {role: {image.name.split("_")[0] for image in getattr(splits, role).images} for role in ("train", "val")}
    assert len(splits.val.images) == 12 and len(groups["val"]) == 2 and not groups["train"] & groups["val"]
    assert f"data.group = {PATTERN}: 15 groups of 65 images" in splits.reading.lines()
    assert any(
        line.startswith("val: whole groups, 12 of the 60 images of train, left out of train")
        for line in splits.reading.lines()
    )


def test_a_test_split_that_is_drawn_parts_no_group(tmp_path: Path) -> None:
    root = source(tmp_path, (60, 40), train=[(video, number) for video in range(8) for number in range(5)])
    splits = read(root, train="train", test_fraction=0.25, group=PATTERN)
    groups = [{image.name.split("_")[0] for image in part.images} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 8 and len(groups[2]) == 2
    assert warnings_of(root, train="train", test_fraction=0.25, group=PATTERN) == []


def test_splits_of_the_source_that_part_groups(tmp_path: Path) -> None:
    train = [(video, 0) for video in range(6)]
    root = source(tmp_path, (60, 40), train=train, val=[(9, 0)], test=[(0, 1), (7, 0), (8, 0), (8, 1)])
    similar = "test images that look almost like a training image: 1 of 4 (25.0%; compared with 6), such as "
    pair = "images/video0_1.jpg and images/video0_0.jpg; their scores say little about new images: "
    advice = f"divide the images of {root} anew, so that images which belong together are in one split"
    assert warnings_of(root) == [similar + pair + advice]
    group, same = warnings_of(root, group=PATTERN)
    assert same == similar + pair + advice
    assert group == (
        "test images of a group that also has training images: 1 of 4 (25.0%), such as images/video0_1.jpg; "
        "their scores say little about new images: divide the images anew, by group"
    )


def test_a_source_that_is_named_by_its_data_yaml(tmp_path: Path) -> None:
    for split, videos in {"train": (0, 1, 2), "val": (3, 4), "test": (0, 5)}.items():
        for video in videos:
            name = f"video{video}_{split}"
            frame(tmp_path / split / "images" / f"{name}.jpg", video, number=len(split))
            (tmp_path / split / "labels").mkdir(exist_ok=True)
            (tmp_path / split / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: train/images\nval: val/images\ntest: test/images\nnames: [fish]\n")
    warnings = warnings_of(tmp_path / "data.yaml")
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "test images that look almost like a training image: 1 of 2 (50.0%; compared with 3), such as "
        "test/images/video0_test.jpg and train/images/video0_train.jpg; "
    )


def test_test_images_like_those_of_the_pretraining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = source(tmp_path / "s", (60, 40), train=[(1, 0), (2, 0)], val=[(3, 0)], test=[(4, 0), (5, 0)])
    frame(tmp_path / "unlabelled" / "x.jpg", video=5, number=1)
    frame(tmp_path / "unlabelled" / "y.jpg", video=6, number=1)
    run = tmp_path / "run"
    run.mkdir()
    write_manifest(
        run / "manifest.json", ImageList(str(tmp_path / "unlabelled"), ("x.jpg", "y.jpg"), "folder"), [0], [1]
    )
    (warning,) = warnings_of(root, "random", str(run))
    assert warning == (
        f"test images that look almost like an image that {run} was pre-trained on: 1 of 2 (50.0%; compared with 2), "
        "such as images/video5_0.jpg and x.jpg; their scores say little about new images: pre-train without such "
        "images (--data.exclude)"
    )
    for path in (tmp_path / "unlabelled").iterdir():
        path.unlink()
    with caplog.at_level(logging.INFO):
        assert warnings_of(root, str(run)) == []
    assert f"the images of {run} are in shards, or not there: not compared with the test images" in caplog.messages


@pytest.mark.parametrize(("side", "expected"), [(12, True), (16, False)])
def test_objects_that_are_too_small_for_the_detector(tmp_path: Path, side: int, expected: bool) -> None:
    root = source(tmp_path, (side, side), train=[(1, 0), (2, 0)], val=[(3, 0)], test=[(4, 0)])
    warnings = warnings_of(root, test_size=40.0)  # the images are 80 px high: half the size
    sentence = (
        "labelled objects with a side below 8 px at the size that the detector sees (median scale 0.5): 2 of 2 (100%; "
        "median of all 6 px): cut the images into tiles, or raise input.train_size and input.test_size (now 40); the "
        "smallest anchor has 16 px (model.anchors x model.min_stride)"
    )
    assert warnings == [sentence] * expected
