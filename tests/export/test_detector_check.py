"""Whether a run's weights are inside somebody's detector: found under any names, and every fault caught and named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from tests.export.runs import names, saved_run
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from plrc.cli import main
from plrc.errors import PlrcError
from plrc.export import export_backbone
from plrc.export.detector_check import verify_detector
from plrc.model import Backbone, build_backbone

TENSORS = 100  # of ResNet-18 without the classifier and the step counters


@pytest.fixture(scope="module")
def net() -> Backbone:
    """Trained as far as a detector can tell: no vector is all ones or zeros."""
    torch.manual_seed(0)
    net = build_backbone("resnet18")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 64, 64) + 1)
    return net.eval()


@pytest.fixture(scope="module")
def run(net: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = saved_run(tmp_path_factory.mktemp("run"), names(net))
    export_backbone(run)
    return run


def body() -> nn.Module:
    """A torchvision pyramid with random weights: frozen BatchNorm, the names of torchvision under body."""
    built: nn.Module = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    return built


@pytest.fixture
def detector(net: Backbone) -> nn.Module:
    built = body()
    built.body.load_state_dict(net.net.state_dict())  # type: ignore[union-attr]
    return nn.ModuleDict({"backbone": built, "head": nn.Conv2d(256, 8, 3)})


class Renamed(nn.Module):
    """The tensors of a ResNet under names that plrc does not know, shortcut first."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name in sorted(state, key=lambda name: "downsample" not in name):
            new = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            new = new.replace("layer", "part").replace("bn1", "conv1.norm").replace("bn2", "conv2.norm")
            *modules, leaf = new.split(".")
            inner: nn.Module = self
            for part in modules:
                if part not in dict(inner.named_children()):
                    inner.add_module(part, nn.Module())
                inner = inner.get_submodule(part)
            inner.register_buffer(leaf, state[name].clone())


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "as it is": lambda d: d,
    "a trainer": lambda d: SimpleNamespace(model=d),
    "a trainer of a trainer": lambda d: SimpleNamespace(model=SimpleNamespace(model=d)),
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "with an average": lambda d: nn.ModuleDict({"ema": body(), "model": d}),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_under_any_prefix(kind: str, run: Path, detector: nn.Module) -> None:
    file = "exported/backbone.safetensors" if kind == "as it is" else "."
    report = verify_detector(run / file, WRAPPED[kind](detector))
    assert (report.complete, len(report.matched), report.total, report.reasons) == (True, TENSORS, TENSORS, ())
    assert report.prefix is not None and report.prefix.endswith("backbone.body.")
    assert set(dict(report.matched.values()).values()) == {""}
    assert f"{TENSORS} of {TENSORS} tensors of {run}" in report.table() and "are inside" in report.table()


def test_a_copy_without_the_weights_is_named(run: Path, detector: nn.Module) -> None:
    twice = nn.ModuleDict({"copy": copy.deepcopy(detector), "used": detector})
    assert verify_detector(run, twice).complete
    report = verify_detector(run, nn.ModuleDict({"copy": detector, "used": nn.ModuleDict({"backbone": body()})}))
    assert not report.complete
    assert report.unequal_copies == ("used.backbone.body.",)
    assert len(report.matched) == TENSORS
    assert "NOT all inside" in report.table()
    assert "another copy of the backbone, 'used.backbone.body.', does not hold these weights" in report.table()


def folded(net: Backbone, flip: bool) -> nn.Module:
    whole = torchvision.models.resnet18(weights=None)
    whole.load_state_dict(net.net.state_dict(), strict=False)
    out: nn.Module = fuse(whole.eval())
    if flip:
        out.conv1.weight.data = out.conv1.weight.data.flip(1)  # type: ignore[union-attr]
    return out


