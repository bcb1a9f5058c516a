"""Files as other tools write them: each is taken for what it is, with the copy that was trained."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from plrc.model.backbone import Backbone, build_backbone
from plrc.model.weights import load_into, read_weights
from plrc.transfer.initial import initial_backbone

State = dict[str, Tensor]


def state_of(network: nn.Module, prefix: str = "") -> State:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(1)
    return resnet18(weights=None)


@pytest.fixture(scope="module")
def averaged() -> nn.Module:
    """The averaged copy that many tools keep; it must not be taken."""
    torch.manual_seed(2)
    return resnet18(weights=None)


@pytest.fixture(scope="module")
def start() -> Backbone:
    torch.manual_seed(3)
    return build_backbone("resnet18")


def sequence(network: nn.Module) -> nn.Sequential:
    """As lightly's tutorials cut a ResNet."""
    return nn.Sequential(*list(network.children())[:-1])


def compiled(network: nn.Module) -> State:
    return torch.compile(copy.deepcopy(network)).state_dict()  # type: ignore[no-any-return,attr-defined]


def files(net: nn.Module, ema: nn.Module) -> dict[str, tuple[Any, str]]:
    """{tool: (content of its file, prefix that is expected)}."""
    head = {"head.weight": torch.ones(3, 3)}
    return {
        "torchvision": (state_of(net), ""),
        "state_dict": ({"state_dict": state_of(net), "epoch": 3}, "state_dict."),
        "torchvision reference": (
            {"model": state_of(net), "model_ema": state_of(ema, "module."), "epoch": 3},
            "model.",
        ),
        "DataParallel": (state_of(net, "module."), "module."),
        "timm": ({"state_dict": state_of(net), "state_dict_ema": state_of(ema), "arch": "resnet18"}, "state_dict."),
        "teacher alone": ({"teacher": state_of(net)}, "teacher."),
        "ema alone": ({"ema": state_of(net)}, "ema."),
        "Lightning": ({"state_dict": state_of(net, "model."), "pytorch-lightning_version": "2.5"}, "state_dict.model."),
        "DINO": (
            {
                "student": state_of(net, "module.backbone.") | {"module.head.last.weight": torch.ones(2)},
                "teacher": state_of(ema, "backbone.") | {"head.last.weight": torch.ones(2)},
            },
            "student.module.backbone.",
        ),
        "MoCo": (
            {
                "state_dict": state_of(net, "module.encoder_q.")
                | state_of(ema, "module.encoder_k.")
                | {"module.queue": torch.ones(8, 4)},
                "arch": "resnet18",
            },
            "state_dict.module.encoder_q.",
        ),
        "MoCo v3": (
            {"state_dict": state_of(ema, "module.momentum_encoder.") | state_of(net, "module.base_encoder.")},
            "state_dict.module.base_encoder.",
        ),
        "DenseCL, OpenSelfSup, mmpretrain": (
            {"meta": {"epoch": 1}, "state_dict": state_of(net, "backbone.") | head},
            "state_dict.backbone.",
        ),
        "lightly": (
            {"state_dict": state_of(sequence(net), "backbone.") | state_of(sequence(ema), "backbone_momentum.") | head},
            "state_dict.backbone.",
        ),
        "lightly, sequence alone": (state_of(sequence(net)), ""),
        "torch.compile": (compiled(net), "_orig_mod."),
        "torch.compile in Lightning": (
            {"state_dict": {f"model.{name}": tensor for name, tensor in compiled(net).items()}},
            "state_dict.model._orig_mod.",
        ),
    }


TOOLS = tuple(files(nn.Identity(), nn.Identity()))


@pytest.mark.parametrize("tool", TOOLS)
def test_the_trained_network_of_each_tool_is_taken(
    tool: str, trained: nn.Module, averaged: nn.Module, start: Backbone, tmp_path: Path
) -> None:
    content, prefix = files(trained, averaged)[tool]
    torch.save(content, tmp_path / "w.pth")
    target = copy.deepcopy(start)
    report = load_into(target, read_weights(tmp_path / "w.pth"))
    assert (report.prefix, report.complete, len(report.matched)) == (prefix, True, 120)
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.net.state_dict().items())
    assert initial_backbone(str(tmp_path / "w.pth"))[1].backbone == "resnet18"


def test_the_copy_that_was_taken_is_named(
    trained: nn.Module, averaged: nn.Module, start: Backbone, tmp_path: Path
) -> None:
    content, _ = files(trained, averaged)["DINO"]
    torch.save(content, tmp_path / "w.pth")
    report = load_into(copy.deepcopy(start), read_weights(tmp_path / "w.pth"))
    (warning,) = report.warnings
    assert warning == (
        f"{tmp_path / 'w.pth'} holds 2 copies of resnet18; student.module.backbone. was taken, not teacher.backbone.; "
        "to take another, save it alone"
    )


@pytest.mark.parametrize(
    ("author", "warned"), [("Detectron2 Model Zoo", True), ("Caffe2", True), ("torchvision", False)]
)
def test_files_of_caffe_style_networks_are_named(
    author: str, warned: bool, trained: nn.Module, start: Backbone, tmp_path: Path
) -> None:
    arrays = {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": author}))
    report = load_into(copy.deepcopy(start), read_weights(tmp_path / "w.pkl"))
    assert report.complete and bool(report.warnings) == warned
    if warned:
        (warning,) = report.warnings
        assert warning.startswith(f"{tmp_path / 'w.pkl'} is marked as a file of {author}: most of its ResNets")
        assert "blue-green-red" in warning and "stride in the 1 x 1" in warning


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_mambaout", "test_efficientnet", "resnet10t"])
def test_files_of_timms_plain_networks(name: str, tmp_path: Path) -> None:
    """timm's own checkpoints have the plain network's names, also where `features_only` has others (ConvNeXt)."""
    timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    torch.save({"state_dict": state_of(plain), "arch": name}, tmp_path / "w.pth")
    backbone, initial = initial_backbone(str(tmp_path / "w.pth"), f"timm:{name}")
    assert initial.report is not None and initial.report.complete
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = backbone.eval()(images)
        theirs = plain.forward_intermediates(images, norm=name == "test_vit", intermediates_only=True)
    coarsest = max(features)
    torch.testing.assert_close(features[coarsest], theirs[-1])
