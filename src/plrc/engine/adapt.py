"""Fit a preset's defaults to the data and the batch at hand; every change carries its reason.

Layer 4. Pure: settings in, settings and reasons out. Pinned settings are never touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from plrc.config import Config
from plrc.errors import PlrcError

MIN_STEPS = 2000  # fewer steps than this leave a network near its start
GROUP = 8  # images per BatchNorm group that still give a usable mean and variance


@dataclass(frozen=True)
class Change:
    """One adapted setting: dotted name, old and new value, and why."""

    name: str
    old: Any
    new: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new} ({self.reason})"


def steps_per_epoch(images: int, batch_size: int) -> int:
    return images // batch_size


def total_steps(config: Config, images: int) -> int:
    """Optimiser steps of the whole run over this many training images."""
    per_epoch = steps_per_epoch(images, config.optim.batch_size)
    return config.optim.steps or max(1, round(config.optim.epochs * per_epoch))


def adapt(config: Config, images: int, processes: int = 1) -> tuple[Config, list[Change]]:
    """Fit settings that are not pinned to `images` training images and `processes` that share a batch.

    Raises PlrcError where even adaptation cannot make a batch.
    """
    changes: list[Change] = []

    def change(name: str, new: Any, reason: str) -> None:
        nonlocal config
        old = config.flat()[name]
        if config.adapt and name not in config.pinned and new != old:
            config = config.with_values({name: new}, pin=False)
            changes.append(Change(name, old, new, reason))

    if config.optim.batch_size > images // 2:
        fitting = max(2, 2 ** int(math.log2(max(images // 2, 2))))
        change("optim.batch_size", fitting, f"only {images} training images: at least two batches an epoch")
    batch = config.optim.batch_size
    check_batch(config, images, processes)

    ratio = batch / config.optim.base_batch_size
    if ratio != 1 and config.optim.name == "sgd":
        change(
            "optim.lr",
            _round(config.optim.lr * ratio),
            f"linear in the batch: {batch} / {config.optim.base_batch_size}",
        )
    elif ratio != 1:
        scaled = _round(config.optim.lr * math.sqrt(ratio))
        change("optim.lr", scaled, f"square root of the batch: {batch} / {config.optim.base_batch_size}")
    if config.model.init:
        change("optim.lr", _round(config.optim.lr / 10), "warm start: a tenth, to keep the given weights")

    per_epoch = steps_per_epoch(images, batch)
    if not config.optim.steps and total_steps(config, images) < MIN_STEPS:
        epochs = float(math.ceil(MIN_STEPS / per_epoch))
        change("optim.epochs", epochs, f"{per_epoch} steps an epoch: {MIN_STEPS} steps are the least that teaches")

    if config.objectives.image_weight > 0:
        room = max(batch, images // 2 // batch * batch)
        if config.objectives.queue > room:
            change("objectives.queue", room, f"{images} training images: a longer queue holds an image's own old keys")

    steps = total_steps(config, images)
    momentum = max(0.9, 1 - 10 / steps)
    if config.optim.teacher_momentum > momentum:
        change("optim.teacher_momentum", _round(momentum), f"{steps} steps: the teacher must follow in a tenth of them")

    longest = steps / 10 / per_epoch
    if config.optim.warmup_epochs > longest:
        change("optim.warmup_epochs", _round(longest), f"{steps} steps: a tenth of them is warm-up enough")

    part = batch // config.optim.gradient_accumulation_steps
    groups = max(1, part // GROUP) if processes == 1 else 1
    if config.model.bn_groups > groups:
        alone = f"{part} images at a time: groups of at least {GROUP}"
        reason = alone if processes == 1 else "the processes are the groups"
        change("model.bn_groups", groups, reason)
    return config, changes


def check_batch(config: Config, images: int, processes: int) -> None:
    """Raises PlrcError where the images, or the processes and parts that share a batch, cannot make one."""
    batch, accumulate = config.optim.batch_size, config.optim.gradient_accumulation_steps
    if images < min(batch, 2):
        raise PlrcError(f"{images} training image is too few: a batch needs at least two; add images")
    if images < batch:
        fitting = max(2, images // 2)
        groups = f" --model.bn-groups {fitting // 2}" if fitting < config.model.bn_groups else ""
        raise PlrcError(
            f"{images} training images are fewer than one batch of {batch}: "
            f"add images or write --optim.batch-size {fitting}{groups}"
        )
    if batch % (accumulate * processes):
        raise PlrcError(
            f"optim.batch_size {batch} cannot be shared equally by {processes} processes x {accumulate} parts; "
            f"write a multiple of {processes * accumulate}"
        )


def _round(value: float) -> float:
    return float(f"{value:.6g}")
