"""Tiles of a COCO data set, cut from real files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from plrc.transfer.labels.splits import read_labelled
from plrc.transfer.protocols import LabelledConfig

SCRIPT = Path(__file__).parents[2] / "studies" / "tiles.py"


def write_data(folder: Path) -> None:
    """One image of 100 x 60 pixels with four boxes in each split; each pixel's color is its column and row."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rows, columns = np.mgrid[:60, :100]
    pixels = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    for split in ("train", "val", "test"):
        Image.fromarray(pixels).save(folder / "images" / f"{split}.png")
        boxes = [
            [2, 3, 10, 12],  # in the first tile
            [32, 10, 16, 10],  # half of it in the first tile, half in the second
            [35, 30, 20, 4],  # a quarter of it in the first tile: of the second alone
            [50, 50, 0, 5],  # no area
        ]
        content = {
            "images": [{"id": 7, "file_name": f"{split}.png", "width": 100, "height": 60}],
            "categories": [{"id": 3, "name": "cell"}],
            "annotations": [
                {"id": i, "image_id": 7, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for i, box in enumerate(boxes)
            ],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def test_tiles_show_the_pixels_and_the_visible_parts_of_the_boxes(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    arguments = [tmp_path / "data", tmp_path / "tiles", "--size", "40"]
    text = subprocess.run([sys.executable, SCRIPT, *arguments], check=True, capture_output=True, text=True).stdout
    assert text.splitlines()[0] == "annotations/instances_train.json: 1 images, 3 tiles, 5 boxes"
    content = json.loads((tmp_path / "tiles" / "annotations" / "instances_train.json").read_text())
    boxes = {image["file_name"]: [] for image in content["images"]}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        boxes[names[annotation["image_id"]]].append(annotation["bbox"])
    assert boxes == {
        "train_0_0.jpg": [[2, 3, 10, 12], [32, 10, 8, 10]],
        "train_40_0.jpg": [[0, 10, 8, 10], [0, 30, 15, 4]],
        "train_40_20.jpg": [[0, 10, 15, 4]],
    }
    with Image.open(tmp_path / "tiles" / "images" / "train_40_0.jpg") as tile:
        assert tile.size == (40, 40)
        assert np.abs(np.asarray(tile)[5, 7].astype(int) - [47, 5, 0]).max() <= 6  # JPEG


def test_tiles_are_a_labelled_data_set(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    subprocess.run([sys.executable, SCRIPT, tmp_path / "data", tmp_path / "tiles", "--size", "40"], check=True)
    labelled = read_labelled(LabelledConfig(source=str(tmp_path / "tiles"), val="none"), "detection")
    assert [(len(part.images), tuple(part.classes)) for part in (labelled.train, labelled.test)] == [(3, ("cell",))] * 2


def test_tiles_of_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    file = tmp_path / "data" / "annotations" / "instances_test.json"
    file.write_text(file.read_text().replace("test.png", "other/train.jpg"))
    arguments = [tmp_path / "data", tmp_path / "tiles"]
    process = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert process.returncode == 2 and "several images are called train, so that" in process.stderr
    assert not (tmp_path / "tiles").exists()
