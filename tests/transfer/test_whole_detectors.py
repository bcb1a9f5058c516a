"""A detector of transformers with its own weights as a start: what is taken or not, refused, compared and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.checkpoints import KINDS, SIDE, save_detector, save_in_half

from plrc.compare.inits import build_comparison, weights_origin
from plrc.compare.run import run_comparison
from plrc.errors import PlrcError
from plrc.model.backbone import build_backbone
from plrc.model.transformers_networks import place_of_backbone, read_detector
from plrc.scenes import scene_names, write_scenes
from plrc.transfer.detectors import build_detector
from plrc.transfer.finetune import transfer
from plrc.transfer.initial import initial_backbone, verify_initial_weights, with_detector
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import TransferConfig

pytest.importorskip("transformers")
pytest.importorskip("scipy")

TINY = {
    "input.train_size": (float(SIDE), float(SIDE)),
    "input.test_size": float(SIDE),
    "optim.steps": 2,
    "optim.batch_size": 2,
    "run.log_every_steps": 1,
    "run.threads": 1,
    "run.device": "cpu",
    "evaluations": 0,
}


def tiny(kind: str, folder: Path, **changes: object) -> TransferConfig:
    return protocol(f"small_{kind}", "detection").with_values(TINY | {"init": str(folder)} | changes)


def started(kind: str, folder: Path, classes: list[str], **changes: object) -> tuple[Any, Any]:
    """The detector around the folder's backbone with its weights, and the report of what was loaded."""
    config = tiny(kind, folder, **{"model.backbone": f"transformers:{folder}", **changes})
    backbone, initial = initial_backbone(config.init, config.model.backbone)
    model = build_detector(backbone, config.model, config.input, len(classes), False, seed=0)
    return model, with_detector(model, initial, config, classes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_classes_keep_everything_and_the_network_answers_as_the_librarys(kind: str, tmp_path: Path) -> None:
    classes = scene_names()
    folder = save_detector(kind, tmp_path / kind, classes)
    model, initial = started(kind, folder, [name.title() for name in classes])
    own = read_detector(folder)
    place = place_of_backbone(own)
    rest = {name for name in own.state_dict() if not name.startswith(f"{place}.")}
    assert set(initial.detector.taken.values()) == rest
    assert len(initial.report.matched) + len(rest) == len(own.state_dict())
    assert initial.detector.not_taken == ()
    assert "with its classes" in initial.lines()[0]
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():  # in double precision, so that rounding does not change which queries are chosen
        ours = model.double().eval().network(pixel_values=pixels)
        theirs = own.double()(pixel_values=pixels)
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes)
    total = len(initial.detector.taken)
    assert verify_initial_weights(model, initial).endswith(f"and so do {total} of its other {total} tensors")


