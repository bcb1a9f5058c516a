"""Detectors of transformers around our backbones: what they return, learn, refuse, and how they are resumed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.transfer.test_detectors import batch

from plrc.cli.transfer import parse_transfer
from plrc.errors import PlrcError
from plrc.model.backbone import Backbone, build_backbone
from plrc.scenes import write_scenes
from plrc.transfer import finetune
from plrc.transfer.detectors import build_detector
from plrc.transfer.finetune import transfer
from plrc.transfer.optim import build_optimizer
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import OptimConfig, TransferConfig

pytest.importorskip("transformers")
pytest.importorskip("scipy")

BACKBONES = {"rt_detr": "resnet18", "rt_detr_v2": "resnet18", "d_fine": "resnet18", "rf_detr": "timm:test_vit"}
DETECTORS = list(BACKBONES)
CLASSES = 9
TINY = {
    "input.train_size": (64.0, 64.0),
    "input.test_size": 64.0,
    "model.width": 64,
    "model.hidden": 64,
    "model.queries": 16,
    "model.decoder_layers": 2,
    "optim.steps": 3,
    "optim.batch_size": 2,
    "run.log_every_steps": 1,
    "run.threads": 1,
    "run.device": "cpu",
}


def tiny(detector: str, **changes: object) -> TransferConfig:
    values = TINY | {"model.backbone": BACKBONES[detector]} | changes
    return protocol(f"small_{detector}", "detection").with_values(values)


def build(config: TransferConfig, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(config.model.backbone)
    return build_detector(backbone, config.model, config.input, CLASSES, False, seed)


@pytest.mark.parametrize(("lr", "max_norm"), [(1.0, 0.0), (1e5, 1.0)])
def test_a_run_that_diverges_ends_with_scores_of_zero(lr: float, max_norm: float, tmp_path: Path) -> None:
    """The library refuses boxes that are not finite by an error of its own."""
    write_scenes(tmp_path / "s", {"train": 4, "val": 1, "test": 1}, seed=0, size=64)
    changes = {
        "data.source": str(tmp_path / "s"),
        "run.out": str(tmp_path / "run"),
        "run.log_every_steps": 20,
        "optim.lr": lr,
        "optim.max_grad_norm": max_norm,
        "optim.steps": 40,
    }
    result = transfer(tiny("rt_detr_v2", **changes))
    assert result is not None
    assert 0 < result.diverged <= 40
    assert set(result.metrics.values()) == {0.0}
    assert "diverged: loss or weights are not finite" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_step_and_a_prediction(detector: str) -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    model = build(tiny(detector))
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.train()(*batch())["loss"]
    loss = model.train()(*batch())["loss"]
    torch.testing.assert_close(rounded.float(), loss, rtol=0.1, atol=0)
    loss.backward()
    backbone = next(module for module in model.modules() if isinstance(module, Backbone))
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.requires_grad]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > len(gradients) // 2
    without_objects = model(*batch(objects=False))["loss"]
    assert bool(torch.isfinite(without_objects))

    with torch.no_grad():
        prediction = model.eval()([torch.rand(3, 50, 70), torch.rand(3, 64, 64)])[0]
    count = len(prediction["boxes"])
    assert 0 < count <= 100
    assert prediction["boxes"].shape == (count, 4)
    assert prediction["boxes"].min() >= 0
    assert (prediction["boxes"] <= torch.tensor([70.0, 50.0, 70.0, 50.0])).all()
    assert set(prediction["labels"].tolist()) <= set(range(1, CLASSES + 1))
    assert prediction["scores"].diff().max() <= 0


def test_the_heads_follow_from_the_seed_alone() -> None:
    first, again, other = (build(tiny("rt_detr_v2"), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("detector", "changes", "complaint"),
    [
        ("d_fine", {"model.backbone": "timm:test_vit"}, "reads features of strides 8, 16 and 32"),
        ("rf_detr", {"model.backbone": "resnet18"}, "reads the tokens of a vision transformer"),
        ("rt_detr_v2", {"model.decoder_layers": 1}, "model.decoder_layers must be >= 2"),
        (
            "rt_detr_v2",
            {"model.queries": 300},
            "fewer than the detector's 300 queries; write --model.queries 84",
        ),
        ("rt_detr_v2", {"model.width": 100}, "model.width must be a multiple of 32 for rt_detr_v2, got 100"),
        ("rt_detr_v2", {"task": "instances"}, "predicts boxes alone"),
        ("rt_detr_v2", {"optim.gradient_accumulation_steps": 4}, "must divide optim.batch_size"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(detector: str, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PlrcError, match=complaint):
        build(tiny(detector, **changes))


def test_the_detector_chooses_the_protocol() -> None:
    config = parse_transfer("detection", ["--data", "d", "--out", "o", "--detector", "d_fine"])
    assert (config.preset, config.model.detector, config.optim.optimizer) == ("small_d_fine", "d_fine", "adamw")
    assert parse_transfer("detection", ["--data", "d", "--out", "o"]).preset == "small_detection"


@pytest.mark.parametrize("detector", DETECTORS)
def test_weights_arrive_and_a_stopped_run_ends_with_the_same_weights(
    detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "s", {"train": 4, "test": 2}, seed=0, size=64)
    file = tmp_path / "backbone.safetensors"
    tensors = build_backbone(BACKBONES[detector]).net.state_dict()
    safetensors.torch.save_file(tensors, file)

    def config(name: str) -> TransferConfig:
        changes = {"data.source": str(tmp_path / "s"), "data.val": "none", "init": str(file), "evaluations": 0}
        return tiny(detector, **changes, **{"run.out": str(tmp_path / name), "optim.gradient_accumulation_steps": 2})

    whole = transfer(config("whole"))
    assert whole is not None
    counters = sum(name.endswith("num_batches_tracked") for name in tensors)
    counts = (len(tensors), len(tensors) - counters)
    assert whole.inside in [f"{n} of {n} backbone tensors in the detector equal {file}" for n in counts]
    saved = finetune.write_atomic

    def stop_after_the_first_save(path: Path, write: object) -> None:
        saved(path, write)  # type: ignore[arg-type]
        if path.name == finetune.CHECKPOINT:
            raise KeyboardInterrupt

    cut = config("cut").with_values({"run.checkpoint_every_steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "write_atomic", stop_after_the_first_save)
        with pytest.raises(KeyboardInterrupt):
            transfer(cut)
    resumed = transfer(cut.with_values({"run.resume": True}))
    assert resumed is not None
    assert resumed.metrics == pytest.approx(whole.metrics, nan_ok=True)
    first, second = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_parts_of_a_batch_have_the_gradient_of_the_whole_and_the_backbone_its_rate() -> None:
    layer = torch.nn.Linear(3, 1)
    task = SimpleNamespace(device=torch.device("cpu"), loss=lambda rows: layer(torch.stack(rows)).square().mean())
    gradients = []
    for parts in (1, 4):
        layer.zero_grad()
        rows = list(torch.arange(12.0).reshape(4, 3))
        finetune._backward(task, rows, OptimConfig(batch_size=4, gradient_accumulation_steps=parts))  # type: ignore[arg-type]
        gradients.append(layer.weight.grad.clone())  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1])

    model = torch.nn.Sequential(Backbone("own", torch.nn.Conv2d(3, 4, 1), {8: 4}), torch.nn.BatchNorm2d(4))
    config = OptimConfig(optimizer="adamw", backbone_lr_factor=0.1)
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.AdamW)
    rows_of_groups = [(group["lr_factor"], group["weight_decay"]) for group in optimizer.param_groups]
    assert rows_of_groups == [(1.0, config.norm_decay), (0.1, config.weight_decay)]


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_four_images_are_learned_by_heart(detector: str, tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", {"train": 4}, seed=3, size=64)
    (tmp_path / "few" / "test").symlink_to("train")
    changes: dict[str, object] = {
        "data.source": str(tmp_path / "few"),
        "data.train": "train",
        "data.val": "none",
        "data.test": "test",
        "run.out": str(tmp_path / "out"),
        "model.queries": 16,
        "optim.steps": 220,
        "optim.batch_size": 4,
        "optim.lr": 1e-3,
        "optim.backbone_lr_factor": 1.0,
        "optim.weight_decay": 0.0,
        "optim.warmup_steps": 10,
        "optim.lr_milestones": (0.8, 0.95),
        "input.flip_prob": 0.0,
        "run.log_every_steps": 20,
        "evaluations": 0,
    }
    result = transfer(tiny(detector, **changes))
    assert result is not None
    assert result.metrics["AP50"] > 90, result.metrics
