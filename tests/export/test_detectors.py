"""Hand-over to detectors of transformers: their checkpoint -> plrc -> their checkpoint, and every fault named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from tests.checkpoints import KINDS, SIDE, save_detector, save_in_half
from tests.export.runs import State, names, saved_run, small_config

import plrc
from plrc.cli import main
from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint
from plrc.errors import PlrcError
from plrc.export import export_backbone
from plrc.export.detector_check import verify_detector
from plrc.export.proof import prove
from plrc.export.targets.detectors import target_into
from plrc.model import build_backbone
from plrc.model.transformers_networks import place_of_backbone, read_detector
from plrc.model.weights import load_into, read_weights

pytest.importorskip("transformers", reason="needs the extra transformers")


def run_of(folder: Path, out: Path, changed: bool = True) -> Path:
    """A run whose student is the detector's own backbone, every tensor moved a little if `changed`."""
    backbone = build_backbone(f"transformers:{folder}")
    load_into(backbone, read_weights(folder))
    if changed:
        with torch.no_grad():
            for tensor in backbone.net.state_dict().values():
                if tensor.is_floating_point():
                    tensor.mul_(1.01).add_(0.001)
    return saved_run(out, names(backbone), backbone=f"transformers:{folder}")


def file_of(folder: Path) -> State:
    return safetensors.torch.load_file(folder / "model.safetensors")


def edit(folder: Path, change: Callable[[State], State]) -> None:
    """Change the tensors in a detector's file."""
    safetensors.torch.save_file(change(file_of(folder)), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_changes_the_backbone_alone(kind: str, tmp_path: Path) -> None:
    folder = save_detector(kind, tmp_path / "theirs")
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    run = run_of(folder, tmp_path / "run")
    receipt = export_backbone(run, "transformers", tmp_path / "back")
    assert receipt.largest_difference is not None and receipt.largest_difference <= receipt.tolerance
    assert "tensors are those of theirs, bit for bit" in receipt.networks[0]
    assert "transformers 5" in receipt.target

    before = file_of(folder)
    after = file_of(tmp_path / "back")
    assert before.keys() == after.keys()
    kept = [name for name in before if not name.startswith(("model.backbone.model.", "backbone.0.encoder.encoder."))]
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in kept)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == receipt.tensors
    assert not set(moved) & set(kept)
    assert (tmp_path / "back" / "preprocessor_config.json").read_text() == json.dumps({"do_normalize": False})
    same = json.loads((folder / "config.json").read_text())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == same

    detector = read_detector(tmp_path / "back")
    inside: Any = detector.get_submodule(place_of_backbone(detector))
    own = build_backbone(f"transformers:{folder}")
    load_into(own, read_weights(run / "checkpoints" / "step_00000007.pt"))
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = inside(images).feature_maps[-1]
        ours = list(own.eval()(images).values())[-1]
    assert float((theirs - ours).abs().max()) <= 1e-5 * float(ours.abs().max())
    assert verify_detector(run, detector).complete
    assert not verify_detector(run, read_detector(folder)).complete
    levels = plrc.load_backbone(tmp_path / "back")(images)
    assert torch.equal(levels[max(levels)], ours)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_trained_comes_back_with_the_same_bytes(kind: str, tmp_path: Path) -> None:
    folder = save_detector(kind, tmp_path / "theirs")
    export_backbone(run_of(folder, tmp_path / "run", changed=False), "transformers", tmp_path / "back")
    before = file_of(folder)
    after = file_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_a_detector_in_half_precision_stays_in_it(half: torch.dtype, kind: str, tmp_path: Path) -> None:
    folder = save_in_half(save_detector(kind, tmp_path / "theirs"), tmp_path / "half", half)
    export_backbone(run_of(folder, tmp_path / "same", changed=False), "transformers", tmp_path / "unchanged")
    run = run_of(folder, tmp_path / "run")
    receipt = export_backbone(run, "transformers", tmp_path / "back")
    assert receipt.largest_difference is not None and receipt.largest_difference <= receipt.tolerance
    assert f"its file holds numbers in {str(half)[6:]}, to which those of the run are rounded" in receipt.advice()

    before = file_of(folder)
    after = file_of(tmp_path / "back")
    same = file_of(tmp_path / "unchanged")
    bits = {name: tensor.view(torch.uint8) for name, tensor in before.items() if tensor.ndim}  # without counters
    assert before.keys() == after.keys() == same.keys()
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(same[name].view(torch.uint8), bits[name]) for name in bits)
    moved = [name for name in bits if not torch.equal(after[name].view(torch.uint8), bits[name])]
    assert 0 < len(moved) <= receipt.tensors
    assert all(name.startswith(("model.backbone.model.", "backbone.0.encoder.encoder.")) for name in moved)
    network = type(read_detector(folder)).from_pretrained(tmp_path / "back")
    assert verify_detector(run, network).complete
    assert (tmp_path / "back" / "config.json").read_text() == (folder / "config.json").read_text()


