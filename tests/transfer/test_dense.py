"""The dense probe from labelled folders: one reading for several weights, classes from boxes, masks and maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.transfer.sources import voc_image, voc_list

from plrc.cli import main
from plrc.compare.probes import probe_table, summarize_probes
from plrc.errors import DataError, PlrcError
from plrc.files import write_json
from plrc.model.backbone import build_backbone
from plrc.scenes import write_scenes
from plrc.transfer import dense
from plrc.transfer.dense import dense_probe, probe_seeds
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


@pytest.fixture(scope="module")
def scenes_and_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Four scenes to fit and two to score, and a file of weights."""
    folder = tmp_path_factory.mktemp("probe")
    write_scenes(folder / "scenes", {"train": 4, "val": 1, "test": 2}, seed=0, size=64)
    torch.manual_seed(1)
    torch.save(build_backbone("resnet18").net.state_dict(), folder / "mine.pt")
    return str(folder / "scenes"), str(folder / "mine.pt")


@pytest.mark.parametrize("images", [2, 100])
def test_seeds_share_features_and_each_scores_as_alone(
    scenes_and_weights: tuple[str, str], images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two images a split, each seed has other ones."""
    source, mine = scenes_and_weights
    data = LabelledConfig(source=source)
    passes: list[int] = []
    extract = dense.extract_levels
    monkeypatch.setattr(dense, "extract_levels", lambda *args: passes.append(len(args[1])) or extract(*args))
    together = probe_seeds(data, [mine, "random"], "resnet18", 64, images, [0, 3], levels=(16, 32))
    assert len(passes) == 2 + 2 * 2  # given weights: once for both seeds; random weights: once for each
    assert [(result.init, result.seed) for result in together] == [(mine, 0), (mine, 3), ("random", 0), ("random", 3)]
    for result in together:
        (alone,) = dense_probe(data, [result.init], "resnet18", 64, images, result.seed, levels=(16, 32))
        if images == 100:
            assert result == alone
        assert (result.train_images, result.test_images) == (alone.train_images, alone.test_images)
        for metric in ("miou", "accuracy", "grouping"):
            assert getattr(result, metric) == pytest.approx(getattr(alone, metric), abs=0.5)
    summary = summarize_probes(together, {})
    difference = summary["inits"][mine]["minus_random"]["miou"]["16"]
    a, b, c, d = (result.miou[16] for result in together)
    assert difference["mean"] == pytest.approx((a - c + b - d) / 2) and difference["n"] == 2
    assert "minus_random" not in summary["inits"]["random"] and len(probe_table(summary).splitlines()) == 5


def test_the_command_writes_all_scores_of_all_weights(
    scenes_and_weights: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, mine = scenes_and_weights
    command = ["transfer", "probe", "--data", source, "--init", mine, "--seeds", "0", "1", "--size", "64"]
    assert main([*command, "--images", "2", "--out", str(tmp_path / "probes")]) == 0
    assert "minus random" in capsys.readouterr().out
    stored = json.loads((tmp_path / "probes" / "result.json").read_text())
    assert list(stored["inits"]) == [mine, "random"] and len(stored["results"]) == 4
    assert stored["settings"]["seeds"] == [0, 1] and stored["inits"][mine]["miou"]["8"]["low"] is not None
    with pytest.raises(PlrcError, match=r"seeds must be different numbers, at least one, got \[1, 1\]"):
        probe_seeds(LabelledConfig(source=source), ["random"], "resnet18", 64, 2, [1, 1])


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
    write_json(tmp_path / "probe.json", summarize_probes([found], {}))
    stored = json.loads((tmp_path / "probe.json").read_text(), parse_constant=pytest.fail)
    (probe,) = stored["results"]
    assert set(probe["grouping"].values()) == {None} and probe["miou"]["8"] == found.miou[8]
    intervals = stored["inits"]["random"]
    assert set(intervals["grouping"].values()) == {None} and intervals["miou"]["8"]["mean"] == found.miou[8]


def test_a_file_names_the_backbone_wherever_it_stands(scenes_and_weights: tuple[str, str]) -> None:
    source, mine = scenes_and_weights
    data = LabelledConfig(source=source)
    results = dense_probe(data, ["random", mine], "", 64, 2, 0, levels=(16,))
    assert [(result.init, result.backbone) for result in results] == [("random", "resnet18"), (mine, "resnet18")]
    with pytest.raises(PlrcError, match=r"write --model\.backbone resnet18 \(plrc transfer probe: --backbone\)"):
        dense_probe(data, [mine], "resnet50", 64, 2, 0)


def test_objects_too_small_for_grouping_leave_the_other_scores(tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    for i in range(4):
        voc_image(root, f"{i}", ("dog", 1, 1, 2, 2))
    voc_list(root, "train", "0", "1")
    voc_list(root, "val", "2")
    voc_list(root, "test", "3")
    (result,) = dense_probe(LabelledConfig(source=str(root)), ["random"], "resnet18", 64, 10, 0, levels=(16,))
    assert result.miou[16] > 0
    assert np.isnan(result.grouping[16])
    assert "no grouping AUC with seed 0: too few of the drawn pixels lie on objects" in result.table()


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
