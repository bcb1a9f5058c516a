"""Every family of timm networks that the documentation names: trained, exported, proven and probed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.export.runs import small_config

import plrc
from plrc.scenes import write_scenes
from plrc.transfer.dense import dense_probe
from plrc.transfer.protocols import LabelledConfig

timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
QUICK = {  # one of each way to read a network: name -> (stride, size of views)
    "test_efficientnet": (16, 32),
    "test_mambaout": (16, 64),
    "test_vit": (16, 32),
}
SLOW = {
    "resnet10t": (16, 32),
    "convnext_atto": (16, 32),
    "mobilenetv3_small_050": (16, 32),
    "mobilenetv4_conv_small_035": (16, 32),
    "regnety_002": (16, 32),
    "hgnetv2_b0": (16, 32),
    "fastvit_t8": (16, 32),
    "edgenext_xx_small": (16, 32),
    "swin_tiny_patch4_window7_224": (16, 32),
    "swinv2_cr_tiny_ns_224": (16, 64),
    "swinv2_tiny_window8_256": (16, 32),
    "test_maxvit": (16, 160),
    "mvitv2_tiny": (16, 32),
    "vit_tiny_patch16_224": (16, 32),
    "test_vit2": (16, 32),
    "vit_small_patch14_reg4_dinov2": (14, 28),
    "vit_small_patch16_dinov3": (16, 32),
}
FAMILIES = [(name, *values) for name, values in QUICK.items()]
FAMILIES += [pytest.param(name, *values, marks=pytest.mark.slow) for name, values in SLOW.items()]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    write_scenes(root, {"train": 3, "test": 1}, seed=0, size=64)
    return root


@pytest.mark.parametrize(("name", "stride", "size"), FAMILIES)
def test_a_family_is_trained_exported_proven_and_probed(
    name: str, stride: int, size: int, scenes: Path, labelled: Path, tmp_path: Path
) -> None:
    changes = {
        "model.strides": (stride,),
        "model.layer4_stride": 2,
        "views.size": size,
        "optim.batch_size": 4,
        "objectives.reference_grid": 4,
        "run.checkpoint_every_steps": 1,
        "run.keep_checkpoints": 0,
        "run.report_every_minutes": 0,
    }
    run = plrc.pretrain(small_config(scenes, tmp_path / "run", f"timm:{name}", **changes))
    assert run.finished
    first, last = (
        torch.load(path, weights_only=True)["student"] for path in sorted((run.path / "checkpoints").glob("step_*.pt"))
    )
    moved = [key for key in last if key.startswith("backbone.") and not torch.equal(first[key], last[key])]
    assert len(moved) > 0.4 * len([key for key in last if key.startswith("backbone.")])
    receipt = plrc.export_backbone(run.path, "timm", tmp_path / "weights.safetensors")
    assert receipt.largest_difference is not None and receipt.largest_difference <= receipt.tolerance
    assert not receipt.note and receipt.networks
    (result,) = dense_probe(
        LabelledConfig(source=str(labelled)), [str(tmp_path / "weights.safetensors")], "", 64, 2, 0, levels=(stride,)
    )
    assert list(result.miou) == [stride]
