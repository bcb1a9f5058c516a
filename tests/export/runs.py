"""Runs for the tests of exports: small configurations, and run folders written without training."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.tiny import TINY
from torch import Tensor

from plrc.config import Config
from plrc.engine.checkpoint import FORMAT, load_checkpoint, newest_checkpoint, save_checkpoint
from plrc.export import BACKBONE_PREFIX
from plrc.model import Backbone
from plrc.presets import preset

State = dict[str, Tensor]


def small_config(scenes: Path, out: Path, backbone: str, **changes: object) -> Config:
    """Two small steps on the scenes."""
    values: dict[str, object] = {
        **TINY,
        "data.source": str(scenes),
        "data.held_out": 4,
        "run.out": str(out),
        "optim.steps": 2,
        "model.backbone": backbone,
    }
    return preset("debug_cpu").with_values(values | changes)


def saved_run(
    folder: Path, student: State, teacher: State | None = None, backbone: str = "resnet18", step: int = 7
) -> Path:
    """A run folder with a checkpoint of these tensors, written without training."""
    heads = {"contrast_head.0.weight": torch.ones(2, 2), "distill_head.0.weight": torch.ones(2, 2)}
    stride = 2 if ":" in backbone else 1  # timm, and the user's own
    config = Config().with_values({"model.backbone": backbone, "model.layer4_stride": stride})
    save_checkpoint(
        folder / "checkpoints",
        {
            "format": FORMAT,
            "version": "0.1.0",
            "config": config.to_dict(),
            "images": "digest",
            "step": step,
            "student": student | heads,
            "teacher": (student if teacher is None else teacher) | heads,
            "queue": {"keys": torch.zeros(4, 2), "pointer": torch.zeros((), dtype=torch.long)},
            "center": None,
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
            "scaler": {},
            "health": [],
            "lr_factor": 1.0,
            "skipped_in_a_row": 0,
            "seconds_used": 0.0,
        },
        keep=3,
    )
    return folder


def names(net: Backbone) -> State:
    """The backbone's tensors under their names in a student."""
    return {f"{BACKBONE_PREFIX}{name}": tensor.clone() for name, tensor in net.net.state_dict().items()}


def backbone_of(run: Path) -> State:
    """The student's backbone in the newest checkpoint of a run, under its own names."""
    student = load_checkpoint(newest_checkpoint(run) or run)["student"]
    return {
        name.removeprefix(BACKBONE_PREFIX): tensor
        for name, tensor in student.items()
        if name.startswith(BACKBONE_PREFIX)
    }
