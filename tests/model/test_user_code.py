"""Backbones of the user's own: what their function may return, and one sentence for every way in which it may not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from plrc.config import ModelConfig
from plrc.errors import ConfigError
from plrc.model import Network, build_backbone, check_feature_side
from plrc.model.user_code import call_function, is_user_code

NET = '''
from collections import OrderedDict

import torch
from torch import nn


class Stages(nn.Module):
    """Strides 4, 8, 16, each stage with BatchNorm; `give` turns {stride: features} into what forward returns."""

    def __init__(self, give=dict, padding=1, norm=nn.BatchNorm2d, step=2):
        super().__init__()
        self.give = give
        self.stem = nn.Conv2d(3, 8, 7, stride=4, padding=3 * padding, bias=False)
        self.norm = norm(8)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8 * i, 8 * i + 8, 3, stride=step, padding=padding), norm(8 * i + 8), nn.ReLU())
            for i in (1, 2)
        )

    def forward(self, images):
        x = self.norm(self.stem(images))
        found = {4: x}
        for stride, stage in zip((8, 16), self.stages):
            x = found[stride] = stage(x)
        return self.give(found)
'''
BUILD = "\n\ndef build():\n    "


def write(folder: Path, body: str, name: str = "my_net.py") -> str:
    (folder / name).write_text(f"{NET}{BUILD}{body}\n")
    return f"{folder / name}:build"


RETURNS = {
    "a dictionary": "return Stages()",
    "a dictionary from coarse to fine": "return Stages(lambda f: dict(reversed(f.items())))",
    "a list": "net = Stages(lambda f: list(f.values()))\n    net.strides = (4, 8, 16)\n    return net",
    "an OrderedDict": (
        "net = Stages(lambda f: OrderedDict((f'p{s}', x) for s, x in f.items()))\n"
        "    net.strides = [4, 8, 16]\n    return net"
    ),
}


@pytest.mark.parametrize("kind", RETURNS)
def test_levels_by_stride_whatever_the_network_returns(kind: str, tmp_path: Path) -> None:
    backbone = build_backbone(write(tmp_path, RETURNS[kind])).eval()
    assert backbone.channels == {4: 8, 8: 16, 16: 24}
    with torch.no_grad():
        levels = backbone(torch.zeros(2, 3, 64, 96))
    assert {s: tuple(f.shape) for s, f in levels.items()} == {4: (2, 8, 16, 24), 8: (2, 16, 8, 12), 16: (2, 24, 4, 6)}
    assert list(backbone(torch.zeros(2, 3, 64, 96), 8)) == [4, 8]
    assert next(iter(backbone.net.state_dict())) == "stem.weight"
    assert backbone.train().net.training


def test_the_weights_follow_from_pytorchs_seed(tmp_path: Path) -> None:
    name, found = write(tmp_path, "return Stages()"), []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(build_backbone(name).net.get_parameter("stem.weight"))
    assert found[0] is not found[1]
    assert torch.equal(*found)


def test_a_file_may_import_its_neighbors_and_a_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "plrc_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plrc_test_layers.py").write_text(NET)
    (package / "net.py").write_text("def build():\n    from plrc_test_layers import Stages\n    return Stages()\n")
    assert build_backbone(f"{package / 'net.py'}:build").channels == {4: 8, 8: 16, 16: 24}
    assert str(package) not in sys.path
    monkeypatch.syspath_prepend(str(tmp_path))
    (package / "named.py").write_text(f"{NET}{BUILD}return Stages()\n")
    assert build_backbone("plrc_test_package.named:build").channels == {4: 8, 8: 16, 16: 24}


MISTAKES = {
    "None": ("return None", r"my_net\.py:build returned a NoneType; return a torch\.nn\.Module"),
    "raises": ("return Stages(depth=3)", r"my_net\.py:build raised TypeError: .*depth.* \(my_net\.py, line \d+\)"),
    "exits": ("raise SystemExit(0)", r"my_net\.py:build raised SystemExit: 0 \(my_net\.py, line \d+\)"),
    "one tensor": ("return nn.Conv2d(3, 4, 3)", r"gives a tensor \[1, 4, 126, 190\]; return \{stride: features\}"),
    "a list, no strides": ("return Stages(lambda f: list(f.values()))", r"gives a list of 3; return \{stride"),
    "named, no strides": ("return Stages(lambda f: {'p4': f[4]})", r"gives a dictionary of 'p4'; return \{stride"),
    "wrong strides": (
        "net = Stages(lambda f: list(f.values()))\n    net.strides = (8, 16, 32)\n    return net",
        r"level 8 of .* has 32 x 48 positions for .* instead of 16 x 24: its stride is about 4",
    ),
    "too many strides": (
        "net = Stages(lambda f: list(f.values()))\n    net.strides = (4, 8, 16, 32)\n    return net",
        "gives a list of 3",
    ),
    "pooled": ("return Stages(lambda f: {16: f[16].mean((2, 3))})", r"level 16 of .* is a tensor \[1, 24\]"),
    "swapped sides": ("return Stages(lambda f: {4: f[4].mT})", r"level 4 of .* has 48 x 32 positions"),
    "half precision": ("return Stages().half()", r"has weights of torch\.float16; return float32"),
    "forward raises": (
        "return Stages(lambda f: f[7])",
        r"does not take an image \[1, 3, 128, 192\]: its forward raised KeyError: 7 \(my_net\.py, line",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_function_that_breaks_the_contract_is_told_in_one_sentence(mistake: str, tmp_path: Path) -> None:
    body, sentence = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=sentence) as caught:
        build_backbone(write(tmp_path, body))
    assert "\n" not in str(caught.value)


def test_code_that_cannot_be_imported_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "return Stages()", "near_by.py")
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "script.py").write_text("import sys\n\nsys.exit(0)\n")
    (tmp_path / "needs.py").write_text("import plrc_no_such_package\n")
    expected = {
        "near_by:build": r"cannot import near_by: it is not installed here; write near_by\.py:\.\.\.",
        "plrc_no_such.net:build": "cannot import plrc_no_such.net: it is not installed here; a file is named",
        "absent.py:build": r"there is no file absent\.py; write package\.module:function",
        "broken.py:build": r"importing broken\.py raised SyntaxError",
        "needs.py:build": r"importing needs\.py raised ModuleNotFoundError: No module named 'plrc_no_such_package'",
        "script.py:build": r"importing script\.py raised SystemExit: 0 \(script\.py, line 3\)",
        "near_by.py:biuld": r"near_by\.py has no function biuld; did you mean near_by\.py:build\?",
        "near_by.py:": r"'near_by\.py:' names no function; write package",
    }
    for name, sentence in expected.items():
        with pytest.raises(ConfigError, match=sentence) as caught:
            call_function(name)
        assert "\n" not in str(caught.value)
    assert is_user_code("near_by:build") and not is_user_code("timm:resnet10t") and not is_user_code("resnet18")


def settings(backbone: str, **changes: object) -> ModelConfig:
    small = {"backbone": backbone, "strides": (8,), "contrast_hidden": 8, "distill_hidden": 8}
    return ModelConfig(**{**small, **changes})  # type: ignore[arg-type]


def test_pre_training_refuses_a_network_that_it_cannot_train_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frozen = "from torchvision.ops import FrozenBatchNorm2d\n    return Stages(norm=FrozenBatchNorm2d)"
    name = write(tmp_path, frozen, "frozen.py")
    with pytest.raises(ConfigError, match=r"has frozen BatchNorm \(norm\), which normalizes nothing"):
        Network(settings(name))
    assert build_backbone(name).channels[8] == 16  # to load weights into it is all right
    with pytest.raises(ConfigError, match=r"no parameter of .* takes a gradient; return the network unfrozen"):
        Network(settings(write(tmp_path, "return Stages().requires_grad_(False)", "still.py")))
    with pytest.raises(ConfigError, match=r"model\.strides has 32; .* has feature levels of strides 4, 8, 16"):
        Network(settings(write(tmp_path, "return Stages()"), strides=(32,)))
    with pytest.raises(ConfigError, match=r"model\.layer4_stride 1 is for torchvision ResNets"):
        settings(name, layer4_stride=1)


def test_a_network_without_batch_norm_is_one(tmp_path: Path) -> None:
    network = Network(settings(write(tmp_path, "return Stages(norm=lambda c: nn.GroupNorm(2, c))")))
    assert network(torch.randn(4, 3, 32, 32), groups=2)["contrast", 8].shape[2:] == (4, 4)


def test_a_view_size_that_a_network_rounds_down_is_refused(tmp_path: Path) -> None:
    body = "return Only(nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8)))"
    only = "\n\nclass Only(nn.Module):\n"
    only += "    def __init__(self, net):\n        super().__init__()\n        self.net = net\n\n"
    only += "    def forward(self, images):\n        return {8: self.net(images)}\n"
    path = tmp_path / "patches.py"
    path.write_text(f"{NET}{only}{BUILD}{body}\n")
    config = settings(f"{path}:build")
    network = Network(config)
    check_feature_side(network, config, 64)
    assert network.training and all(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    with pytest.raises(
        ConfigError, match=r"views\.size is 60, .* gives 7 x 7 .* instead of 8 x 8; write a multiple of 8"
    ):
        check_feature_side(network, config, 60)
