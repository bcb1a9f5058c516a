"""The schedules of a run, as functions of the number of steps already made."""

from __future__ import annotations

import math

from plrc.config import ObjectiveConfig, OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate: a linear warm-up, then a cosine to 0."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def teacher_momentum(config: OptimConfig, step: int, steps: int) -> float:
    """Return the momentum of the teacher: constant, or rising to 1 along a cosine."""
    if config.teacher_schedule == "constant":
        return config.teacher_momentum
    return 1 - (1 - config.teacher_momentum) * 0.5 * (1 + math.cos(math.pi * step / steps))


def teacher_temperature(config: ObjectiveConfig, step: int, steps: int) -> float:
    """Return the temperature of the teacher, linear over the warm-up share of the run (METHOD section 4)."""
    progress = min(1.0, step / max(1.0, config.temperature_warmup * steps))
    return config.teacher_temperature_start + progress * (config.teacher_temperature - config.teacher_temperature_start)
