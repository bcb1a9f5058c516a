"""What a GPU must compute as a CPU does; DEVICE=cpu tries the tests themselves.

They are not part of the test suite: `run.sh checks` runs them.
"""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.step import Setting, make_batch
from tests.tiny import TINY

from plrc.config import Config
from plrc.engine.pretrain import pretrain
from plrc.files import read_json_lines
from plrc.presets import preset
from plrc.scenes import write_scenes

DEVICE = os.environ.get("DEVICE", "cuda")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("device") / "scenes"
    write_scenes(folder, {"train": 48}, size=64)
    return str(folder / "train" / "images")


def config(**changes: Any) -> Config:
    settings = TINY | {"run.device": DEVICE} | {name.replace("__", "."): value for name, value in changes.items()}
    return preset("debug_cpu").with_values(settings)


def loss_and_gradient(device: str) -> tuple[float, float]:
    """Return the loss of the first step in float32, and the norm of its gradient."""
    settings = config(optim__precision="float32", optim__batch_size=16)
    setting = Setting(settings, make_batch(settings).to(torch.device(device)), torch.device(device))
    learner = setting.learner
    temperature = settings.objectives.teacher_temperature
    output = learner.compute_terms(setting.batch, learner.student, setting.order, temperature)
    loss = learner.total_loss(output.terms)
    loss.backward()
    norms = [weight.grad.norm() for weight in learner.student.parameters() if weight.grad is not None]
    return float(loss.detach()), float(torch.stack(norms).norm())


def test_a_step_is_that_of_a_cpu() -> None:
    loss, gradient = loss_and_gradient(DEVICE)
    expected_loss, expected_gradient = loss_and_gradient("cpu")
    assert loss == pytest.approx(expected_loss, rel=0.005)
    assert gradient == pytest.approx(expected_gradient, rel=0.02)


def point_losses(run: Path) -> list[float]:
    lines = read_json_lines(run / "metrics.jsonl")
    return [line["point_kl"] for line in lines if line["kind"] == "train"]


def stop_at_step_10(done: int, total: int, line: str = "") -> None:
    if done == 10:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_learns_and_continues_after_a_stop(images: str, tmp_path: Path) -> None:
    whole_run = config(
        data__source=images,
        optim__precision="bfloat16" if DEVICE != "cpu" else "float32",  # many CPUs are slow in bfloat16
        optim__steps=30,
        run__workers=2,
        run__log_every_steps=1,
        run__out=str(tmp_path / "whole"),
        run__resume=True,
    )
    stopped_run = whole_run.with_values({"run.out": str(tmp_path / "parts")})
    whole = pretrain(whole_run)
    losses = point_losses(whole.path)
    assert whole.finished and len(losses) == 30 and all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert pretrain(stopped_run, on_progress=stop_at_step_10).step == 10
    assert pretrain(stopped_run).finished
    continued = point_losses(Path(stopped_run.run.out))
    assert sum(continued[-5:]) == pytest.approx(sum(losses[-5:]), rel=0.05)


@pytest.mark.skipif(DEVICE == "cpu", reason="compiling for a CPU takes minutes")
def test_a_compiled_network_learns(images: str, tmp_path: Path) -> None:
    run = pretrain(config(data__source=images, optim__compile=True, optim__steps=3, run__out=str(tmp_path / "run")))
    assert run.finished and all(math.isfinite(loss) for loss in point_losses(run.path))
