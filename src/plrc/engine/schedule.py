"""The schedules of a run, as functions of the number of steps already made and of the steps of the whole run.

With a time budget the latter is an estimate, and may be infinite before the first step (`budget.py`).
"""

from __future__ import annotations

import math

from plrc.config import ObjectiveConfig, OptimConfig

WARMUP_SHARE = 0.1
"""With a time budget, the largest share of it that the warm-up of the learning rate takes."""


def learning_rate(config: OptimConfig, step: int, steps: float, steps_per_epoch: int) -> float:
    """Return the learning rate: a linear warm-up, then a cosine to 0."""
    warmup: float = round(config.warmup_epochs * steps_per_epoch)
    if config.hours:
        warmup = min(warmup, WARMUP_SHARE * steps)
    if step < warmup:
        return config.lr * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def teacher_momentum(config: OptimConfig, step: int, steps: float) -> float:
    """Return the momentum of the teacher: constant, or rising to 1 along a cosine."""
    if config.teacher_schedule == "constant":
        return config.teacher_momentum
    return 1 - (1 - config.teacher_momentum) * 0.5 * (1 + math.cos(math.pi * step / steps))


def teacher_temperature(config: ObjectiveConfig, step: int, steps: float) -> float:
    """Return the temperature of the teacher, linear over the warm-up share of the run (METHOD section 4)."""
    progress = min(1.0, step / max(1.0, config.temperature_warmup * steps))
    return config.teacher_temperature_start + progress * (config.teacher_temperature - config.teacher_temperature_start)
