"""Health where the held-out images come with masks: objects lie in a view where its pixels show them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from plrc.config import Config
from plrc.data.sources import find_images
from plrc.data.views import QUERY
from plrc.engine.health import HealthCheck
from plrc.engine.pretrain import pretrain
from plrc.scenes import encode_rle

pytest.importorskip("faster_coco_eval", reason="masks need faster-coco-eval")

Tiny = Callable[..., Config]
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=np.uint8)  # background and two objects


class Pixels(nn.Module):
    """A backbone whose features are the pixels' colors."""

    def forward(self, images: Tensor, stride: int) -> dict[int, Tensor]:
        return {stride: images}


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A COCO file of six images with two flat rectangles each; the last one is not annotated."""
    draw = np.random.default_rng(0)
    table: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    for i in range(6):
        ids = np.zeros((64, 80), dtype=np.int64)
        for number in (1, 2):
            y, x = draw.integers(0, 32), draw.integers(0, 40)
            ids[y : y + 30, x : x + 36] = number
        Image.fromarray(COLOURS[ids]).save(tmp_path / f"{i}.png")
        table["images"].append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 80})
        for number in (1, 2) if i < 5 else ():
            rle = encode_rle(ids == number)
            table["annotations"].append({"id": 2 * i + number, "image_id": i, "iscrowd": 0, "segmentation": rle})
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(table))
    return path


def plain(tiny: Tiny, source: Path) -> Config:
    """Views without color changes."""
    off = {f"views__{name}": 0.0 for name in ("jitter_prob", "gray_prob", "blur_prob")}
    return tiny(data__source=str(source), views__size=64, **off)


def check_of(config: Config) -> HealthCheck:
    images = find_images(config.data)
    return HealthCheck(config, images, np.arange(len(images)), torch.device("cpu"))


def test_objects_lie_where_the_view_shows_them(tiny: Tiny, masks: Path) -> None:
    check = check_of(plain(tiny, masks))
    assert check.objects is not None
    for shown, ids in zip(check.batches[0].images[QUERY][:5], check.objects[:5], strict=True):
        expected = (shown[0] > 128) * 1 + (shown[1] > 128) * 2
        assert (ids == expected).float().mean() > 0.9  # all but the edges
    assert (check.objects[5] <= 0).all()


def test_grouping_of_features_that_are_the_objects_is_perfect(tiny: Tiny, masks: Path) -> None:
    found = check_of(plain(tiny, masks)).measure(Pixels(), 8, 0)
    assert found is not None and found.grouping_auc is not None and found.grouping_auc > 0.95
    assert "grouping AUC" in str(found)


def test_views_without_any_object_are_not_measured(tiny: Tiny, masks: Path) -> None:
    check = check_of(plain(tiny, masks))
    assert check.objects is not None
    check.objects = torch.zeros_like(check.objects)
    measured = check.measure(Pixels(), 8, 0)
    assert measured is not None and measured.grouping_auc is None


def test_without_masks_it_is_not_measured(tiny: Tiny, masks: Path) -> None:
    found = check_of(plain(tiny, masks.parent / "*.png")).measure(Pixels(), 8, 0)
    assert found is not None and found.grouping_auc is None and "grouping" not in str(found)
    table = json.loads(masks.read_text())
    boxes = masks.with_name("boxes.json")
    boxes.write_text(json.dumps(table | {"annotations": [{"image_id": 0, "bbox": [0, 0, 9, 9], "category_id": 1}]}))
    assert check_of(plain(tiny, boxes)).objects is None


def test_a_run_on_images_with_masks_records_it(tiny: Tiny, scenes: Path) -> None:
    run = pretrain(tiny(data__source=str(scenes.parent / "annotations.json"), optim__steps=1))
    values = [found.grouping_auc for found in run.health]
    assert len(values) == 2 and all(value is not None and 0.3 < value < 1 for value in values)
    regions = {"regions__source": "coco", "regions__maps": str(scenes.parent / "annotations.json")}
    other = pretrain(tiny(optim__steps=1, run__out=str(run.path.with_name("other")), **regions))
    assert [found.grouping_auc for found in other.health] == pytest.approx(values, rel=0.2)
