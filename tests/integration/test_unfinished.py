"""What an export says of a run that is not finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from plrc.config import Config
from plrc.engine.checkpoint import newest_checkpoint
from plrc.engine.pretrain import pretrain
from plrc.export import export_backbone


def test_the_receipt_tells_how_far_the_run_is(tiny: Callable[..., Config], tmp_path: Path) -> None:
    settings = {"optim.steps": 0, "optim.epochs": 0.4, "run.checkpoint_every_steps": 1, "run.keep_checkpoints": 0}
    run = pretrain(tiny().with_values(settings))  # 44 images in batches of 8: 5 steps an epoch
    newest = newest_checkpoint(run.path)
    assert newest and newest.name == "step_00000002.pt"
    first = export_backbone(newest.with_name("step_00000001.pt"), out=tmp_path / "first.safetensors")
    assert " at step 1 of 2 (the run is not finished), all equal in torchvision " in first.line()
    assert json.loads((tmp_path / "first.safetensors.receipt.json").read_text())["steps"] == 2
    assert " at step 2, all equal in torchvision " in export_backbone(run.path).line()
    alone = tmp_path / "alone.pt"
    alone.write_bytes(newest.with_name("step_00000001.pt").read_bytes())
    assert " at step 1, all equal" in export_backbone(alone, out=tmp_path / "alone.safetensors").line()
