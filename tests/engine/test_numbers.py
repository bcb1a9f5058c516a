"""NaN and infinity put into real runs: skipped, counted, then back to a good checkpoint at a lower rate, then the end.

The faults are put in from outside, by wrapping one function of the loop: the product has no hook for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.runs import after_steps, assert_same_end, final, metrics, power_cut
from torch import Tensor

from plrc.config import Config
from plrc.engine import recovery
from plrc.engine.checkpoint import checkpoints, load_checkpoint
from plrc.engine.learner import Learner, StepOutput
from plrc.engine.pretrain import pretrain
from plrc.engine.recovery import LOWERED, non_finite
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError

Tiny = Callable[..., Config]
RESUME = {"run.resume": True}
SGD = {"optim__name": "sgd", "optim__lr": 0.01}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> int:
    """Four skipped steps in a row end patience."""
    monkeypatch.setattr(recovery, "MAX_SKIPPED_IN_A_ROW", 4)
    return 4


def poison(monkeypatch: pytest.MonkeyPatch, touch: Callable[[TrainingState, float], None]) -> None:
    """Call `touch(state, lr)` before every update, that is between the gradient and the weights."""
    original = TrainingState.update

    def update(self: TrainingState, outcomes: list[StepOutput], lr: float, momentum: float) -> tuple[Tensor, Tensor]:
        touch(self, lr)
        return original(self, outcomes, lr, momentum)

    monkeypatch.setattr(TrainingState, "update", update)


def gradients_explode(state: TrainingState, lr: float) -> None:
    """Once the rate has fallen below 0.9 of its peak, until it is below a tenth: a curve that runs into a cliff."""
    if LOWERED * SGD["optim__lr"] < lr < 0.9 * SGD["optim__lr"]:  # type: ignore[operator]
        next(state.learner.student.parameters()).grad[0] = float("inf")  # type: ignore[index]


def log(out: str | Path) -> str:
    return (Path(out) / "log.txt").read_text()


def all_finite(out: str | Path) -> bool:
    return all(non_finite(load_checkpoint(path)) == "" for path in checkpoints(Path(out)))


def test_a_loss_that_is_not_finite_is_skipped_and_counted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """At steps 2 to 4, each in another way."""
    original, factors = Learner.total_loss, iter([1.0, math.nan, math.inf, -math.inf, 1.0])
    monkeypatch.setattr(Learner, "total_loss", lambda *given: original(*given) * next(factors))
    run = pretrain(tiny(**SGD, optim__steps=5))
    lines = metrics(run.path)
    assert run.finished and [line["skipped_steps"] for line in lines] == [0, 1, 1, 1, 0]
    assert [line["point_kl"] is None for line in lines] == [False, True, True, True, False]  # no mean of nothing
    assert log(run.path).count("skipped: their gradient was not finite") == 3 and all_finite(run.path)


@pytest.mark.slow
def test_back_to_the_last_good_checkpoint_once_with_a_lower_rate(
    tiny: Tiny, impatient: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint every third step. Steps up to 4 count, the next are skipped, and at step 8 (a multiple of four, with
    four skipped ones before it) the run goes back: to step 3, since 6 was saved between skipped ones.

    Killed before, in between and after going back, it comes to the same end.
    """
    poison(monkeypatch, gradients_explode)
    config = tiny(**SGD, optim__steps=16, run__checkpoint_every_steps=3)
    run = pretrain(config)
    rates = [line["lr"] for line in metrics(run.path)]
    assert run.finished and len(rates) == 16 and not any(line["skipped_steps"] for line in metrics(run.path))
    said = [line[20:] for line in log(run.path).splitlines() if "back to" in line or "of the scheduled" in line]
    assert len(said) == 2 and said[1] == "the learning rate is 0.1 of the scheduled one"
    sentence = "at step 8 the last 4 gradients were not finite: back to step_00000003.pt with 10% of the learning rate"
    assert said[0] == f"warning: {sentence}"
    assert rates[3] == pytest.approx(rates[2] * LOWERED, rel=0.2)
    assert final(run.path)["lr_factor"] == LOWERED and all_finite(run.path)

    again = config.with_values(RESUME | {"run.out": f"{config.run.out}-killed"})
    for steps in (7, 4):  # between skipped ones, at step 7; after going back, at step 5 on its second way
        with after_steps(steps, power_cut), pytest.raises(RuntimeError, match="power cut"):
            pretrain(again)
    assert pretrain(again).finished and log(again.run.out).count(": back to step_") == 1
    assert_same_end(run.path, again.run.out)


@pytest.mark.slow
def test_where_it_recurs_the_run_stops_with_the_last_good_state(
    tiny: Tiny, impatient: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def touch(state: TrainingState, lr: float) -> None:
        nonlocal steps
        steps += 1
        if steps > 3:
            next(state.learner.student.parameters()).grad[0] = float("nan")  # type: ignore[index]

    poison(monkeypatch, touch)
    config = tiny(**SGD, optim__steps=40, run__checkpoint_every_steps=2)
    sentence = r"^stopped at step 8: the last 6 gradients were not finite; start again with a lower optim\.lr, or with"
    with pytest.raises(PlrcError, match=sentence):
        pretrain(config)
    assert log(config.run.out).count("back to step_00000002.pt with 10%") == 1
    assert final(config.run.out)["lr_factor"] == LOWERED and all_finite(config.run.out)
    with pytest.raises(PlrcError, match=r"^stopped at step \d+: the last \d+ gradients were not finite"):
        pretrain(config.with_values(RESUME))


def test_without_a_checkpoint_the_run_stops(tiny: Tiny, impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Learner.total_loss
    monkeypatch.setattr(Learner, "total_loss", lambda *given: original(*given) * math.nan)
    config = tiny(**SGD, optim__steps=40)
    with pytest.raises(PlrcError, match=r"^stopped at step 4: the last 4 gradients were not finite; start again"):
        pretrain(config)
    assert not checkpoints(Path(config.run.out))


@pytest.mark.parametrize("recurs", [False, True])
def test_weights_that_are_not_finite_are_never_saved(tiny: Tiny, recurs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight becomes NaN although its gradient was finite, after step 3; the next save, at 4, finds it."""
    steps = 0

    def touch(state: TrainingState, lr: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 4 or (recurs and steps > 4):
            with torch.no_grad():
                next(state.learner.student.parameters())[0] = math.nan
            state.learner.student.zero_grad()

    poison(monkeypatch, touch)
    config = tiny(**SGD, optim__steps=6, run__checkpoint_every_steps=2, run__health_every_steps=100)
    if recurs:
        with pytest.raises(PlrcError, match=r"^stopped at step 4: student\.\S+ is not finite and was not saved; start"):
            pretrain(config)
    else:
        assert pretrain(config).finished
    assert "at step 4 student." in log(config.run.out) and "back to step_00000002.pt" in log(config.run.out)
    assert all_finite(config.run.out)
