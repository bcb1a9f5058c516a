"""The time budget: the schedule ends with the time, also after a stop; all processes have the same time."""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.runs import after_steps, final, metrics

import plrc
from plrc import distributed
from plrc.config import Config, OptimConfig
from plrc.engine import budget as module
from plrc.engine.adapt import adapt
from plrc.engine.budget import TimeBudget, steps_of_run
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint
from plrc.engine.pretrain import pretrain
from plrc.engine.schedule import learning_rate, teacher_momentum, teacher_temperature
from plrc.errors import ConfigError
from plrc.presets import preset
from plrc.visualize.report import run_section

Tiny = Callable[..., Config]


def a_second_per_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the clock is a second later than the last; a step reads it once."""
    readings = itertools.count()
    monkeypatch.setattr(module.time, "process_time", lambda: float(next(readings)))


def test_the_schedule_ends_when_the_time_ends(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight seconds are eight steps; learning rate and temperature are those of a run of eight steps."""
    a_second_per_reading(monkeypatch)
    by_time = tiny(optim__hours=8 / 3600, optim__clock="cpu", optim__warmup_epochs=0.0)
    run = plrc.pretrain(by_time)
    assert run.finished and run.step == 8
    lines = metrics(run.path)
    expected = [learning_rate(tiny().optim, step, 8, 5) for step in range(8)]
    assert [line["lr"] for line in lines] == pytest.approx(expected)
    assert [line["seconds_used"] for line in lines] == list(range(1, 9))
    assert run_section(run.path)["progress"] == "finished: all 8 steps"
    assert '"steps": 8' in (run.path / "exported" / "backbone.safetensors.receipt.json").read_text()
    again = pretrain(by_time.with_values({"run.resume": True}))
    assert again == run and "nothing left to do: the run is finished, at step 8" in (run.path / "log.txt").read_text()


def test_a_resumed_run_has_the_rest_of_the_time(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    a_second_per_reading(monkeypatch)
    config = tiny(optim__hours=8 / 3600, optim__clock="cpu", run__resume=True)
    with after_steps(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        run = pretrain(config)
    assert not run.finished and run.step == 3 and final(run.path)["seconds_used"] == 3
    text = (run.path / "log.txt").read_text()
    assert "0:08 of cpu time left" in text and "stopped at step 3 and saved" in text
    run = pretrain(config)
    assert run.finished and run.step == 8 and "0:05 of cpu time left" in (run.path / "log.txt").read_text()
    assert [line["lr"] for line in metrics(run.path)] == pytest.approx(
        [learning_rate(tiny().optim, step, 8, 5) for step in range(8)]
    )


def test_steps_that_take_longer_end_the_schedule_earlier() -> None:
    budget = TimeBudget(OptimConfig(hours=100 / 3600))
    assert budget.expected_steps(0, 7) == math.inf and not budget.is_over
    budget.used = 20.0
    assert budget.expected_steps(10, 7) == 50 and budget.seconds_left == pytest.approx(80)
    budget.used = 60.0
    assert budget.expected_steps(15, 7) == 25
    budget.used = 101.0
    assert budget.is_over and budget.expected_steps(30, 7) == 30
    none = TimeBudget(OptimConfig())
    none.update()
    assert (none.expected_steps(3, 7), none.is_over, none.used) == (7, False, 0)


def test_every_schedule_is_defined_before_the_first_step_and_ends_with_the_time() -> None:
    config = preset("small_r18").with_values({"optim.hours": 1.0, "optim.teacher_schedule": "cosine"})
    optim = config.optim
    assert 0 < learning_rate(optim, 0, math.inf, 1000) < optim.lr / 1000  # the warm-up of five epochs
    assert teacher_momentum(optim, 0, math.inf) == optim.teacher_momentum
    assert teacher_temperature(config.objectives, 0, math.inf) == config.objectives.teacher_temperature_start
    assert learning_rate(optim, 10, 100, 1000) == optim.lr  # after a tenth of the time, not after five epochs
    assert learning_rate(optim, 100, 100, 1000) == pytest.approx(0)
    assert teacher_momentum(optim, 100, 100) == 1
    assert teacher_temperature(config.objectives, 100, 100) == pytest.approx(config.objectives.teacher_temperature)


def test_no_setting_is_adapted_to_an_unknown_length() -> None:
    config, changes = adapt(preset("small_r18").with_values({"optim.hours": 1.0}), images=100)
    assert not {"optim.epochs", "optim.teacher_momentum", "optim.warmup_epochs"} & {change.name for change in changes}
    assert steps_of_run(config, 100, 0, 0.0) == 0 and steps_of_run(config, 100, 10, 360.0) == 100


def test_all_processes_have_the_time_of_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over processes holds the main process's seconds alone."""
    sent: list[float] = []

    def join(seconds: torch.Tensor) -> torch.Tensor:
        sent.append(float(seconds))
        return torch.tensor(5.0)

    a_second_per_reading(monkeypatch)
    monkeypatch.setattr(distributed, "sum_over_processes", join)
    for is_main in (True, False):
        monkeypatch.setattr(distributed, "is_main", lambda answer=is_main: answer)
        budget = TimeBudget(OptimConfig(hours=1.0, clock="cpu"))
        budget.start()
        budget.update()
        assert budget.used == 5
    assert sent == [1.0, 0.0]


def test_a_checkpoint_from_before_the_budget_can_be_read(tiny: Tiny, tmp_path: Path) -> None:
    run = pretrain(tiny(optim__steps=1))
    path = newest_checkpoint(run.path)
    assert path is not None
    saved = load_checkpoint(path)
    old = {name: value for name, value in saved.items() if name != "seconds_used"}
    torch.save(old | {"format": 3}, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt").keys() == saved.keys()


def test_bad_budgets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.hours must be >= 0, got -1"):
        OptimConfig(hours=-1.0)
    with pytest.raises(ConfigError, match=r"optim\.epochs, optim\.steps or optim\.hours must be > 0"):
        OptimConfig(epochs=0.0)
