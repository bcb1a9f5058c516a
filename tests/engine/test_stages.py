"""Which parameters are trained and at which rate: stages of any network, frozen ones, groups of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.engine.runs import after_steps, assert_same_end, final, metrics, power_cut
from torch import nn

from plrc.config import Config
from plrc.config.training import OptimConfig
from plrc.engine.optim import build_optimizer, guarded_step, restore_optimizer
from plrc.engine.pretrain import pretrain
from plrc.engine.state import TrainingState
from plrc.errors import ConfigError, RunError
from plrc.model import build_backbone
from plrc.model.stages import choose_trained, norm_parameters, stages_of

Tiny = Callable[..., Config]
CPU = torch.device("cpu")

OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Conv2d(8, 8, 2, 2)  # listed first, used last
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.GroupNorm(2, 8)
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        fine = self.norm(self.stem(images))
        return {4: fine, 8: self.top(fine)}


def build():
    return Net()
"""


def test_stages_of_a_resnet() -> None:
    backbone = build_backbone("resnet18")
    backbone.net.layer2.eval()  # type: ignore[operator]
    before = torch.get_rng_state()
    stages = stages_of(backbone, 64, 16)
    assert torch.equal(before, torch.get_rng_state())
    assert backbone.training and not backbone.net.layer2.training
    assert float(backbone.net.bn1.num_batches_tracked) == 0  # type: ignore[arg-type,union-attr]
    places = {"conv1": 0, "bn1": 0, "layer1": 0, "layer2": 1, "layer3": 2}
    expected = {}
    for name, _ in backbone.named_parameters():
        part = name.split(".")[1]
        if part in places:  # layer4 is deeper than the level that is trained
            expected[name] = places[part]
    assert stages == expected


def test_stages_of_a_network_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OWN)
    stages = stages_of(build_backbone(f"{tmp_path}/net.py:build"), 64, 8)
    assert stages == {
        "net.stem.weight": 0, "net.stem.bias": 0, "net.norm.weight": 0, "net.norm.bias": 0,
        "net.top.weight": 1, "net.top.bias": 1,
    }  # fmt: skip


def test_frozen_parameters_of_a_network_of_ones_own_stay_frozen(tiny: Tiny, tmp_path: Path) -> None:
    frozen = OWN.replace("return Net()", "net = Net()\n    net.stem.requires_grad_(False)\n    return net")
    (tmp_path / "net.py").write_text(frozen)
    name = f"{tmp_path}/net.py:build"
    assert set(stages_of(build_backbone(name), 64, 8)) == {
        "net.norm.weight", "net.norm.bias", "net.top.weight", "net.top.bias"
    }  # fmt: skip
    settings = {"model.backbone": name, "model.layer4_stride": 2, "optim.layer_decay": 0.5, "model.trainable_stages": 2}
    config = tiny(optim__steps=1).with_values(settings)
    state = TrainingState(config, CPU)
    start = {key: value.clone() for key, value in state.learner.student.state_dict().items()}
    trained = final(pretrain(config).path)["student"]
    for key, is_same in {"stem": True, "norm": False, "top": False}.items():
        weight = f"backbone.net.{key}.weight"
        assert torch.equal(trained[weight], start[weight]) == is_same, key  # type: ignore[index]


def test_stages_of_a_vision_transformer_are_its_blocks() -> None:
    pytest.importorskip("timm")
    backbone = build_backbone("timm:test_vit")
    blocks = len(backbone.net.blocks)  # type: ignore[arg-type]
    stages = stages_of(backbone, 64, 16)
    assert blocks > 2
    for name, stage in stages.items():
        if ".blocks." in name:
            assert stage == int(name.split(".")[2])
        else:
            assert stage == (blocks - 1 if name.startswith("net.norm.") else 0), name
    assert {"net.patch_embed.proj.weight", "net.pos_embed", "net.norm.weight"} <= stages.keys()


@pytest.mark.parametrize("name", ["timm:test_convnext", "timm:swin_tiny_patch4_window7_224", "timm:test_efficientnet"])
def test_stages_of_other_networks(name: str) -> None:
    pytest.importorskip("timm")
    backbone = build_backbone(name)
    stages = stages_of(backbone, 224 if "swin" in name else 64, 32)
    assert set(stages.values()) == set(range(len(backbone.channels)))
    norms = norm_parameters(backbone)
    assert norms and all(backbone.get_parameter(norm).ndim == 1 for norm in norms)
    trained = choose_trained(backbone, 224 if "swin" in name else 64, 32, 1, 1.0)
    top = max(stages.values())
    assert "the last 1 of" in trained.remark
    for parameter_name, parameter in backbone.named_parameters():
        stage = stages.get(parameter_name)
        is_trained = stage == top or (stage is not None and parameter_name in norms)
        assert parameter.requires_grad == is_trained


def test_settings_that_cannot_be_used() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.trainable_stages is 4; resnet18 has 3 stages up to stride 16: write 0"
    ):
        choose_trained(build_backbone("resnet18"), 64, 16, 4, 1.0)
    with pytest.raises(ConfigError, match=r"model\.trainable_stages must be >= -1, got -2"):
        Config().with_values({"model.trainable_stages": -2})
    for decay in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"optim\.layer_decay must be > 0 and <= 1, got"):
            Config().with_values({"optim.layer_decay": decay})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_defaults_leave_the_optimizer_as_it_was(name: str, tiny: Tiny) -> None:
    config = tiny(optim__name=name)
    state = TrainingState(config, CPU)
    groups = state.optimizer.state_dict()["param_groups"]
    student = state.learner.student
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert [len(group["params"]) for group in groups] == (
        [sum(p.ndim > 1 for p in student.parameters()), sum(p.ndim <= 1 for p in student.parameters())]
        if name == "adamw"
        else [len(list(student.parameters()))]
    )
    assert all("lr_factor" not in group for group in groups)
    ordered = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    expected = list(student.parameters())
    if name == "adamw":
        expected = [p for p in expected if p.ndim > 1] + [p for p in expected if p.ndim <= 1]
    assert all(a is b for a, b in zip(ordered, expected, strict=True))


