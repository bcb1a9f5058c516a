"""Starting from given weights, and going on when their file is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint
from plrc.engine.pretrain import pretrain
from plrc.errors import PlrcError, RunError
from plrc.model.backbone import build_backbone

Tiny = Callable[..., Config]


def test_a_warm_start_goes_on_without_its_file(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build_backbone("resnet18").net.state_dict(), tmp_path / "given.pt")
    config = tiny(model__init=str(tmp_path / "given.pt"), optim__steps=1)
    run = pretrain(config)
    (tmp_path / "given.pt").unlink()
    longer = config.with_values({"optim.steps": 2, "run.resume": True, "run.allow_changes": True})
    assert pretrain(longer).step == 2
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    first, second, third = (line["drift"] for line in lines if line["kind"] == "health")
    assert first == 0 < second < third < 1
    assert (run.path / "log.txt").read_text().count("warm start from") == 1


@pytest.mark.parametrize(
    "change",
    [{"objectives.queue": 8}, {"objectives.center": True}, {"objectives.distill_weight": 0.0}, {"optim.name": "sgd"}],
)
def test_settings_that_do_not_fit_the_checkpoint_leave_the_run_as_it_was(tiny: Tiny, change: dict[str, object]) -> None:
    config = tiny(optim__steps=1)
    run = pretrain(config)
    settings = (run.path / "config.toml").read_bytes()
    longer = config.with_values({"optim.steps": 2, "run.resume": True, "run.allow_changes": True})
    with pytest.raises(RunError, match=r"values that they have in the run's config\.toml, or start a new run with"):
        pretrain(longer.with_values(change))
    assert (run.path / "config.toml").read_bytes() == settings
    assert pretrain(longer).step == 2


def test_other_start_weights_are_refused_once_a_run_has_begun(tiny: Tiny) -> None:
    config = tiny(optim__steps=1)
    pretrain(config)
    more = {"optim.steps": 2, "run.resume": True, "run.allow_changes": True, "model.init": "pretrained"}
    with pytest.raises(RunError, match="has already been trained from random weights: resume without changing model"):
        pretrain(config.with_values(more))


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match=r"absent\.pt: it does not exist; make one with: plrc pretrain$"):
        load_checkpoint(tmp_path / "absent.pt")