def test_half_precision_that_cannot_hold_a_value_is_refused(tmp_path: Path) -> None:
    folder = save_in_half(save_detector("d_fine", tmp_path / "theirs"), tmp_path / "half", torch.float16)
    backbone = build_backbone(f"transformers:{folder}")
    load_into(backbone, read_weights(folder))
    tensors = names(backbone)
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name] = torch.full_like(tensors[name], 1e6)
    run = saved_run(tmp_path / "run", tensors, backbone=f"transformers:{folder}")
    with pytest.raises(PlrcError, match=r"holds numbers in float16, in which the run's are too large: .*running_var"):
        export_backbone(run, "transformers", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_from_the_detectors_backbone_and_goes_back(kind: str, scenes: Path, tmp_path: Path) -> None:
    folder = save_detector(kind, tmp_path / "theirs")
    changes = {"model.init": "pretrained", "model.layer4_stride": 2, "views.size": 64, "run.threads": 1}
    strides = (8,) if kind == "rf_detr" else (8, 16)
    config = small_config(scenes, tmp_path / "run", f"transformers:{folder}", **changes, **{"model.strides": strides})
    run = plrc.pretrain(config)
    log = (run.path / "log.txt").read_text()
    assert "warm start from pretrained" in log
    if kind != "rf_detr":
        assert "pixels are normalized with mean 0 0 0, std 1 1 1 (the image processor of the detector in" in log
    receipt = export_backbone(run.path, "transformers", tmp_path / "back", into=folder)
    assert receipt.largest_difference is not None
    before, after = file_of(folder), file_of(tmp_path / "back")
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert 0 < len(moved) <= receipt.tensors
    assert verify_detector(run.path, read_detector(tmp_path / "back")).complete
    assert plrc.load_backbone(run.path).channels  # and the run's own export
    assert plrc.load_backbone(run.path / "exported" / "backbone.safetensors").channels


def test_a_folder_that_moved_is_named_again(tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "theirs")
    run = run_of(folder, tmp_path / "run")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(PlrcError, match=r"there is no folder .*name its new place"):
        export_backbone(run, "safetensors")
    assert export_backbone(run, "safetensors", backbone=f"transformers:{moved}").tensors
    assert export_backbone(run, "transformers", tmp_path / "back", into=moved).tensors
    with pytest.raises(PlrcError, match=r"there is no folder .*name its new place"):
        plrc.load_backbone(run)
    with pytest.raises(PlrcError, match=r"holds a transformers:.*theirs, not a resnet18; leave `backbone` out"):
        plrc.load_backbone(run, backbone="resnet18")
    images = torch.rand(1, 3, SIDE, SIDE)
    levels = plrc.load_backbone(run, backbone=f"transformers:{moved}")(images)
    expected = plrc.load_backbone(tmp_path / "back")(images)
    assert all(torch.equal(levels[stride], expected[stride]) for stride in expected)


def test_the_page_of_a_run_whose_folder_moved(scenes: Path, tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "theirs")
    run = run_of(folder, tmp_path / "run")
    stored = load_checkpoint(run / "checkpoints" / "step_00000007.pt")["config"]
    Config.from_dict(stored).save(run / "config.toml")
    moved = folder.rename(tmp_path / "moved")
    other = shutil.copytree(run, tmp_path / "other")
    command = ["visualize", str(run), "--images", str(scenes), "--out", str(tmp_path / "page.html"), "--limit", "1"]
    command += ["--stride", "32", "--size", "64", "--samples", "0", "--with", str(other), str(moved)]
    assert main(command) == 2
    assert main([*command, "--backbone", f"transformers:{moved}"]) == 0


def test_folders_that_cannot_take_a_run_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "theirs")
    run = run_of(folder, tmp_path / "run")
    resnet = saved_run(tmp_path / "r18", names(build_backbone("resnet18")))
    deeper = save_detector("d_fine", tmp_path / "deeper", depth=2)
    other = save_detector("rt_detr_v2", tmp_path / "rt")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    refused = [
        (run, deeper, r"missing keys: encoder\.stages\.2\.blocks\.1.* \(another network, or one of another depth\)"),
        (run, other, "another network"),
        (resnet, other, "ResNet-vd, whose stem has three 3 x 3 convolutions"),
        (resnet, folder, r"a resnet18 does not fit the backbone of the DFineForObjectDetection"),
        (run, tmp_path / "empty", "missing or not that of a detector; it must be one of rt_detr"),
    ]
    for source, into, reason in refused:
        with pytest.raises(PlrcError, match=reason):
            export_backbone(source, "transformers", out, into=into)
        assert not out.exists()
    with pytest.raises(PlrcError, match="is the folder of the detector itself"):
        export_backbone(run, "transformers", folder)
    with pytest.raises(PlrcError, match="the export is for timm; write transformers"):
        export_backbone(run, "timm", out, into=folder)
    assert main(["export", str(resnet), "--to", "transformers", "--into", str(other), "--out", str(out)]) == 2


