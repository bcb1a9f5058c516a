"""Export to timm: a run with a timm backbone trains, exports under timm's names, and loads there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import plrc
from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint
from plrc.errors import PlrcError
from plrc.export import BACKBONE_PREFIX, TARGETS, default_target, export_backbone
from plrc.export.proof import prove

timm = pytest.importorskip("timm", reason="needs the extra timm")
NAME = "resnet10t"


@pytest.fixture(scope="module")
def student() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = timm.create_model(NAME, features_only=True)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 64, 64) * 2 + 1)
    state: dict[str, torch.Tensor] = net.state_dict()
    return state


def test_a_run_hands_itself_over_to_timm(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(model__backbone=f"timm:{NAME}", model__layer4_stride=2, optim__steps=2, objectives__reference_grid=4)
    run = plrc.pretrain(config)
    file = run.path / "exported" / "backbone.safetensors"
    net = timm.create_model(NAME, features_only=True)
    net.load_state_dict(safetensors.torch.load_file(file))
    checkpoint = newest_checkpoint(run.path)
    assert checkpoint is not None
    student = load_checkpoint(checkpoint)["student"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, student[BACKBONE_PREFIX + name])
    receipt = json.loads(file.with_name(file.name + ".receipt.json").read_text())
    assert receipt["target"] == f"timm {timm.__version__}"
    assert receipt["tensors"] == len(net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    ours = plrc.load_backbone(file)(images)
    with torch.no_grad():
        theirs = dict(zip(net.feature_info.reduction(), net.eval()(images), strict=True))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[s], theirs[s], atol=1e-6) for s in ours)
    with pytest.raises(PlrcError, match="torchvision has no timm:resnet10t"):
        export_backbone(run.path, "torchvision", tmp_path / "wrong.safetensors")
    assert not (tmp_path / "wrong.safetensors").exists()


def test_a_file_that_differs_from_the_run_is_refused(tmp_path: Path, student: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "file.pt"
    torch.save(student, file)
    assert prove(TARGETS["timm"], file, f"timm:{NAME}", student).tensors == len(student)
    name = next(iter(student))
    torch.save(student | {name: student[name] + 1e-7}, file)
    with pytest.raises(PlrcError, match="the file differs from the run in 1 tensors"):
        prove(TARGETS["timm"], file, f"timm:{NAME}", student)
    short = {key: value for key, value in student.items() if key != name}
    torch.save(short, file)
    with pytest.raises(PlrcError, match="is not a timm:resnet10t"):
        prove(TARGETS["timm"], file, f"timm:{NAME}", short)


def test_each_backbone_knows_its_library() -> None:
    assert default_target("resnet50") == "torchvision"
    assert default_target("timm:resnet50.a1_in1k") == default_target("timm:convnext_atto") == "timm"
    assert default_target("package.module:function") == "safetensors"
    with pytest.raises(PlrcError, match="timm has no package"):
        TARGETS["timm"].rename("package.module:function", {})
