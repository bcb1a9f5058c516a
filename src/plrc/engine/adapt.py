"""Fit a preset's defaults to the data and the batch; every change carries its reason.

Pinned settings are never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plrc.config import Config
from plrc.engine.checks import check_batch

MIN_STEPS = 2000  # with fewer steps the weights stay close to random
GROUP = 8  # images per BatchNorm group that give a usable mean and variance


@dataclass(frozen=True)
class Change:
    """An adapted setting.

    Attributes:
        name: Dotted name.
        old: The value before.
        new: The value now.
        reason: Why it was changed.
    """

    name: str
    old: Any
    new: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new} ({self.reason})"


@dataclass(frozen=True)
class Sizes:
    """What settings are fitted to: the number of training images, and of processes that share a batch."""

    images: int
    processes: int


Rule = Callable[[Config, Sizes], "Change | None"]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the steps in which each of the images comes once; the rest of them, less than a batch, is left out."""
    return images // batch_size


def total_steps(config: Config, images: int) -> int:
    """Return the steps of the whole run over this many training images, if it has no time budget."""
    per_epoch = steps_per_epoch(images, config.optim.batch_size)
    return config.optim.steps or max(1, round(config.optim.epochs * per_epoch))


def adapt(config: Config, images: int, processes: int = 1) -> tuple[Config, list[Change]]:
    """Fit settings that are not pinned.

    Args:
        config: The settings.
        images: Number of training images.
        processes: How many processes share a batch; batch sizes count all of them.

    Returns:
        (adapted settings, changes in the order in which they were made).

    Raises:
        ConfigError, DataError: If even adapted settings do not make a batch.
    """
    sizes = Sizes(images, processes)
    config, batch_changes = _apply([_smaller_batch], config, sizes)
    check_batch(config, images, processes)
    config, other_changes = _apply(RULES, config, sizes)
    return config, batch_changes + other_changes


def _apply(rules: Sequence[Rule], config: Config, sizes: Sizes) -> tuple[Config, list[Change]]:
    """Apply rules one after another; each of them sees what those before it changed."""
    changes: list[Change] = []
    for rule in rules:
        change = rule(config, sizes)
        if change is None or change.new == change.old or not config.adapt or change.name in config.pinned:
            continue
        config = config.with_values({change.name: change.new}, pin=False)
        changes.append(change)
    return config, changes


def _smaller_batch(config: Config, sizes: Sizes) -> Change | None:
    if config.optim.batch_size <= sizes.images // 2:
        return None
    fitting = max(2, 2 ** int(math.log2(max(sizes.images // 2, 2))))
    reason = f"only {sizes.images} training images: at least two batches per epoch"
    return Change("optim.batch_size", config.optim.batch_size, fitting, reason)


def _scaled_lr(config: Config, sizes: Sizes) -> Change | None:
    batch = config.optim.batch_size
    base = config.optim.base_batch_size
    if batch == base:
        return None
    if config.optim.name == "sgd":
        scaled = config.optim.lr * (batch / base)
        reason = f"linear in the batch: {batch} / {base}"
    else:
        scaled = config.optim.lr * math.sqrt(batch / base)
        reason = f"square root of the batch: {batch} / {base}"
    return Change("optim.lr", config.optim.lr, _round(scaled), reason)


def _warm_start_lr(config: Config, sizes: Sizes) -> Change | None:
    has_contrast = config.objectives.image_weight > 0 or config.objectives.point_weight > 0
    if not config.model.init or not has_contrast:
        return None
    reason = "warm start: a tenth, because contrast changes the given weights"
    return Change("optim.lr", config.optim.lr, _round(config.optim.lr / 10), reason)


def _more_epochs(config: Config, sizes: Sizes) -> Change | None:
    if config.optim.steps or config.optim.hours or total_steps(config, sizes.images) >= MIN_STEPS:
        return None
    per_epoch = steps_per_epoch(sizes.images, config.optim.batch_size)
    reason = f"{per_epoch} steps per epoch: at least {MIN_STEPS} steps are needed to train"
    return Change("optim.epochs", config.optim.epochs, float(math.ceil(MIN_STEPS / per_epoch)), reason)


def _shorter_queue(config: Config, sizes: Sizes) -> Change | None:
    batch = config.optim.batch_size
    longest = max(batch, sizes.images // 2 // batch * batch)
    if config.objectives.image_weight == 0 or config.objectives.queue <= longest:
        return None
    reason = f"{sizes.images} training images: a longer queue holds old keys of the same image"
    return Change("objectives.queue", config.objectives.queue, longest, reason)


def _faster_teacher(config: Config, sizes: Sizes) -> Change | None:
    if config.optim.hours:
        return None
    steps = total_steps(config, sizes.images)
    highest = max(0.9, 1 - 10 / steps)
    if config.optim.teacher_momentum <= highest:
        return None
    reason = f"{steps} steps: the teacher must follow within a tenth of them"
    return Change("optim.teacher_momentum", config.optim.teacher_momentum, _round(highest), reason)


def _shorter_warmup(config: Config, sizes: Sizes) -> Change | None:
    if config.optim.hours:
        return None
    steps = total_steps(config, sizes.images)
    longest = steps / 10 / steps_per_epoch(sizes.images, config.optim.batch_size)
    if config.optim.warmup_epochs <= longest:
        return None
    reason = f"{steps} steps: a tenth of them is enough warm-up"
    return Change("optim.warmup_epochs", config.optim.warmup_epochs, _round(longest), reason)


def _fewer_bn_groups(config: Config, sizes: Sizes) -> Change | None:
    images = config.optim.batch_size // config.optim.gradient_accumulation_steps
    if sizes.processes > 1:
        most = 1
        reason = "the processes are the groups"
    else:
        most = max(1, images // GROUP)
        reason = f"{images} images at a time: groups of at least {GROUP}"
    if config.model.bn_groups <= most:
        return None
    return Change("model.bn_groups", config.model.bn_groups, most, reason)


RULES: tuple[Rule, ...] = (
    _scaled_lr,
    _warm_start_lr,
    _more_epochs,
    _shorter_queue,
    _faster_teacher,
    _shorter_warmup,
    _fewer_bn_groups,
)


def _round(value: float) -> float:
    return float(f"{value:.6g}")
