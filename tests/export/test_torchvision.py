"""Export to torchvision: the file is what a user needs, and every fault is caught before it gets its name."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from tests.export.runs import State, names, saved_run
from torch import Tensor

from plrc.config import Config
from plrc.errors import PlrcError
from plrc.export import TARGETS, Receipt, export_backbone, load_backbone
from plrc.export.proof import check_features, check_tensors, example_images
from plrc.export.target import TOLERANCE
from plrc.model.backbone import Backbone, build_backbone


@pytest.fixture(scope="module")
def student() -> Backbone:
    """A backbone whose BatchNorm statistics have seen images, so that they are not the defaults."""
    torch.manual_seed(0)
    net = build_backbone("resnet18", layer4_stride=1)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 64, 64) * 2 + 1)
    return net


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, student: Backbone) -> tuple[Path, Receipt, Receipt]:
    """A run folder with one checkpoint at step 7, exported to both kinds of file; the two receipts."""
    other = {name: torch.zeros_like(tensor) for name, tensor in names(student).items()}
    run = saved_run(tmp_path_factory.mktemp("saved"), names(student), teacher=other)
    checkpoint = run / "checkpoints" / "step_00000007.pt"
    return run, export_backbone(run), export_backbone(checkpoint, out=run / "handed" / "over.pt")


@pytest.fixture
def run(tmp_path: Path, exported: tuple[Path, Receipt, Receipt]) -> Path:
    """A copy of that folder for a test of its own."""
    shutil.copytree(exported[0], tmp_path / "run", copy_function=os.link)
    return tmp_path / "run"


def test_the_file_is_what_a_torchvision_user_loads(exported: tuple[Path, Receipt, Receipt], student: Backbone) -> None:
    run, receipt, _ = exported
    path = run / "exported" / "backbone.safetensors"
    state = safetensors.torch.load_file(path)
    net = torchvision.models.resnet18(weights=None)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    assert unexpected == []
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in student.net.state_dict().items())
    assert receipt.file == str(path)
    assert receipt.tensors == len(state) == 120
    assert receipt.left_random == ("fc.weight", "fc.bias")
    assert receipt.largest_difference <= TOLERANCE


def test_the_metadata_says_where_the_file_comes_from(run: Path) -> None:
    with safetensors.safe_open(run / "exported" / "backbone.safetensors", "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata.pop("config"))
    assert list(json.loads(metadata.pop("fingerprint"))) == ["4", "8", "16"]
    assert metadata == {
        "format": "plrc",
        "backbone": "resnet18",
        "stride": "32",
        "layer4_stride": "1",
        "step": "7",
        "plrc_version": "0.1.0",
        "pixel_mean": "[0.485, 0.456, 0.406]",
        "pixel_std": "[0.229, 0.224, 0.225]",
    }
    assert Config.from_dict(config).model.backbone == "resnet18"


def test_the_receipt_lies_beside_the_file_and_fits_it(exported: tuple[Path, Receipt, Receipt]) -> None:
    run, _, receipt = exported
    out = run / "handed" / "over.pt"
    told = json.loads((run / "handed" / "over.pt.receipt.json").read_text())
    assert told["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest() == receipt.sha256
    assert told["target"] == f"torchvision {torchvision.__version__}"
    assert (told["step"], told["backbone"], told["tensors"]) == (7, "resnet18", 120)
    assert sorted(p.name for p in out.parent.iterdir()) == ["over.pt", "over.pt.card.md", "over.pt.receipt.json"]
    assert receipt.line().startswith(f"{out}: 120 tensors of resnet18 at step 7, all equal in torchvision ")
    assert "\n" not in receipt.line()


def test_pt_is_a_plain_dictionary_of_tensors(run: Path, student: Backbone) -> None:
    state = torch.load(run / "handed" / "over.pt", weights_only=True)
    assert type(state) is dict
    assert list(state) == list(student.net.state_dict())


def test_the_newest_checkpoint_is_exported(run: Path, student: Backbone) -> None:
    newer = copy.deepcopy(student)
    with torch.no_grad():
        newer.net.get_parameter("conv1.weight").mul_(1.5)
    saved_run(run, names(newer), step=30)
    assert export_backbone(run).step == 30
    state = safetensors.torch.load_file(run / "exported" / "backbone.safetensors")
    assert torch.equal(state["conv1.weight"], newer.net.get_parameter("conv1.weight"))


FILES = {
    "run": ".",
    "checkpoint": "checkpoints/step_00000007.pt",
    "safetensors": "exported/backbone.safetensors",
    "pt": "handed/over.pt",
}


@pytest.mark.parametrize("kind", list(FILES))
@pytest.mark.parametrize("layer4_stride", [1, 2])
def test_load_backbone_gives_the_students_features(kind: str, layer4_stride: int, run: Path, student: Backbone) -> None:
    backbone = "resnet18" if kind == "pt" else ""
    loaded = load_backbone(run / FILES[kind], layer4_stride, backbone)
    assert not loaded.training
    images = example_images((64, 64))
    expected = build_backbone("resnet18", layer4_stride)
    expected.net.load_state_dict(student.net.state_dict())
    with torch.no_grad():
        found, wanted = loaded(images), expected.eval()(images)
    assert found.keys() == wanted.keys() == {4, 8, 16, 32}
    assert found[32].shape == (2, 512, 4 // layer4_stride, 4 // layer4_stride)
    assert all(torch.equal(found[stride], wanted[stride]) for stride in wanted)


def test_a_file_without_a_backbones_name_asks_for_it(run: Path) -> None:
    with pytest.raises(PlrcError, match=r"over\.pt does not hold the name of its backbone; name it"):
        load_backbone(run / "handed" / "over.pt")
    with pytest.raises(PlrcError, match=r"over\.pt does not fit resnet50"):
        load_backbone(run / "handed" / "over.pt", backbone="resnet50")


def test_load_backbone_refuses_contradictions(run: Path) -> None:
    with pytest.raises(PlrcError, match="holds a resnet18, not a resnet50"):
        load_backbone(run, backbone="resnet50")
    with pytest.raises(PlrcError, match=r"layer4_stride must be one of 1, 2, got 3"):
        load_backbone(run, layer4_stride=3)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, student: Backbone, tmp_path: Path) -> None:
    state = names(student)
    state["backbone.net.layer2.0.bn1.running_var"][3] = value
    run = saved_run(tmp_path / "run", state)
    with pytest.raises(PlrcError, match=r"not finite in layer2\.0\.bn1\.running_var"):
        export_backbone(run)
    assert not (run / "exported").exists()


def test_a_timm_backbone_does_not_go_to_torchvision(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", {"backbone.net.stem.weight": torch.ones(2)}, backbone="timm:convnext_atto")
    with pytest.raises(PlrcError, match="torchvision has no timm:convnext_atto"):
        export_backbone(run)


def test_an_export_leaves_the_random_state_of_a_run_alone(run: Path) -> None:
    before = torch.get_rng_state()
    export_backbone(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_mistakes_in_the_request_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match="cannot export to 'tensorflow'; write one of torchvision"):
        export_backbone(run, "tensorflow")
    with pytest.raises(PlrcError, match=r"cannot write w\.onnx; let --out end in \.safetensors or \.pt"):
        export_backbone(run, out=tmp_path / "w.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlrcError, match="empty holds no checkpoint"):
        export_backbone(tmp_path / "empty")
    with pytest.raises(PlrcError, match=r"no checkpoint at .*absent\.pt"):
        export_backbone(tmp_path / "absent.pt")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlrcError, match="cannot write"):
        export_backbone(run, out=tmp_path / "file" / "w.pt")


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {f"backbone.net.{name}": change(state[f"backbone.net.{name}"])}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {f"backbone.net.{new}" if k == f"backbone.net.{old}" else k: v for k, v in state.items()}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (renamed("layer1.0.conv1.weight", "layer1.0.conv_1.weight"), r"unexpected keys: layer1\.0\.conv_1\.weight$"),
        (
            lambda s: {k: v for k, v in s.items() if "layer4.1.bn2.bias" not in k},
            r"missing keys: layer4\.1\.bn2\.bias$",
        ),
        (
            changed("conv1.weight", lambda t: t[:, :1]),
            r"not a resnet18: tensors of another shape: conv1\.weight \[64, 1, 7, 7\]",
        ),
        (lambda s: s | {"backbone.net.fc.weight": torch.zeros(1000, 512)}, r"unexpected keys: fc\.weight$"),
        (
            changed("bn1.weight", Tensor.double),
            r"torchvision's resnet18 differs from the run in 1 tensors: bn1\.weight",
        ),
    ],
    ids=["renamed", "missing", "shape", "part of a classifier", "another type"],
)
def test_a_student_that_is_not_torchvisions_network_is_refused(
    fault: Callable[[State], State], told: str, student: Backbone, tmp_path: Path
) -> None:
    run = saved_run(tmp_path / "run", fault(names(student)))
    with pytest.raises(PlrcError, match=told):
        export_backbone(run)
    assert list((run / "exported").iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda s: s | {"bn1.bias": torch.nextafter(s["bn1.bias"], s["bn1.bias"] + 1)}, "in 1 tensors: bn1.bias"),
        (lambda s: s | {"bn1.bias": s["bn1.bias"] * -1.0}, "in 1 tensors: bn1.bias"),
        (lambda s: s | {"bn1.weight": s["bn1.running_mean"], "bn1.running_mean": s["bn1.weight"]}, "in 2 tensors"),
        (lambda s: {k: v for k, v in s.items() if k != "conv1.weight"}, "missing keys: conv1.weight; export again"),
        (lambda s: s | {"extra": torch.zeros(1)}, "unexpected keys: extra; export again"),
        (lambda s: s | {"conv1.weight": s["conv1.weight"].half()}, "in 1 tensors: conv1.weight"),
    ],
    ids=["one bit", "minus zero", "swapped", "missing", "extra", "narrowed"],
)
def test_a_fault_in_the_written_file_is_caught_and_the_old_file_stays(
    fault: Callable[[State], State], told: str, run: Path, student: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in (run / "exported").iterdir()}
    save = safetensors.torch.save

    def faulty(state: State, metadata: dict[str, str]) -> bytes:
        return save({name: tensor.clone() for name, tensor in fault(state).items()}, metadata)

    monkeypatch.setattr("plrc.export.formats.safetensors.torch.save", faulty)
    with pytest.raises(PlrcError) as caught:
        export_backbone(run)
    assert told in str(caught.value)
    assert {path.name: path.read_bytes() for path in (run / "exported").iterdir()} == files


def test_a_network_that_computes_something_else_is_caught(student: Backbone) -> None:
    """Equal tensors are not enough: the same weights in a network with another stride give other features."""
    same, other = (build_backbone("resnet18", stride).eval() for stride in (2, 1))
    for net in (same, other):
        net.net.load_state_dict(student.net.state_dict())
    check_tensors(other.net.state_dict(), same.net.state_dict(), "the other")
    assert check_features(same, copy.deepcopy(same)) == 0.0
    with pytest.raises(PlrcError, match="other levels or shapes"):
        check_features(other, same)


@pytest.mark.parametrize("attribute", ["eps", "training"])
def test_a_batch_norm_that_normalizes_differently_is_caught(attribute: str, student: Backbone) -> None:
    right = build_backbone("resnet18").eval()
    right.net.load_state_dict(student.net.state_dict())
    wrong = copy.deepcopy(right)
    value: Any = {"eps": 1e-3, "training": True}[attribute]
    setattr(wrong.net.get_submodule("layer3.1.bn2"), attribute, value)
    with pytest.raises(PlrcError, match="features of stride 16 differ from the run's"):
        check_features(wrong, right)


def test_features_that_are_not_finite_are_refused(student: Backbone) -> None:
    net = build_backbone("resnet18").eval()
    net.net.get_buffer("bn1.running_var").fill_(-1.0)
    with pytest.raises(PlrcError, match="features of stride 4 differ"):
        check_features(net, copy.deepcopy(net))


def test_a_network_of_groups_and_bottlenecks_is_exported_too(tmp_path: Path) -> None:
    name = "resnext50_32x4d"
    net = build_backbone(name)
    run = saved_run(tmp_path / "run", names(net), backbone=name)
    receipt = export_backbone(run)
    assert receipt.tensors == len(net.net.state_dict())
    assert TARGETS["torchvision"].version() in receipt.target


def test_a_timm_run_is_loaded_back(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    net = build_backbone("timm:resnet10t").eval()
    loaded = load_backbone(saved_run(tmp_path / "run", names(net), backbone="timm:resnet10t"))
    images = example_images((64, 64))
    with torch.no_grad():
        found, wanted = loaded(images), net(images)
    assert all(torch.equal(found[stride], wanted[stride]) for stride in wanted)
    with pytest.raises(PlrcError, match=r"model\.layer4_stride 1 is for torchvision ResNets"):
        load_backbone(tmp_path / "run", layer4_stride=1)
