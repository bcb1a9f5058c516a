"""A backbone of the user's own: trains, resumes, hands itself over, loads; and nobody's code runs unasked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.export.runs import State, names, saved_run, small_config
from tests.model.test_user_code import write

import plrc
from plrc.cli import main
from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint
from plrc.errors import PlrcError
from plrc.export import BACKBONE_PREFIX, TARGETS, default_target, export_backbone
from plrc.export.formats import read_tensors, write_tensors
from plrc.export.proof import prove
from plrc.model import build_backbone
from plrc.model.user_code import call_function
from plrc.transfer.initial import initial_backbone, verify_initial_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> tuple[plrc.Run, str]:
    """A run with a backbone of the user's own, and the name of its function."""
    folder = tmp_path_factory.mktemp("own")
    name = write(folder, "return Stages()")
    changes = {"model.strides": (8,), "model.layer4_stride": 2, "objectives.reference_grid": 4}
    return plrc.pretrain(small_config(scenes, folder / "run", name, **changes)), name


def test_a_run_hands_itself_over_under_the_modules_own_names(trained: tuple[plrc.Run, str]) -> None:
    run, name = trained
    file = run.path / "exported" / "backbone.safetensors"
    net = call_function(name)
    net.load_state_dict(safetensors.torch.load_file(file))
    newest = newest_checkpoint(run.path)
    assert newest is not None
    student = load_checkpoint(newest)["student"]
    assert all(torch.equal(tensor, student[BACKBONE_PREFIX + key]) for key, tensor in net.state_dict().items())
    receipt = json.loads(file.with_name(f"{file.name}.receipt.json").read_text())
    assert (receipt["tensors"], receipt["left_random"]) == (len(net.state_dict()), [])
    assert receipt["target"] == f"safetensors {safetensors.__version__}"
    assert [found.step for found in run.health] == [0, 2]
    card = file.with_name(f"{file.name}.card.md").read_text()
    assert "plrc cannot tell whether that code loads weights" in card and "`my_net.py:build`" in card
    assert str(Path(name).parent) not in card
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours = plrc.load_backbone(file, backbone=name, normalize=True)(images)
        theirs = net.eval()(
            (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
            / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        )
    assert all(torch.allclose(ours[s], theirs[s], atol=1e-5) for s in (4, 8, 16))
    assert {s: f.shape[1] for s, f in ours.items()} == {4: 8, 8: 16, 16: 24}


@pytest.mark.slow
def test_resume_goes_on_as_if_never_stopped(tiny: Callable[..., Config], tmp_path: Path) -> None:
    name = write(tmp_path, "return Stages()")
    settings = {"model__backbone": name, "model__layer4_stride": 2, "optim__steps": 4, "objectives__reference_grid": 4}
    whole = plrc.pretrain(tiny(**settings, run__out=str(tmp_path / "whole"), run__checkpoint_every_steps=2))
    states = [load_checkpoint(whole.path / "checkpoints" / f"step_0000000{step}.pt") for step in (2, 4)]
    newest = newest_checkpoint(whole.path)
    assert newest is not None
    newest.unlink()
    again = plrc.pretrain(tiny(**settings, run__out=str(whole.path), run__resume=True, run__checkpoint_every_steps=2))
    resumed = load_checkpoint(again.path / "checkpoints" / "step_00000004.pt")["student"]
    assert all(torch.equal(tensor, states[1]["student"][key]) for key, tensor in resumed.items())
    assert not torch.equal(
        states[0]["student"][f"{BACKBONE_PREFIX}stem.weight"], resumed[f"{BACKBONE_PREFIX}stem.weight"]
    )


@pytest.mark.slow
def test_code_named_in_somebodys_run_is_not_imported(trained: tuple[plrc.Run, str], tmp_path: Path) -> None:
    """In a fresh process: whatever reads the run says whose code it is, and the file that it names never runs."""
    run, name = trained
    file, ran = Path(name.removesuffix(":build")), tmp_path / "ran"
    text = file.read_text()
    file.write_text(f"open({str(ran)!r}, 'w').close()\n{text}")
    exported = run.path / "exported" / "backbone.safetensors"
    script = f"""
import plrc
from plrc.export.detector_check import verify_detector
from plrc.transfer.initial import initial_backbone
from plrc.visualize.explorer_inputs import run_networks
from pathlib import Path
import torch
for path in ({str(run.path)!r}, {str(exported)!r}):
    calls = [plrc.load_backbone, initial_backbone]
    if path == {str(run.path)!r}:
        calls += [plrc.export_backbone, lambda path: plrc.export_backbone(path, "safetensors")]
        calls += [lambda path: run_networks(Path(path), 1)[0].load()]
    for call in calls:
        try:
            call(path)
        except plrc.PlrcError as error:
            print(error)
    verify_detector(path, torch.nn.Linear(1, 1))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=600)
    file.write_text(text)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 7
    assert all(f"user code ({name})" in line and "imported only if you name it" in line for line in told)
    assert not ran.exists()


def test_the_command_line_takes_the_function_by_name(
    trained: tuple[plrc.Run, str], tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, name = trained
    out = tmp_path / "handed" / "over.safetensors"
    command = ["export", str(run.path), "--to", "safetensors", "--out", str(out)]
    assert main(command) == 2
    assert f"add --backbone {name}" in capsys.readouterr().err
    assert main([*command, "--backbone", name]) == 0
    assert f"{out}: " in capsys.readouterr().out
    moved = shutil.copy(name.removesuffix(":build"), tmp_path / "moved.py")
    assert main([*command, "--backbone", f"{moved}:build"]) == 0  # from elsewhere, and the same network
    assert main([*command, "--backbone", "resnet18"]) == 2
    assert "not a resnet18" in capsys.readouterr().err
    look = ["visualize", str(run.path), "--images", str(scenes), "--out", str(tmp_path / "page.html"), "--limit", "1"]
    plain = tmp_path / "plain.pth"
    torch.save(call_function(name).state_dict(), plain)
    look += ["--size", "32", "--steps", "1", "--samples", "0", "--with", "random", str(out), str(plain)]
    assert main(look) == 2
    assert f"add --backbone {name}" in capsys.readouterr().err
    assert main([*look, "--backbone", f"{moved}:build"]) == 0


def test_initial_weights_of_own_code_reach_a_network_of_transfer(trained: tuple[plrc.Run, str]) -> None:
    run, name = trained
    backbone, initial = initial_backbone(str(run.path), name)
    assert (backbone.name, initial.backbone) == (name, name)
    verified = verify_initial_weights(torch.nn.Sequential(backbone), initial)
    assert verified.startswith("20 of 20 backbone tensors in the detector")


def test_a_network_for_whole_strides_only_goes_to_files_and_onnx(tmp_path: Path) -> None:
    """Its top-down sum fails where the coarsest stride does not divide both sides, which the contract allows."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    sums = "f[4] + torch.nn.functional.interpolate(f[16], scale_factor=4)[:, :8]"
    name = write(tmp_path, f"return Stages(lambda f: {{4: {sums}, 16: f[16]}})")
    net = build_backbone(name)
    run = saved_run(tmp_path / "run", names(net), backbone=name)
    assert export_backbone(run, "safetensors", backbone=name).largest_difference == 0
    receipt = export_backbone(run, "onnx", backbone=name)
    assert receipt.networks == ("ONNX Runtime on the CPU",)
    assert "H and W where the coarsest stride divides them" in receipt.settings["set"][0]
    images = torch.randn(3, 3, 64, 48)
    (found,) = ort.InferenceSession(receipt.file).run(["stride4"], {"images": images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), net.eval()(images)[4], atol=1e-4)


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "renamed": (
        lambda s: {k.replace("stem", "steam"): v for k, v in s.items()},
        r"missing keys: stem\.weight; unexpected keys: steam\.weight",
    ),
    "dropped": (lambda s: {k: v for k, v in s.items() if k != "norm.bias"}, r"missing keys: norm\.bias"),
    "swapped channels": (
        lambda s: s | {"stem.weight": s["stem.weight"].flip(1)},
        "input channels are in reverse",
    ),
    "another type": (
        lambda s: s | {"stem.weight": s["stem.weight"].half()},
        r"float16 instead of float32",
    ),
    "one weight": (
        lambda s: s | {"norm.bias": s["norm.bias"] + 1e-3},
        r"differ by up to 1\.0e-03",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_file_is_caught_and_named(fault: str, tmp_path: Path) -> None:
    name = write(tmp_path, "return Stages()")
    student = call_function(name).state_dict()
    change, sentence = FAULTS[fault]
    file = tmp_path / "file.pt"
    torch.save(change(student), file)
    with pytest.raises(PlrcError, match=sentence):
        prove(TARGETS["safetensors"], file, name, student)
    torch.save(student, file)
    assert prove(TARGETS["safetensors"], file, name, student).largest_difference == 0


def test_a_function_that_builds_another_network_than_the_run_trained_is_caught(
    trained: tuple[plrc.Run, str], tmp_path: Path
) -> None:
    run, _ = trained
    other = write(tmp_path, "return Stages(norm=lambda c: nn.GroupNorm(2, c))", "other.py")
    with pytest.raises(PlrcError, match=r"the run's student is not a .*other\.py:build"):
        export_backbone(run.path, "safetensors", tmp_path / "wrong.safetensors", other)
    same_names = write(tmp_path, "return Stages(norm=lambda c: nn.BatchNorm2d(c, eps=0.1))", "eps.py")
    receipt = export_backbone(run.path, "safetensors", tmp_path / "right.safetensors", same_names)
    assert receipt.largest_difference == 0  # the same tensors: the function that is named now decides what they mean


def test_tied_tensors_are_written_under_each_of_their_names(tmp_path: Path) -> None:
    body = "net = Stages()\n    net.again = nn.BatchNorm2d(8)\n    net.again.weight = net.norm.weight\n    return net"
    name = write(tmp_path, body, "tied.py")
    write_tensors(tmp_path / "tied.safetensors", call_function(name).state_dict(), {})
    assert {"norm.weight", "again.weight"} <= read_tensors(tmp_path / "tied.safetensors").keys()
    assert default_target(name) == "safetensors"


SHUFFLED = """class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("order", torch.arange(16).flip(0), persistent=False)

        def forward(self, x):
            return x[:, self.order]

    net = Stages()
    net.stages[0].append(Shuffled())
    return net"""


def test_onnx_has_the_buffers_that_are_no_weights_apart(tmp_path: Path) -> None:
    """Such as the indices of relative positions in a Swin transformer, which are not in its state dictionary."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    name = write(tmp_path, SHUFFLED)
    network = build_backbone(name, layer4_stride=2)
    run = saved_run(tmp_path / "run", names(network), backbone=name)
    receipt = export_backbone(run, "onnx", backbone=name)
    in_graph = {tensor.name for tensor in onnx.load(receipt.file).graph.initializer}
    assert "net.stages.0.3.order" in in_graph
    assert set(TARGETS["onnx"].read(Path(receipt.file))) == {
        f"net.{key}" for key in network.net.state_dict() if not key.endswith("num_batches_tracked")
    }
