"""The race: all methods start alike and end with their time; what is finished is not run again."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import lightly_run, race
from benchmarks.__main__ import main
from benchmarks.race_curves import draw_curves, summarize

from plrc.engine import budget
from plrc.errors import ConfigError
from plrc.scenes import write_scenes
from plrc.transfer.initial import initial_backbone
from plrc.transfer.protocols import LabelledConfig

SCORING = race.Scoring(
    LabelledConfig(), probe_seeds=(0, 1), probe_size=64, probe_images=3, detection_fraction=0.5, detection_steps=1
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    write_scenes(folder, {"train": 16, "val": 1, "test": 2}, seed=0, size=64)
    return folder


@pytest.fixture
def a_second_per_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the CPU clock is a second later than the last; a step reads it once."""
    readings = itertools.count()
    monkeypatch.setattr(budget.time, "process_time", lambda: float(next(readings)))


def entry(scenes: Path, method: str, seconds: int = 3) -> race.Entry:
    shared = {"data.source": str(scenes / "train" / "images"), "views.size": 32, "optim.batch_size": 8}
    return race.Entry(Path(method).stem, 5, seconds / 60, race.pretrain_config(method, 5, seconds / 60, shared))


def weights_of(entry: race.Entry, folder: Path) -> dict[str, torch.Tensor]:
    training = race.train(entry, folder)
    assert training["finished"]
    return torch.load(folder / training["weights"], weights_only=True)


@pytest.mark.slow
def test_a_race_is_resumed_and_drawn(scenes: Path, tmp_path: Path, a_second_per_reading: None) -> None:
    pytest.importorskip("lightly")
    options = ["--data", str(scenes / "train" / "images"), "--labelled", str(scenes), "--out", str(tmp_path / "race")]
    options += "--size 32 --batch 8 --probe-size 64 --probe-images 2 --probe-seeds 3 --detection-steps 0".split()
    race_of = ["race", *options, "--methods", "plrc", "lightly-densecl", "--cpu-minutes", "0.05"]
    assert main([*race_of, "--figure", str(tmp_path / "figure.png"), "--json", str(tmp_path / "race.json")]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 1000
    content = race.parse_json((tmp_path / "race.json").read_text())
    curves = {(row["method"], row["cpu_minutes"]): row for row in content["rows"] if row["score"] == "miou_16"}
    assert curves.keys() == {("random", 0), ("plrc", 0.05), ("lightly-densecl", 0.05)}
    assert {row["images"] for row in curves.values()} == {0, 24} and content["figures"] == {"missing": 0}
    lines = (tmp_path / "race" / "lines.jsonl").read_text()
    assert main(race_of) == 0 and (tmp_path / "race" / "lines.jsonl").read_text() == lines
    assert race.run(labelled=str(scenes), data="x", out=str(tmp_path / "race"), show=True).figures["missing"] > 0


@pytest.mark.parametrize("method", ["lightly-moco", "lightly-densecl"])
def test_lightly_continues_where_it_was_stopped(
    method: str, scenes: Path, tmp_path: Path, a_second_per_reading: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightly")
    whole = weights_of(entry(scenes, method), tmp_path / "whole")
    two_views = lightly_run._two_views

    def stop_once(*arguments: Any) -> Any:
        monkeypatch.setattr(lightly_run, "_two_views", two_views)
        os.kill(os.getpid(), signal.SIGTERM)
        return two_views(*arguments)

    monkeypatch.setattr(lightly_run, "_two_views", stop_once)
    first = race.train(entry(scenes, method), tmp_path / "parts")
    assert first["steps"] == 1 and not first["finished"]
    resumed = weights_of(entry(scenes, method), tmp_path / "parts")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    both = race.train(entry(scenes, method), tmp_path / "parts")
    assert both["steps"] == 3 and both["cpu_seconds"] > first["cpu_seconds"]


def test_all_methods_start_from_the_same_weights(scenes: Path, tmp_path: Path, a_second_per_reading: None) -> None:
    pytest.importorskip("lightly")
    random = weights_of(entry(scenes, "random"), tmp_path / "random")
    theirs = lightly_run.build_method(entry(scenes, "lightly-densecl").config, dense=True).student.backbone.net
    slow = entry(scenes, "plrc", seconds=1).config.with_values({"optim.lr": 1e-30})
    training = race.train(race.Entry("plrc", 5, 1 / 60, slow), tmp_path / "plrc")
    ours = initial_backbone(str(tmp_path / "plrc" / training["weights"]), "resnet18")[0].net.state_dict()
    for name, weight in theirs.named_parameters():
        assert torch.equal(weight, random[name]), name
        assert torch.allclose(weight, ours[name], rtol=0, atol=1e-20), name


def test_a_file_is_a_method(scenes: Path, tmp_path: Path) -> None:
    file = tmp_path / "easy.toml"
    file.write_text('preset = "small_r18"\nmethod = "points"\n[views]\nsize = 48\nscale = [0.5, 1.0]\n')
    easy = entry(scenes, str(file))
    assert easy.method == "easy" and easy.config.method == "points" and easy.config.objectives.distill_weight == 0
    assert easy.config.views.size == 48 and easy.config.views.scale == (0.5, 1.0) and easy.config.optim.batch_size == 8
    name = easy.name
    file.write_text(file.read_text().replace("0.5", "0.6"))
    assert entry(scenes, str(file)).name != name  # other settings are another run


def test_few_label_detection_is_a_score(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []
    monkeypatch.setattr(race, "transfer", configs.append)
    monkeypatch.setattr(race, "probe_seeds", lambda *arguments: [SimpleNamespace(miou={8: 1.0})])
    assert race.score(entry(scenes, "plrc"), tmp_path / "weights.pt", SCORING, tmp_path) is None  # it was stopped
    config = configs[0]
    assert config.data.fraction == 0.5 and config.optim.steps == 1
    assert config.init == str(tmp_path / "weights.pt") and config.seed == 5


def line(method: str, seed: int, minutes: float, scores: list[float]) -> dict[str, Any]:
    names = {"method": method, "seed": seed, "cpu_minutes": minutes, "cpu_minutes_used": minutes + 1, "images": 64}
    return names | {"scores": {"miou_16": scores}}


def test_rows_have_intervals_over_seeds_or_else_over_seeds_of_the_probe(tmp_path: Path) -> None:
    lines = [line("plrc", 0, 4, [40.0, 42.0]), line("plrc", 1, 4, [44.0, 44.0]), line("random", 0, 0, [30.0, 32.0])]
    ours, random = summarize(lines)
    assert ours["mean"] == 42.5 and ours["n"] == 2 and ours["over"] == "seeds" and ours["cpu_minutes_used"] == 5
    assert random["mean"] == 31 and random["n"] == 2 and random["over"] == "probe seeds"
    assert ours["low"] < 42.5 < ours["high"]
    with pytest.raises(ConfigError, match="no finished run has the score AP"):
        draw_curves([ours, random], "AP", tmp_path / "figure.png")


def test_bad_races_are_refused() -> None:
    with pytest.raises(ConfigError, match="a race needs --data IMAGES"):
        race.run()
    with pytest.raises(ConfigError, match="there is no method 'byol'"):
        race.run(data="a", labelled="b", methods=("plrc", "byol"))
