"""Initial weights: every source, every way in which a file can be wrong, and the proof that they are inside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from plrc.engine.checkpoint import KEYS, save_checkpoint
from plrc.errors import ConfigError, PlrcError, WeightsError
from plrc.model.backbone import build_backbone
from plrc.transfer.detectors import build_detector
from plrc.transfer.initial import initial_backbone, verify_initial_weights, with_own_backbone
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import DetectorConfig, InputConfig
from plrc.transfer.semantic import build_segmenter

State = dict[str, Tensor]
NO_NETWORK = "http://127.0.0.1:9"  # a proxy that refuses every connection
INPUT = InputConfig(train_size=(64, 64), test_size=64, max_size=128)


def state_of(name: str = "resnet18", seed: int = 5) -> State:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone(name).net.state_dict()


@pytest.fixture(scope="module")
def state() -> State:
    return state_of()


def write(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def detector(init: str, neck: str = "fpn", norm: str = "bn", name: str = "resnet18", **options: Any) -> tuple[Any, Any]:
    backbone, initial = initial_backbone(init, name, **options)
    config = DetectorConfig(neck=neck, norm=norm, width=32, hidden=32, trainable_layers=3)
    return build_detector(backbone, config, INPUT, 3, True, 0), initial


def save_run(run: Path, state: State, step: int, name: str = "resnet18") -> Path:
    content: dict[str, Any] = dict.fromkeys(KEYS, 0)
    content |= {"step": step, "config": {"model": {"backbone": name}}, "student": prefixed("backbone.net.", state)}
    content["teacher"] = {key: torch.zeros_like(tensor) for key, tensor in content["student"].items()}
    return save_checkpoint(run / "checkpoints", content, keep=0)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
@pytest.mark.parametrize("norm", ["bn", "frozen", "sync"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.body.", "module.encoder_q."])
def test_a_file_arrives_in_the_detector(prefix: str, norm: str, neck: str, state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"state_dict": prefixed(prefix, state) | {"fc.weight": torch.ones(2)}})
    model, initial = detector(path, neck, norm)
    inside = model.backbone.body.net.state_dict()
    assert all(torch.equal(inside[name], tensor) for name, tensor in state.items())
    assert verify_initial_weights(model, initial) == f"120 of 120 backbone tensors in the detector equal {path}"
    assert initial.lines() == [f"resnet18 with the weights of {path}: 120 tensors match, 1 are ignored"]
    assert f"prefix in the file: state_dict.{prefix}" in initial.table()
    assert (initial.source, initial.backbone) == (path, "resnet18")


def test_a_file_arrives_in_the_segmenter(state: State, tmp_path: Path) -> None:
    backbone, initial = initial_backbone(write(tmp_path / "w.pt", state), "resnet18", layer4_stride=1)
    model = build_segmenter(backbone, DetectorConfig(width=16, head_norm="bn", norm="frozen"), 3, 0)
    assert verify_initial_weights(model, initial).startswith("120 of 120 backbone tensors")


@pytest.mark.parametrize("neck", ["fpn", "c4"])
@pytest.mark.parametrize(
    "name", ["conv1.weight", "bn1.running_var", "layer3.0.downsample.1.bias", "layer4.1.conv2.weight"]
)
def test_one_changed_value_is_found_and_named(name: str, neck: str, state: State, tmp_path: Path) -> None:
    model, initial = detector(write(tmp_path / "w.pt", state), neck)
    with torch.no_grad():
        model.backbone.body.net.state_dict()[name].view(-1)[-1] += 1e-3
    with pytest.raises(PlrcError, match=rf"see backbone\.body\.net\.{name}$"):
        verify_initial_weights(model, initial)


def test_a_second_copy_of_a_layer_is_compared_too(state: State, tmp_path: Path) -> None:
    model, initial = detector(write(tmp_path / "w.pt", state))
    model.roi_heads.extra = torch.nn.ModuleDict({"layer4": build_backbone("resnet18").net.layer4})
    with pytest.raises(PlrcError, match=r"see roi_heads\.extra\.layer4\.0\.conv1\.weight, "):
        verify_initial_weights(model, initial)


def test_a_missing_layer_is_named(state: State, tmp_path: Path) -> None:
    model, initial = detector(write(tmp_path / "w.pt", state))
    model.backbone.body.net.layer2[0].conv1 = torch.nn.Identity()
    with pytest.raises(PlrcError, match=r"see layer2\.0\.conv1\.weight \(absent\)$"):
        verify_initial_weights(model, initial)


def test_random_weights_follow_from_the_seed() -> None:
    first, again, other = (initial_backbone("random", "resnet18", seed=seed)[0].net.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    model, initial = detector("random")
    assert "no file to compare with" in verify_initial_weights(model, initial)
    assert initial.lines() == ["resnet18, random weights"]
    assert (initial.source, initial.weights, initial.report) == ("random", None, None)


def test_a_run_gives_its_newest_students_weights_and_name(state: State, tmp_path: Path) -> None:
    save_run(tmp_path / "run", state_of(seed=6), step=10)
    newest = save_run(tmp_path / "run", state, step=200)
    backbone, initial = initial_backbone(str(tmp_path / "run"))
    assert (initial.source, initial.backbone) == (str(newest), "resnet18")
    assert initial.report is not None and initial.report.prefix == "student.backbone.net."
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.net.state_dict().items())
    wrong = r"has the weights of a resnet18, not of a resnet50; write --model\.backbone resnet18"
    with pytest.raises(WeightsError, match=wrong):
        initial_backbone(str(tmp_path / "run"), "resnet50")


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match="holds no checkpoint; name the folder of a run"):
        initial_backbone(str(tmp_path), "resnet18")


def test_initial_weights_decide_the_backbone_unless_one_is_chosen(state: State, tmp_path: Path) -> None:
    small = protocol("small_detection", "detection")
    save_run(tmp_path / "run", state_of("resnet34"), step=10, name="resnet34")
    run = str(tmp_path / "run")
    resnet18 = write(tmp_path / "w.pt", state)
    unknown = write(tmp_path / "other.pt", {"stem.weight": torch.ones(2)})
    assert with_own_backbone(small, [run]).model.backbone == "resnet34"
    assert with_own_backbone(small, ["random", unknown, resnet18, run]).model.backbone == "resnet34"  # folders first
    assert (
        with_own_backbone(small.with_values({"model.backbone": ""}, pin=False), [resnet18]).model.backbone == "resnet18"
    )
    assert with_own_backbone(small, ["random", unknown]).model.backbone == "resnet18"  # that of the protocol
    assert with_own_backbone(small.with_values({"model.backbone": "resnet50"}), [run]).model.backbone == "resnet50"


def test_a_run_with_a_network_of_user_code_names_the_option(state: State, tmp_path: Path) -> None:
    code = f"{tmp_path / 'net.py'}:build"
    save_run(tmp_path / "run", state, step=10, name=code)
    with pytest.raises(ConfigError, match=re.escape(f"if you trust it, write --model.backbone {code}")):
        with_own_backbone(protocol("small_detection", "detection"), [str(tmp_path / "run")])


def test_an_export_says_which_backbone_it_holds(state: State, tmp_path: Path) -> None:
    config = json.dumps({"model": {"backbone": "resnet18"}})
    safetensors.torch.save_file(state, tmp_path / "b.safetensors", {"backbone": "resnet18", "config": config})
    assert initial_backbone(str(tmp_path / "b.safetensors"))[1].backbone == "resnet18"


@pytest.mark.parametrize(
    "foreign", [{}, {"backbone": "R-34"}, {"config": {"model": "R-34"}}, {"config": {"model": {}}}]
)
def test_a_foreign_file_is_recognized_by_its_tensors(foreign: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"net": state_of("resnet34"), **foreign})
    assert initial_backbone(path)[1].backbone == "resnet34"


def test_another_architecture_names_the_fix(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", state)
    wrong = r"has the weights of a resnet18, not of a resnet34; write --model\.backbone resnet18 \(plrc .*\), or name"
    with pytest.raises(WeightsError, match=wrong):
        initial_backbone(path, "resnet34")


def dropped(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "layer3.0.conv1.weight"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (dropped, r"1 tensors missing(?s:.*)missing +1  layer3\.0\.conv1\.weight"),
        (
            lambda s: s | {"conv1.weight": torch.ones(64, 3, 3, 3)},
            r"conv1\.weight \[64, 3, 3, 3\] instead of \[64, 3, 7",
        ),
        (lambda s: s | {"bn1.bias": torch.full((64,), float("nan"))}, r"values that are not finite in bn1\.bias"),
        (lambda s: s | {"layer4.7.conv1.weight": torch.ones(2)}, r"unexpected +1  layer4\.7\.conv1\.weight"),
        (lambda s: {name.replace(".", "/"): tensor for name, tensor in s.items()}, "matched +0\n"),
        (lambda s: prefixed("a_", s), "does not fit resnet18"),
        (lambda s: {}, "holds no tensors"),
    ],
    ids=["dropped tensor", "wrong shape", "NaN", "larger network", "other names", "no real prefix", "empty"],
)
def test_a_file_that_does_not_fit_is_refused(change: Any, complaint: str, state: State, tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match=complaint):
        initial_backbone(write(tmp_path / "w.pt", change(state)), "resnet18")


def test_a_partial_file_is_taken_if_asked(state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", dropped(state))
    model, initial = detector(path, partial=True, seed=4)
    assert verify_initial_weights(model, initial) == f"119 of 120 backbone tensors in the detector equal {path}"
    left = initial_backbone("random", "resnet18", seed=4)[0].net.state_dict()["layer3.0.conv1.weight"]
    assert torch.equal(model.backbone.body.net.layer3[0].conv1.weight, left)
    broken = dropped(state) | {"bn1.bias": torch.full((64,), float("inf"))}
    with pytest.raises(PlrcError, match="not finite"):
        initial_backbone(write(tmp_path / "w.pt", broken), "resnet18", partial=True)
    for other in (prefixed("a_", state), {"bn1.bias": state["bn1.bias"]}):
        with pytest.raises(PlrcError, match=r"less than half of the tensors of resnet18(?s:.*)matched +\d"):
            initial_backbone(write(tmp_path / "w.pt", other), "resnet18", partial=True)


def test_old_files_without_step_counters_are_whole(state: State, tmp_path: Path) -> None:
    old = {name: tensor.half() for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    model, initial = detector(write(tmp_path / "w.pt", old))
    assert verify_initial_weights(model, initial).startswith("100 of 100 backbone tensors")


def test_torchvisions_own_file(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    expected = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    monkeypatch.setenv("https_proxy", NO_NETWORK)
    for init in ("torchvision", "pretrained"):  # two names of the same
        with pytest.raises(PlrcError, match=f"not on this disk and cannot be downloaded .* https://.* to {expected}"):
            initial_backbone(init, "resnet18")
    assert not list(expected.parent.iterdir())
    write(expected, state | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)})
    backbone, initial = initial_backbone("torchvision", "resnet18")
    assert initial.source == str(expected)
    assert torch.equal(backbone.net.state_dict()["conv1.weight"], state["conv1.weight"])
    with pytest.raises(PlrcError, match=r"resnet50-0676ba61\.pth"):
        initial_backbone("torchvision")
    with pytest.raises(PlrcError, match="torchvision has no weights for timm:resnet10t"):
        initial_backbone("torchvision", "timm:resnet10t")


def test_the_torch_home_of_the_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", NO_NETWORK)
    with pytest.raises(PlrcError, match=f"to {tmp_path}/hub/checkpoints/resnet18-f37072fd.pth"):
        initial_backbone("torchvision", "resnet18")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    choices = "initial weights are random, pretrained, a run folder, a detector's folder or a file of weights"
    with pytest.raises(WeightsError, match=f"imagenet does not exist; {choices}"):
        initial_backbone("imagenet", "resnet18")


def test_a_name_of_trained_weights_that_starts_random_is_said() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    _, initial = initial_backbone("random", "timm:resnet18.a1_in1k")
    (line,) = initial.lines()
    assert line == (
        "timm:resnet18.a1_in1k, random weights; its name stands for trained weights, which --init pretrained loads"
    )


def test_tensors_decide_and_not_a_wrong_name_in_the_file(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, file, {"backbone": "resnet50"})
    with pytest.raises(WeightsError, match=r"a resnet18, not of a resnet50; write --model\.backbone resnet18"):
        initial_backbone(str(file))
    _, initial = initial_backbone(str(file), "resnet18")  # what the sentence advises
    assert initial.report is not None
    assert len(initial.report.matched) == 120


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_file_is_named_as_one(tmp_path: Path) -> None:
    file = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    with pytest.raises(WeightsError, match=r"script\.pt is a TorchScript program; load it yourself and save its state"):
        initial_backbone(str(file))
