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
from plrc.errors import PlrcError
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


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match=r"absent\.pt: it does not exist; make one with: plrc pretrain$"):
        load_checkpoint(tmp_path / "absent.pt")
