"""The dense probe from labelled folders: one reading for several weights, classes from boxes, masks and maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.transfer.sources import voc_image, voc_list

from plrc.errors import DataError, PlrcError
from plrc.model.backbone import build_backbone
from plrc.scenes import write_scenes
from plrc.transfer.dense import dense_probe
from plrc.transfer.protocols import LabelledConfig


@pytest.mark.slow
def test_weights_are_probed_side_by_side(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 3, "test": 2}, seed=0, size=64)
    torch.manual_seed(1)
    torch.save(build_backbone("resnet18").net.state_dict(), tmp_path / "mine.pt")
    data, mine = LabelledConfig(source=str(tmp_path / "scenes")), str(tmp_path / "mine.pt")
    both = dense_probe(data, [mine, "random"], "resnet18", 64, 100, 0)
    assert both == [dense_probe(data, [init], "resnet18", 64, 100, 0)[0] for init in (mine, "random")]
    assert both[0].miou != both[1].miou
    assert "prefix in the file: (none)" in both[0].init_report and "random" in both[1].init_report
    for result in both:
        assert result.classes[0] == "background" and list(result.miou) == [8, 16, 32]
        assert (result.train_images, result.test_images) == (2, 2)  # a fifth of the training images is for validation
        assert all(0 < result.grouping[stride] < 1 for stride in result.grouping)


def test_a_measure_that_nothing_defines_is_null_in_the_file(tmp_path: Path) -> None:
    """Maps of classes name no objects, so there is no grouping."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (tmp_path / "d" / kind / split).mkdir(parents=True)
        for i in range(3):
            ids = rng.integers(0, 2, (64, 64)).astype(np.uint8)
            Image.fromarray(ids).save(tmp_path / "d" / "labels" / split / f"{i}.png")
            Image.fromarray(np.stack([ids * 200] * 3, axis=2)).save(tmp_path / "d" / "images" / split / f"{i}.png")
    (found,) = dense_probe(LabelledConfig(source=str(tmp_path / "d")), ["random"], "resnet18", 64, 2, 0)
    assert found.test_images == 2 and all(np.isnan(list(found.grouping.values())))
    found.save(tmp_path / "probe.json")
    stored = json.loads((tmp_path / "probe.json").read_text(), parse_constant=pytest.fail)
    assert set(stored["grouping"].values()) == {None} and stored["miou"]["8"] == found.miou[8]


def test_sizes_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match="size must be >= 64 and images >= 1, got 32 and 1: write --size and --images"):
        dense_probe(LabelledConfig(source=str(tmp_path)), ["random"], "", 32, 1, 0)


def test_a_voc_folder_without_a_test_split_names_the_option(tmp_path: Path) -> None:
    """VOC has boxes alone; the probe must not advise another task."""
    root = tmp_path / "VOC2012"
    for i in range(4):
        voc_image(root, f"{i}", ("dog", 1, 1, 10, 10), ("cat", 15, 6, 30, 20))
    voc_list(root, "train", "0", "1")
    with pytest.raises(DataError) as error:
        dense_probe(LabelledConfig(source=str(root)), ["random"], "resnet18", 64, 10, 0)
    assert str(error.value) == (
        f"{root} has no split to test on (splits: train; train is trained on); "
        "name one with --data.test (plrc transfer probe: --test), or draw one from the images of a split: --data.train "
        "train --data.test-fraction 0.2 (plrc transfer probe: --train, --test-fraction)"
    )
    voc_list(root, "mine", "2", "3")
    (result,) = dense_probe(
        LabelledConfig(source=str(root), test="mine"), ["random"], "resnet18", 64, 10, 0, levels=(32,)
    )
    assert (result.classes, result.test_images) == (("background", "cat", "dog"), 2)