def test_squares_alone_do_not_fit_into_faster_rcnn(tmp_path: Path) -> None:
    name = f"transformers:{save_detector('rf_detr', tmp_path / 'theirs')}"
    config = protocol("small_detection", "detection")
    with pytest.raises(PlrcError, match=r"pads images to multiples of 32 px.*write --model.detector rf_detr"):
        build_detector(build_backbone(name), config.model, config.input, 3, False, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_in_half_precision_is_taken_in_float32(kind: str, tmp_path: Path) -> None:
    half = save_in_half(save_detector(kind, tmp_path / kind), tmp_path / "half", torch.float16)
    model, initial = started(kind, half, ["cat", "dog", "owl"])
    assert initial.lines()[-1] == "the file holds numbers in float16, which are converted to float32"
    assert "and so do" in verify_initial_weights(model, initial)
    tensors = model.state_dict().values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    stored = safetensors.torch.load_file(half / "model.safetensors")
    assert torch.float16 in {tensor.dtype for tensor in stored.values()}
    with torch.no_grad():
        assert torch.isfinite(model.eval()([torch.rand(3, SIDE, SIDE)])[0]["scores"]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [["cat", "owl", "dog"], ["cat"]], ids=["other order", "fewer"])
def test_other_classes_leave_out_the_class_head_alone(kind: str, classes: list[str], tmp_path: Path) -> None:
    folder = save_detector(kind, tmp_path / kind, ["cat", "dog", "owl"])
    model, initial = started(kind, folder, classes)
    not_taken = initial.detector.not_taken
    assert not_taken
    assert all("class" in name or "score" in name for name in not_taken), not_taken
    line = initial.lines()[0]
    assert (
        f"{len(not_taken)} of its class head keep random values (its classes are cat, dog, owl; those of the labels"
        in line
    )
    assert not_taken[0] in initial.table()
    own = read_detector(folder).state_dict()
    state = model.state_dict()
    assert all(torch.equal(state[name], own[own_name]) for name, own_name in initial.detector.taken.items())
    same_shape = [name for name in not_taken if state[name].shape == own[name.removeprefix("network.")].shape]
    assert bool(same_shape) == (len(classes) == 3)
    changed = [name for name in same_shape if not torch.equal(state[name], own[name.removeprefix("network.")])]
    assert any(name.endswith("weight") for name in changed) or not same_shape
    with torch.no_grad():
        name = next(iter(initial.detector.taken))
        model.state_dict()[name].add_(1)
    with pytest.raises(PlrcError, match="does not have the weights"):
        verify_initial_weights(model, initial)


def test_another_detector_takes_the_backbone_alone(tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "d", ["cat"])
    model, initial = started("rt_detr_v2", folder, ["cat"], **{"model.queries": 16})
    assert initial.detector is None
    assert "are ignored" in initial.lines()[0]
    assert "these are the weights of a whole d_fine: only --detector d_fine takes more" in "\n".join(initial.lines())
    assert type(model.network).__name__ == "RTDetrV2ForObjectDetection"


def test_folders_that_cannot_be_used_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "d", ["cat"])
    other = save_detector("d_fine", tmp_path / "deeper", ["cat"], depth=2)
    name = f"transformers:{folder}"
    with pytest.raises(PlrcError, match="does not fit"):
        initial_backbone(str(other), name)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(PlrcError, match=r"has no model\.safetensors; save the detector with save_pretrained"):
        initial_backbone(str(folder), name)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PlrcError, match="transformers cannot read"):
        initial_backbone(str(folder), name)
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(PlrcError, match=r"does not hold the detector of .*config\.json"):
        initial_backbone(str(folder), name)
    with pytest.raises(PlrcError, match="there is no folder"):
        initial_backbone("random", f"transformers:{tmp_path / 'absent'}")
    with pytest.raises(PlrcError, match="takes RGB"):
        build_backbone(name, in_channels=5)


def test_a_frozen_norm_is_possible(tmp_path: Path) -> None:
    folder = save_detector("d_fine", tmp_path / "d", ["cat"])
    model, initial = started("d_fine", folder, ["cat"], **{"model.norm": "frozen"})
    verify_initial_weights(model, initial)
    norms = [module for module in model.modules() if type(module).__name__ == "FrozenBatchNorm2d"]
    assert norms and not any(norm.weight.requires_grad for norm in norms)


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_from_a_folder(kind: str, tmp_path: Path) -> None:
    """The folder decides the backbone of the protocol; a finished run is read, and a file of the folder will do."""
    write_scenes(tmp_path / "scenes", {"train": 4, "test": 2}, seed=0, size=64)
    folder = save_detector(kind, tmp_path / kind, scene_names())
    changes = {"data.source": str(tmp_path / "scenes"), "data.val": "none", "run.out": str(tmp_path / "out")}
    result = transfer(tiny(kind, folder, **changes))
    assert result is not None
    assert result.config["model"]["backbone"] == f"transformers:{folder}"
    assert "the whole" in result.init_report and "with its classes" in result.init_report
    assert "other" in result.inside
    again = transfer(tiny(kind, folder, **changes, **{"run.resume": True}))
    assert again is not None
    assert again.metrics == pytest.approx(result.metrics, nan_ok=True)


@pytest.mark.slow
def test_their_own_weights_are_a_row_of_a_comparison(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 4, "val": 2, "test": 2}, seed=0, size=64)
    theirs = save_detector("d_fine", tmp_path / "theirs", scene_names())
    ours = save_detector("d_fine", tmp_path / "ours", scene_names(), seed=1)
    values = TINY | {"data.source": str(tmp_path / "scenes"), "run.out": str(tmp_path / "out"), "evaluations": 1}
    base = protocol("small_d_fine", "detection").with_values(values)
    comparison = build_comparison(base, [str(theirs), str(ours)], (1.0,), (), 1, (1e-4,), 1)
    assert comparison.base.model.backbone == f"transformers:{theirs}"
    assert list(comparison.inits) == ["random", "theirs", "ours"]
    assert weights_origin(str(theirs)) == "file"
    result = run_comparison(comparison)
    assert result is not None
    assert run_comparison(comparison) is not None
    reports = [path.read_text() for path in (tmp_path / "out" / "cells").glob("*/result.json")]
    assert sum("the whole d_fine is taken" in report for report in reports) == 2