def affine(net: Backbone) -> nn.Module:
    """Each BatchNorm replaced by its scale and shift, as vectors [C, 1, 1]."""
    built = copy.deepcopy(net.net)
    for name, module in list(built.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            scale = module.weight / (module.running_var + module.eps).sqrt()  # type: ignore[operator]
            new = nn.Module()
            new.register_buffer("scale", scale.detach().reshape(-1, 1, 1))
            new.register_buffer("shift", (module.bias - module.running_mean * scale).detach().reshape(-1, 1, 1))
            built.set_submodule(name, new)
    return built


def flipped(net: Backbone) -> nn.Module:
    built = copy.deepcopy(net.net)
    built.get_parameter("conv1.weight").data = net.net.get_parameter("conv1.weight").data.flip(1)
    return built


CHANGED: dict[str, tuple[Callable[[Backbone], nn.Module], str, int]] = {
    "half": (lambda n: copy.deepcopy(n.net).half(), "as float16", TENSORS),
    "bfloat16": (lambda n: copy.deepcopy(n.net).bfloat16(), "as bfloat16", TENSORS),
    "double": (lambda n: copy.deepcopy(n.net).double(), "as float64", TENSORS),
    "BGR": (flipped, "channels reversed (BGR)", 1),
    "BGR in half": (lambda n: flipped(n).half(), "channels reversed (BGR), as float16", 1),
    "folded": (lambda n: folded(n, flip=False), "BatchNorm folded into the convolution", TENSORS),
    "folded, BGR": (
        lambda n: folded(n, flip=True),
        "BatchNorm folded into the convolution, channels reversed (BGR)",
        5,
    ),
    "affine": (affine, "BatchNorm as scale and shift", 80),
    "renamed": (lambda n: Renamed(n.net.state_dict()), "", TENSORS),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_detectors_change_on_purpose_is_recognized_and_said(kind: str, run: Path, net: Backbone) -> None:
    build, how, count = CHANGED[kind]
    report = verify_detector(run, build(net))
    assert report.complete, report.table()
    assert [change for _, change in report.matched.values()].count(how) == count
    assert how in report.table()
    assert ("right only if the detector's images are BGR" in report.table()) == ("BGR" in kind)


def test_fresh_vectors_are_found_where_their_module_is(tmp_path: Path) -> None:
    """Biases of a network that has hardly trained are zeros everywhere: they count only in the right module."""
    torch.manual_seed(1)
    fresh = build_backbone("resnet18")
    run = saved_run(tmp_path, names(fresh))
    renamed = Renamed(fresh.net.state_dict())
    report = verify_detector(run, renamed)
    assert report.complete and report.prefix is None
    renamed.get_buffer("part2.0.conv1.norm.bias").fill_(0.5)
    report = verify_detector(run, renamed)
    assert (len(report.matched), len(report.absent)) == (96, 4)  # one of the untouched norms has no place left


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def apply(detector: nn.Module) -> None:
        tensor = detector.state_dict()[f"backbone.body.{name}"]
        tensor.copy_(change(tensor))

    return apply


def swapped(detector: nn.Module) -> None:
    state = detector.state_dict()
    a, b = (state[f"backbone.body.layer1.{i}.conv1.weight"] for i in (0, 1))
    kept = a.clone()
    a.copy_(b)
    b.copy_(kept)


def no_layer4(detector: nn.Module) -> None:
    del detector.get_submodule("backbone.body").layer4


def fresh(part: str) -> Callable[[nn.Module], None]:
    return lambda d: d.get_submodule(part).load_state_dict(
        {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in d.get_submodule(part).state_dict().items()}
    ) and None  # fmt: skip


def statistics(detector: nn.Module) -> None:
    for name, tensor in detector.state_dict().items():
        if name.startswith("backbone.body") and name.endswith("running_mean"):
            tensor.add_(0.01)


def moved(detector: nn.Module) -> None:
    for parameter in detector.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=1e-3)


CONV = "layer2.1.conv2.weight"
FAULTS: dict[str, tuple[Callable[[nn.Module], None], int, str]] = {
    "one weight by 1e-3": (changed(CONV, lambda t: t + (torch.arange(t.numel()) == 7).view_as(t) * 1e-3), 99, CONV),
    "swapped blocks": (swapped, 98, "layer1.1.conv1.weight"),
    "layer4 left out": (no_layer4, 75, "the detector does not have all of layer4: some detectors leave the last level"),
    "layer4 initialized anew": (fresh("backbone.body.layer4"), 75, "the different tensors were initialized again"),
    "all initialized anew": (fresh("backbone.body"), 0, "strict=False) silently ignores a wrong prefix"),
    "statistics moved": (
        statistics,
        80,
        "BatchNorm statistics have changed: the model has run in training mode",
    ),
    "trained": (moved, 80, "the weights were loaded and have changed since, by training or averaging"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_counted_and_named_with_what_it_may_come_from(fault: str, run: Path, detector: nn.Module) -> None:
    torch.manual_seed(0)
    change, count, told = FAULTS[fault]
    change(detector)
    report = verify_detector(run, detector)
    assert not report.complete
    assert (len(report.matched), report.total) == (count, TENSORS)
    assert told in report.table()
    assert f"{count} of {TENSORS} tensors" in report.table() and "NOT all inside" in report.table()


def test_the_largest_difference_is_said(run: Path, detector: nn.Module) -> None:
    changed("bn1.bias", lambda t: t + 0.25)(detector)
    report = verify_detector(run, detector)
    assert report.different.keys() == {"bn1.bias"}
    where, what = report.different["bn1.bias"]
    assert where == "backbone.body.bn1.bias" and what.startswith("by up to 2.5e-01, its largest value is ")


def test_other_networks_are_told_apart(run: Path) -> None:
    other = verify_detector(run, torchvision.models.mobilenet_v3_small(weights=None))
    assert "another architecture" in other.table() and other.matched == {}
    random = Renamed(build_backbone("resnet18").net.state_dict())
    with torch.no_grad():
        for buffer in random.buffers():
            if buffer.is_floating_point():
                buffer.normal_()
    assert "the detector has other names: export for its library" in verify_detector(run, random).table()


def test_what_is_no_detector_is_refused(run: Path) -> None:
    with pytest.raises(PlrcError, match=r"the detector is a dict; return a torch\.nn\.Module or an object with it as"):
        verify_detector(run, {})
    with torch.device("meta"):
        empty = build_backbone("resnet18")
    with pytest.raises(PlrcError, match=r"no values yet, such as net\.conv1\.weight \(device meta\)"):
        verify_detector(run, empty)


DETECTOR = """
import torch
from safetensors.torch import load_file
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone


def right():
    net = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    print(net.body.load_state_dict(load_file({file!r}), strict=False).missing_keys)
    return net


def wrong():
    net = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    net.load_state_dict(load_file({file!r}), strict=False)  # the prefix body. is missing: nothing is loaded
    return net


def fails():
    raise RuntimeError("no data here")
"""


def test_the_command_says_so_by_its_status(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my_detector.py"
    file.write_text(DETECTOR.format(file=str(run / "exported" / "backbone.safetensors")))
    written = tmp_path / "found.json"
    assert main(["verify", str(run), f"{file}:right", "--out", str(written)]) == 0
    assert "100 of 100 tensors" in capsys.readouterr().out
    told = json.loads(written.read_text())
    assert told["complete"] is True and told["matched"]["conv1.weight"] == ["body.conv1.weight", ""]
    assert main(["verify", str(run), f"{file}:wrong"]) == 1
    out = capsys.readouterr().out
    assert "0 of 100 tensors" in out and "print what it returns" in out
    assert main(["verify", str(run), f"{file}:fails"]) == 2
    assert "raised RuntimeError: no data here (my_detector.py, line" in capsys.readouterr().err
    assert main(["verify", str(run), f"{file}:right", "--to", "torchvision"]) == 2
    assert "unknown option --to" in capsys.readouterr().err