FAULTS: dict[str, tuple[Callable[[State, str], State], str]] = {
    "missing": (lambda state, name: {k: v for k, v in state.items() if k != name}, "missing keys: .*stem1"),
    "prefix": (lambda state, name: {f"net.{k}": v for k, v in state.items()}, "missing keys"),
    "shape": (lambda state, name: state | {name: torch.zeros(1, 2, 3, 4)}, "mismatched keys: .*stem1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_refused(fault: str, tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "theirs")
    run = run_of(folder, tmp_path / "run")
    change, reason = FAULTS[fault]
    edit(folder, lambda state: change(state, "model.backbone.model.embedder.stem1.convolution.weight"))
    with pytest.raises(PlrcError, match=rf"model\.safetensors does not hold the detector of .*{reason}"):
        export_backbone(run, "transformers", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_fault_in_the_copy_is_found_by_the_proof_and_by_verify(tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "theirs")
    run = run_of(folder, tmp_path / "run")
    back = tmp_path / "back"
    export_backbone(run, "transformers", back)
    backbone = f"transformers:{folder}"
    student = read_weights(run / "checkpoints" / "step_00000007.pt").state
    start = "student.backbone.net."
    student = {name.removeprefix(start): tensor for name, tensor in student.items() if name.startswith(start)}
    target = target_into(folder)
    assert prove(target, back / "model.safetensors", backbone, student).tensors
    good = file_of(back)
    inside = "model.backbone.model.embedder.stem1.convolution.weight"
    outside = next(name for name in good if name.startswith("model.decoder"))
    for name, reason in (
        (inside, "does not hold|differs from the run in 1 tensors: embedder.stem1"),
        (outside, "apart"),
    ):
        edit(back, lambda state, name=name: good | {name: good[name] + 0.001})
        with pytest.raises(PlrcError, match=reason):
            prove(target, back / "model.safetensors", backbone, student)
        assert verify_detector(run, read_detector(back)).complete == (name == outside)
