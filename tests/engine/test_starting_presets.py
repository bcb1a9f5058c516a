"""The presets that start from weights or learn from a teacher: a few real steps of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.engine.runs import metrics
from tests.tiny import TINY

from plrc.engine.pretrain import pretrain
from plrc.model import build_backbone
from plrc.presets import preset

NETWORKS = {"distill_r18": "resnet18", "distill_r50": "resnet50", "adapt": "resnet18"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    save_file(build_backbone("resnet18").net.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_few_steps(name: str, scenes: Path, tmp_path: Path, weights: Path) -> None:
    values = {
        **TINY,
        "data.source": str(scenes),
        "data.held_out": 4,
        "run.out": str(tmp_path / "run"),
        "run.log_every_steps": 1,
        "optim.steps": 2,
        "teacher.size": 64,
    }
    values |= {"model.init": str(weights)} if name == "adapt" else {
        "teacher.backbone": "resnet18", "teacher.init": str(weights)
    }  # fmt: skip
    config = preset(name).with_values(values)
    assert config.model.backbone == NETWORKS[name]
    run = pretrain(config)
    terms = {key.removesuffix("_loss") for key in metrics(run.path)[0] if key.endswith("_loss")}
    assert terms == {"frozen"}
    log = (run.path / "log.txt").read_text()
    assert ("keep their" in log) == (config.model.largest_stride < 32)


def test_levels_above_the_trained_ones_are_named(scenes: Path, tmp_path: Path) -> None:
    values = {**TINY, "data.source": str(scenes), "run.out": str(tmp_path / "run"), "optim.steps": 1}
    run = pretrain(preset("debug_cpu").with_values(values | {"model.strides": (8,)}))
    sentence = "the layers of stride 16, 32 keep their random weights, as model.strides ends at 8"
    assert sentence in (run.path / "log.txt").read_text()