def test_the_rate_of_a_group_is_the_rate_times_its_factor() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    optimizer = build_optimizer(network, OptimConfig(lr=0.1, momentum=0.0, weight_decay=0.0), {"0.weight": 0.25})
    before = [float(parameter.detach()) for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    guarded_step(optimizer, 0.4, torch.tensor(True))
    moved = [b - float(p.detach()) for b, p in zip(before, network.parameters(), strict=True)]
    assert moved == pytest.approx([0.1, 0.4], rel=1e-5)


def test_a_restored_optimizer_has_the_factors_of_the_settings_now() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    settings = OptimConfig(lr=0.1, momentum=0.9)
    saved = build_optimizer(network, settings, {"0.weight": 0.25}).state_dict()
    optimizer = build_optimizer(network, settings, {"0.weight": 0.5})
    restore_optimizer(optimizer, saved)
    assert [group.get("lr_factor") for group in optimizer.param_groups] == [None, 0.5]
    changed = build_optimizer(network, OptimConfig(momentum=0.5, weight_decay=0.25), {"0.weight": 0.5})
    restore_optimizer(changed, saved)
    assert [(group["momentum"], group["weight_decay"]) for group in changed.param_groups] == [(0.5, 0.25)] * 2
    with pytest.raises(RunError, match=r"groups the parameters in another way; give optim\.name, optim\.layer_decay"):
        restore_optimizer(build_optimizer(network, settings, {}), saved)


def test_rates_and_frozen_stages_of_a_run(tiny: Tiny) -> None:
    config = tiny(model__strides=(16,), model__trainable_stages=2, optim__layer_decay=0.5)
    state = TrainingState(config, CPU)
    rates = {}
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            rates[id(parameter)] = group.get("lr_factor", 1.0)
    factor_of = {"conv1": 0.25, "bn1": 0.25, "layer1": 0.25, "layer2": 0.5, "layer3": 1.0}
    for name, parameter in state.learner.student.named_parameters():
        if name.startswith("heads."):
            assert rates[id(parameter)] == 1.0
            continue
        part = name.split(".")[2]
        is_norm = "bn" in name or "downsample.1" in name
        is_trained = part in ("layer2", "layer3") or (is_norm and part != "layer4")
        assert parameter.requires_grad == is_trained == (id(parameter) in rates), name
        if is_trained:
            assert rates[id(parameter)] == factor_of[part], name
    assert "learning rate x 0.5 per stage below the top one (3 stages)" in state.remarks[0]


@pytest.mark.parametrize(("stages", "rest"), [(-1, ""), (1, ": the last 1 of 3 stages and all"), (0, ": only the")])
def test_a_run_says_and_trains_what_it_should(stages: int, rest: str, tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = build_backbone("resnet18").net.state_dict()
    safetensors.torch.save_file(start, tmp_path / "start.safetensors")
    config = tiny(
        model__init=str(tmp_path / "start.safetensors"),
        model__strides=(16,),
        model__trainable_stages=stages,
        optim__steps=2,
        optim__weight_decay=0.1,
        run__health_every_steps=1,
    )
    run = pretrain(config).path
    student = final(run)["student"]
    moved = set()
    for name, tensor in build_backbone("resnet18").net.named_parameters():
        assert student[f"backbone.net.{name}"].shape == tensor.shape  # type: ignore[index]
        if not torch.equal(student[f"backbone.net.{name}"], start[name]):  # type: ignore[index]
            moved.add(name)
    norms = {name for name in start if ("bn" in name or "downsample.1" in name) and name.endswith(("weight", "bias"))}
    reached = {name for name in norms if not name.startswith("layer4")}
    assert moved >= reached
    convolutions = {name.split(".")[0] for name in moved - norms}
    assert (
        convolutions
        == {
            -1: {"conv1", "layer1", "layer2", "layer3"},
            1: {"layer3"},
            0: set(),
        }[stages]
    )
    numbers = dict(build_backbone("resnet18").net.named_parameters())
    trained = sum(numbers[name].numel() for name in moved)
    total = sum(parameter.numel() for parameter in numbers.values())
    line = f"training {trained:,} of {total:,} parameters of the backbone{rest}"
    assert line in (run / "log.txt").read_text()
    drifts = [check["drift"] for check in metrics(run, "health")]
    assert drifts[0] == 0 < drifts[1] < drifts[2]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_resume_is_exact_with_frozen_stages_and_rates(name: str, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(
        optim__name=name,
        optim__lr=0.01,
        model__strides=(16,),
        model__trainable_stages=2,
        optim__layer_decay=0.5,
        run__checkpoint_every_steps=2,
    )
    whole = pretrain(config.with_values({"run.out": str(tmp_path / "whole")}))
    parts = config.with_values({"run.out": str(tmp_path / "parts")})
    with after_steps(3, power_cut), pytest.raises(RuntimeError, match="power cut"):
        pretrain(parts)
    resumed = pretrain(parts.with_values({"run.resume": True}))
    assert_same_end(whole.path, resumed.path)
