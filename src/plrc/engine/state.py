"""Everything that changes while training: how it makes a step, and how it is saved and restored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from plrc import distributed
from plrc.config import Config
from plrc.engine.budget import TimeBudget
from plrc.engine.checkpoint import FORMAT, checkpoint_of, load_checkpoint
from plrc.engine.health import Health
from plrc.engine.learner import Learner, StepOutput
from plrc.engine.optim import BufferGuard, build_optimizer, finite_gradient, guarded_step, restore_optimizer
from plrc.errors import RunError
from plrc.files import write_atomic, write_json
from plrc.machine import plrc_version
from plrc.model import FrozenTeacher, update_teacher
from plrc.model.stages import choose_trained
from plrc.model.starts import PRETRAINED, pretrained_weights, weights_receipt
from plrc.model.weights import load_into, read_weights
from plrc.text import some

WEIGHTS_RECEIPT = "weights.json"
"""In the run folder: which weights a run started from (`weights_receipt`)."""


class TrainingState:
    """Learner, optimizer, loss scaler and health checks; `begin` gives them their first values.

    Attributes:
        learner: Student, teacher, queue and center.
        optimizer: The optimizer of the student.
        scaler: Scales the loss for float16.
        guard: Restores BatchNorm statistics after a skipped step.
        history: All health checks, oldest first.
        budget: The time that the run has used.
        lr_factor: The share of the scheduled learning rate; lowered by `recovery.fall_back`.
        skipped_in_a_row: 0-dim, the number of steps since the last one whose gradient was finite.
        start_weights: The backbone's weights as a warm start loaded them, before the first step; empty without one.
        remarks: Sentences for the user.
        warnings: Sentences for the user to act on.
    """

    def __init__(self, config: Config, device: torch.device, frozen: FrozenTeacher | None = None) -> None:
        self.config = config
        self.learner = Learner(config, device, frozen)
        trained = choose_trained(
            backbone=self.learner.student.backbone,
            size=config.views.size,
            largest_stride=config.model.largest_stride,
            trainable_stages=config.model.trainable_stages,
            layer_decay=config.optim.layer_decay,
        )
        factors = {f"backbone.{name}": factor for name, factor in trained.factors.items()}
        self.optimizer = build_optimizer(self.learner.student, config.optim, factors)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.learner.precision == torch.float16)
        self.guard = BufferGuard(self.learner.student, self.learner.teacher)
        self.history: list[Health] = []
        self.budget = TimeBudget(config.optim)
        self.lr_factor = 1.0
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.start_weights: dict[str, Tensor] = {}
        self.remarks: list[str] = [trained.remark, *self._untrained_levels()]
        self.warnings: list[str] = [] if frozen is None else list(frozen.warnings)

    def begin(self, checkpoint: Path | None, folder: Path) -> int:
        """Restore a checkpoint or, without one, read `model.init` if it is set.

        Args:
            checkpoint: What to restore; None: a fresh start.
            folder: Where the main process keeps the weights of a warm start, so that `drift` works after a resume,
                even if the file that they came from is missing.

        Returns:
            The step from which the run continues.
        """
        kept = folder / "start.safetensors"
        if checkpoint is not None:
            if kept.exists():
                self.start_weights = load_file(kept, str(self.learner.device))
            return self.restore(load_checkpoint(checkpoint))
        if self.config.model.init:
            receipt = self._warm_start(self.config.model.init)
            if distributed.is_main():
                content = save({name: weight.cpu().contiguous() for name, weight in self.start_weights.items()})
                write_atomic(kept, lambda file: file.write(content))
                write_json(folder.parent / WEIGHTS_RECEIPT, receipt)
        return 0

    def update(self, outputs: Sequence[StepOutput], lr: float, momentum: float) -> tuple[Tensor, Tensor]:
        """Update the student, then teacher, queue and center; none of them if the gradient is not finite.

        Args:
            outputs: The outputs of the step's micro-batches, after their backward passes.
            lr: The learning rate.
            momentum: The momentum of the teacher.

        Returns:
            (gradient norm, whether the step was kept), both 0-dim on the device.
        """
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm, keep = finite_gradient(self.learner.student, self.config.optim.max_grad_norm)
        guarded_step(self.optimizer, lr, keep)
        self.scaler.update()
        update_teacher(self.learner.teacher, self.learner.student, momentum, keep)
        self.learner.update_queue_and_center(outputs, keep)
        self.guard.restore_unless(keep)
        self.skipped_in_a_row = torch.where(keep, 0, self.skipped_in_a_row + 1)
        return norm, keep

    def checkpoint(self, step: int, images: str) -> dict[str, Any]:
        """Return the content of a checkpoint (`checkpoint.KEYS`); `images` is the digest of the manifest."""
        modules: dict[str, Any] = {"student": None, "teacher": None, "queue": None}
        for name, module in self.learner.modules().items():
            modules[name] = module.state_dict()
        return modules | {
            "format": FORMAT,
            "version": plrc_version(),
            "config": self.config.to_dict(),
            "images": images,
            "step": step,
            "center": self.learner.centers(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "health": [check.to_dict() for check in self.history],
            "lr_factor": self.lr_factor,
            "skipped_in_a_row": int(self.skipped_in_a_row),
            "seconds_used": self.budget.used,
        }

    def restore(self, saved: dict[str, Any]) -> int:
        """Restore the content of a checkpoint; returns its step.

        Raises:
            RunError: If the checkpoint belongs to other settings.
        """
        try:
            for name, module in self.learner.modules().items():
                module.load_state_dict(saved[name])
            for level in self.learner.levels:
                if level.center is not None:
                    level.center.copy_(saved["center"][str(level.stride)])
        except (RuntimeError, TypeError, KeyError) as error:  # different or missing tensors
            raise RunError(
                "the checkpoint does not fit the changed settings of networks and loss terms; give model.* and "
                "objectives.* the values that they have in the run's config.toml, or start a new run with another --out"
            ) from error
        restore_optimizer(self.optimizer, saved["optimizer"])
        if saved["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        self.history = [Health(**check) for check in saved["health"]]
        self.budget.used = saved["seconds_used"]
        self.lr_factor = saved["lr_factor"]
        self.skipped_in_a_row.fill_(saved["skipped_in_a_row"])
        if self.lr_factor < 1:
            self.remarks.append(f"the learning rate is {self.lr_factor:g} of the scheduled one")
        return int(saved["step"])

    def _untrained_levels(self) -> list[str]:
        """Name the levels above the trained ones: a detector gets their layers with weights that nothing adapted."""
        largest = self.config.model.largest_stride
        above = [stride for stride in self.learner.student.backbone.channels if stride > largest]
        if not above:
            return []
        names = ", ".join(map(str, above))
        weights = "start weights" if self.config.model.init else "random weights"
        remark = f"the layers of stride {names} keep their {weights}, as model.strides ends at {largest}"
        return [f"{remark}; if your detector reads them, add {names} to --model.strides"]

    def drift(self) -> dict[str, float]:
        """Return {"drift": |weights - start| / |start|} of the backbone's parameters; empty without a warm start."""
        if not self.start_weights:
            return {}
        weights = dict(self.learner.student.backbone.named_parameters())
        moved = 0.0
        size = 0.0
        for name, start in self.start_weights.items():
            moved += float((weights[name].detach() - start).square().sum())
            size += float(start.square().sum())
        return {"drift": (moved / max(size, 1e-30)) ** 0.5}

    def _warm_start(self, init: str) -> dict[str, Any]:
        """Load the given weights into student and teacher; returns the receipt."""
        backbone = self.learner.student.backbone
        is_own = init == PRETRAINED
        weights = pretrained_weights(backbone.name) if is_own else read_weights(checkpoint_of(Path(init)))
        report = load_into(backbone, weights)
        if report.inflated:
            self.remarks.append(
                f"the first convolution ({some(report.inflated)}) is inflated from three channels to "
                f"{backbone.in_channels}: its weights are repeated and scaled"
            )
        self.learner.teacher.load_state_dict(self.learner.student.state_dict())
        self.start_weights = {name: weight.detach().clone() for name, weight in backbone.named_parameters()}
        receipt = weights_receipt(init, weights, report, backbone)
        self.remarks.append(
            f"warm start from {init}: {len(report.matched)} tensors loaded, sha256 of the content "
            f"{receipt['content_sha256'][:12]}"
        )
        self.warnings += report.warnings
        return receipt
