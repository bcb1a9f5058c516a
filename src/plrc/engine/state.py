"""All that changes while training, in one place: how it takes a step, and how it is saved and restored. Layer 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from plrc import distributed
from plrc.config import Config
from plrc.engine.checkpoint import FORMAT, load_checkpoint, newest_checkpoint
from plrc.engine.health import Health
from plrc.engine.learner import Learner, StepOutput
from plrc.engine.optim import BufferGuard, build_optimizer, finite_gradient, guarded_step
from plrc.errors import PlrcError
from plrc.files import write_atomic
from plrc.machine import plrc_version
from plrc.model import update_teacher
from plrc.model.weights import load_into, read_weights


class TrainingState:
    """Learner, optimiser, loss scaler, and the history of health checks; `begin` gives them their values."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.learner = Learner(config, device)
        self.start_weights: dict[str, Tensor] = {}
        self.remarks: list[str] = []
        self.optimizer = build_optimizer(self.learner.student, config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.learner.precision == torch.float16)
        self.guard = BufferGuard(self.learner.student, self.learner.teacher)
        self.history: list[Health] = []
        self.lr_factor = 1.0
        """Of the scheduled learning rate; lowered by `recovery.fall_back`."""
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def begin(self, checkpoint: Path | None, folder: Path) -> int:
        """Take over a checkpoint or, without one, `model.init` if it is set; returns the step.

        `folder`: where the main process keeps the weights of a warm start, so that `drift` outlives a resume. The file
        that they came from is never read again.
        """
        kept = folder / "start.safetensors"
        if checkpoint:
            if kept.exists():
                self.start_weights = load_file(kept, str(self.learner.device))
            return self.restore(load_checkpoint(checkpoint))
        if self.config.model.init:
            self._warm_start(self.config.model.init)
            if distributed.is_main():
                content = save({name: weight.cpu().contiguous() for name, weight in self.start_weights.items()})
                write_atomic(kept, lambda file: file.write(content))
        return 0

    def update(self, outcomes: list[StepOutput], lr: float, momentum: float) -> tuple[Tensor, Tensor]:
        """After the backward passes: student, then teacher, queue and centre; or none of them where the gradient is
        not finite. Returns (gradient norm, whether the step counted), 0-dim on the device."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm, keep = finite_gradient(self.learner.student, self.config.optim.max_grad_norm)
        guarded_step(self.optimizer, lr, keep)
        self.scaler.update()
        update_teacher(self.learner.teacher, self.learner.student, momentum, keep)
        self.learner.update_queue_and_center(outcomes, keep)
        self.guard.restore_unless(keep)
        self.skipped_in_a_row = torch.where(keep, 0, self.skipped_in_a_row + 1)
        return norm, keep

    def checkpoint(self, step: int, images: str) -> dict[str, Any]:
        """The content of a checkpoint (keys: checkpoint.KEYS). `images`: the manifest's digest."""
        parts: dict[str, Any] = {"student": None, "teacher": None, "queue": None}
        parts |= {name: module.state_dict() for name, module in self.learner.modules().items()}
        return parts | {
            "format": FORMAT,
            "version": plrc_version(),
            "config": self.config.to_dict(),
            "images": images,
            "step": step,
            "center": self.learner.center,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "health": [found.to_dict() for found in self.history],
            "lr_factor": self.lr_factor,
            "skipped_in_a_row": int(self.skipped_in_a_row),
        }

    def restore(self, saved: dict[str, Any]) -> int:
        """Take over a checkpoint; returns its step."""
        for name, module in self.learner.modules().items():
            module.load_state_dict(saved[name])
        if self.learner.center is not None:
            self.learner.center.copy_(saved["center"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        self.history = [Health(**found) for found in saved["health"]]
        self.lr_factor = saved["lr_factor"]
        self.skipped_in_a_row.fill_(saved["skipped_in_a_row"])
        if self.lr_factor < 1:
            self.remarks.append(f"the learning rate is {self.lr_factor:g} of the scheduled one")
        return int(saved["step"])

    def drift(self) -> dict[str, float]:
        """Warm start only: |weights - start| / |start| over the backbone's parameters."""
        if not self.start_weights:
            return {}
        now = dict(self.learner.student.backbone.named_parameters())
        moved = sum(float((now[name].detach() - start).square().sum()) for name, start in self.start_weights.items())
        size = sum(float(start.square().sum()) for start in self.start_weights.values())
        return {"drift": (moved / max(size, 1e-30)) ** 0.5}

    def _warm_start(self, path: str) -> None:
        """Put the given weights into student and teacher before anything else looks at them."""
        backbone = self.learner.student.backbone
        file = newest_checkpoint(Path(path)) if Path(path).is_dir() else Path(path)
        if file is None:
            raise PlrcError(f"model.init names the folder {path}, which holds no checkpoint; name a run or a file")
        report = load_into(backbone, read_weights(file))
        self.learner.teacher.load_state_dict(self.learner.student.state_dict())
        self.start_weights = {name: p.detach().clone() for name, p in backbone.named_parameters()}
        self.remarks.append(f"warm start from {path}: {len(report.matched)} tensors taken over")
