"""Adaptation, schedules, sampler, queue, health measures, log cutting."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from plrc.config import Config, Method
from plrc.data.sampler import StepSampler, split_held_out
from plrc.engine import schedule
from plrc.engine.adapt import MIN_STEPS, adapt, total_steps
from plrc.engine.health import Health, alarms, should_stop
from plrc.engine.runlog import cut_lines
from plrc.errors import PlrcError
from plrc.measures.features import feature_statistics
from plrc.model import KeyQueue
from plrc.presets import PRESETS, preset


def test_adaptation_fits_small_data_and_names_reasons() -> None:
    config, changes = adapt(preset("paper_r50"), images=300)
    assert config.optim.batch_size == 128 and config.optim.lr == pytest.approx(0.015)
    assert config.objectives.queue == 128 and config.optim.teacher_momentum < 0.999
    assert total_steps(config, 300) >= MIN_STEPS
    assert {c.name for c in changes} == {
        "optim.batch_size", "optim.lr", "optim.epochs", "objectives.queue", "optim.teacher_momentum"
    }  # fmt: skip
    assert all(len(c.reason) > 10 for c in changes)


def test_adaptation_leaves_the_paper_alone_where_it_fits() -> None:
    config, changes = adapt(preset("paper_r50"), images=1_281_167)
    assert config == preset("paper_r50") and changes == []


def test_a_warm_start_takes_a_tenth_of_the_rate_only_with_contrast() -> None:
    start = {"model.init": "weights.pth", "optim.batch_size": 64}
    _, contrast = adapt(preset("small_r18").with_values(start), images=10_000)
    _, anchor = adapt(preset("adapt").with_values(start), images=10_000)
    assert [(c.old, c.new) for c in contrast if "warm start" in c.reason] == [(1e-3, 1e-4)]
    assert "optim.lr" not in [c.name for c in anchor]


def test_pinned_settings_are_never_adapted() -> None:
    wanted = preset("paper_r50").with_values({"optim.batch_size": 32, "objectives.queue": 999, "optim.lr": 0.03})
    config, changes = adapt(wanted, images=300)
    assert config.optim.batch_size == 32 and config.objectives.queue == 999 and config.optim.lr == 0.03
    assert "optim.lr" not in {c.name for c in changes}
    unadapted, none = adapt(wanted.with_values({"adapt": False}), images=300)
    assert unadapted == wanted.with_values({"adapt": False}) and none == []


def test_adaptation_is_told_what_cannot_work() -> None:
    small = preset("small_r18")
    pinned = small.with_values({"optim.batch_size": small.optim.batch_size})
    with pytest.raises(PlrcError, match="10 training images are fewer than one batch of 64"):
        adapt(pinned, images=10)
    with pytest.raises(PlrcError, match="cannot be shared equally by 3 processes"):
        adapt(pinned, images=1000, processes=3)
    with pytest.raises(PlrcError, match=r"^1 training image is too few: a batch needs at least two; add images$"):
        adapt(small, images=1)


def test_schedules() -> None:
    config = Config().with_values({"optim.warmup_epochs": 2.0, "optim.lr": 1.0})
    rates = [schedule.learning_rate(config.optim, s, 100, 5) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    o = config.objectives
    assert schedule.teacher_temperature(o, 0, 100) == pytest.approx(0.04)
    assert schedule.teacher_temperature(o, 15, 100) == pytest.approx(0.055)
    assert schedule.teacher_temperature(o, 30, 100) == schedule.teacher_temperature(o, 99, 100) == pytest.approx(0.07)
    cosine = config.with_values({"optim.teacher_schedule": "cosine"}).optim
    assert schedule.teacher_momentum(cosine, 0, 10) == pytest.approx(0.999)
    assert schedule.teacher_momentum(cosine, 10, 10) == 1.0


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_every_image_once_an_epoch_over_processes_and_parts(world: int, accumulate: int) -> None:
    def keys(rank: int, start: int = 0) -> list[list[tuple[int, int]]]:
        return list(StepSampler(40, 12, accumulate, 7, start, 6, rank, world))

    everything = [key for rank in range(world) for part in keys(rank) for key in part]
    for epoch in (0, 1):
        seen = [index for e, index in everything if e == epoch]
        assert len(seen) == len(set(seen)) == 36
    assert keys(0, start=4) == keys(0)[4 * accumulate :]
    joined = [key for part in StepSampler(40, 12, 1, 7, 0, 1) for key in part]
    first = [key for part in range(accumulate) for rank in range(world) for key in keys(rank)[part]]
    assert first == joined


def test_held_out_images_are_few_and_stable() -> None:
    names = [f"{i}.jpg" for i in range(100)]
    train, held = split_held_out(names, 64, seed=1)
    assert len(held) == 10 and sorted([*train, *held]) == list(range(100))
    assert (split_held_out(names, 64, seed=1)[1] == held).all() and len(split_held_out(names[:9], 64, 0)[1]) == 0


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (12, 4), (3, 8), (7, 7)])
def test_queue_wraps_around_and_keeps_the_newest(size: int, batch: int) -> None:
    queue = KeyQueue(size, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(size))
    pushed: list[torch.Tensor] = []
    for i in range(9):
        keys = torch.full((batch, 2), float(i * 100)) + torch.arange(batch)[:, None]
        queue.push(keys, torch.tensor(i != 4))
        pushed += list(keys) if i != 4 else []
    newest = torch.stack(pushed[-size:])
    assert sorted(queue.keys[:, 0].tolist()) == sorted(newest[:, 0].tolist())


def test_feature_statistics_in_closed_cases() -> None:
    same = F.normalize(torch.ones(50, 8), dim=1)
    assert feature_statistics(same)[0] == pytest.approx(0, abs=1e-5)
    line = F.normalize(torch.tensor([[1.0, 0, 0, 0]] * 10 + [[-1.0, 0, 0, 0]] * 10), dim=1)
    assert feature_statistics(line)[1] == pytest.approx(1, abs=1e-3)
    random = F.normalize(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    std, rank = feature_statistics(random)
    assert std == pytest.approx(1, abs=0.02) and rank == pytest.approx(16, abs=0.3)


def test_health_alarms_speak_only_when_they_must() -> None:
    good = [Health(s, 0.5, 20, 0.4, 0.04) for s in (0, 1, 2)]
    assert alarms(good) == [] and not should_stop(good)
    bad = Health(3, 0.001, 1.1, 0.04, 0.04)
    assert any("collapsed" in w for w in alarms([*good, bad])) and not should_stop([*good, bad])
    assert should_stop([*good, bad, bad])
    assert any("chance level" in w for w in alarms([*good, Health(3, 0.5, 20, 0.05, 0.04)]))
    assert any("effective rank fell" in w for w in alarms([*good, Health(3, 0.5, 3, 0.4, 0.04)]))


def test_features_that_hardly_vary_before_training_are_no_collapse() -> None:
    flat = [Health(step, 0.2, 1.3, 0.4, 0.04) for step in (0, 10, 20)]
    assert ["initial weights" in sentence for sentence in alarms(flat[:1])] == [True]
    assert alarms(flat) == [] and not should_stop(flat)
    flatter = [Health(step, 0.2, 1.1, 0.4, 0.04) for step in (30, 40)]
    assert should_stop([*flat, *flatter]) and "collapsed" in alarms([*flat, *flatter])[0]


def test_metrics_after_the_restored_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(5)) + '{"step": 5, "los')
    cut_lines(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_the_error_for_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(PlrcError, match=r"write one of paper_r50, .* \(did you mean small_r18\?\)$"):
        preset("smal_r18")
    with pytest.raises(PlrcError, match=r"adapt$"):
        preset("xyz")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", get_args(Method))
def test_presets_round_trip_and_methods_differ_only_in_terms(name: str, method: str, tmp_path: Path) -> None:
    config = preset(name, method)
    config.save(tmp_path / "c.toml")
    assert Config.load(tmp_path / "c.toml") == config
    changed = {n for n, _, _ in config.differences(preset(name))}
    terms = {"image_weight", "point_weight", "distill_weight", "contrast"}
    assert changed <= {"method", *(f"objectives.{term}" for term in terms)}
    assert math.isfinite(config.optim.lr)
