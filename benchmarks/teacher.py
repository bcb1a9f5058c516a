"""A training step whose only teacher is a frozen network, compared with the student's own network passes.

All variants share one student and optimizer, run in turn in one process, and start from a batch in memory. They use the
run's own code: the batch holds the teacher's features as the loader reads them from the cache (float16, reduced to
principal components), and the cache is filled by `engine/frozen.py`. The teacher has random weights: their values cost
no time.

    training step    as in `engine/pretrain.py`: augmentation, student, objective, backward, update, means
    network passes   the student's forward and backward on its only view, head included, and the optimizer step
    live teacher     the training step when the batch holds whole images, and the teacher runs in the step
    cache fill       decoding and resizing whole images, teacher, and writing to the disk, in this process
    cache read       reading the features of the batch, which the loader does
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.epoch import short_run
from benchmarks.photographs import write_photographs
from benchmarks.report import Bench, interquartile_range, median, ratios, time_interleaved
from benchmarks.step import PASSES, STEP, Setting
from plrc.config import Config
from plrc.data.loader import Batch, ViewDataset, collate
from plrc.data.teacher_cache import TeacherCache
from plrc.engine.frozen import BATCH_SIZE, fill_cache, open_cache, prepare_teacher
from plrc.engine.runlog import RunLog
from plrc.engine.setup import Plan, prepare
from plrc.errors import ConfigError
from plrc.model import FrozenTeacher, build_backbone
from plrc.presets import FROZEN_TEACHER_ALONE, preset
from plrc.runtime import choose_device

LIVE, FILL, READ = "live teacher", "cache fill", "cache read"


def run(
    *,
    recipe: str = "distill_r18",
    size: int = 96,
    batch: int = 32,
    teacher: str = "timm:tf_efficientnet_lite0",
    teacher_size: int = 224,
    live: bool = False,
    repeats: int = 5,
    device: str = "auto",
) -> Bench:
    """Measure a training step with only a frozen teacher, and the cache of its features.

    Args:
        recipe: The preset of the run, which names the student; only its distillation from the frozen teacher is kept.
        size: Side of a view, pixels.
        batch: Images per step.
        teacher: The frozen teacher, a backbone as in `model.backbone`.
        teacher_size: Side of the teacher's images, pixels.
        live: Also measure a step that runs the teacher instead of reading the cache.
        repeats: Measured rounds.
        device: auto, cpu, cuda or cuda:N.

    Figures are medians over rounds, with their interquartile ranges: `time_ratio` (step / network passes),
    `fill_ratio` and `read_ratio` (time that an image takes to fill or to read the cache / its share of a step).
    `live_ratio` is the step with a live teacher / network passes. Rows with a `part` come from a separate step.

    Raises:
        ConfigError: A number or a network that cannot be used.
    """
    chosen = choose_device(device)
    with tempfile.TemporaryDirectory() as folder:
        config = frozen_run(Path(folder), recipe, size, batch, teacher, teacher_size, str(chosen))
        images = max(batch, BATCH_SIZE)
        write_photographs(Path(config.data.source), images)
        plan = prepare(config)
        with RunLog(plan.out, 0, plan.steps, main=True) as log:
            cached = CachedTeacher(plan, log)
            cached.fill()
            setting = Setting(plan.config, cached.batch().to(chosen), chosen, cached.frozen)
            variants: dict[str, Callable[[], object]] = {
                STEP: setting.step,
                PASSES: setting.passes,
            }
            if live:
                setting_with_images = copy.copy(setting)  # the same state, another batch
                setting_with_images.batch = cached.batch(live=True).to(chosen)
                variants[LIVE] = setting_with_images.step
            variants[FILL] = cached.fill
            variants[READ] = cached.read
            print(f"teacher: {recipe}, {size} px, batch {batch}; {', '.join(variants)}", file=sys.stderr)
            seconds = time_interleaved(variants | {"parts": setting.step_in_parts}, repeats, chosen)
    rows: list[dict[str, Any]] = [
        {"variant": name, "seconds": median(seconds[name]), "spread": interquartile_range(seconds[name])}
        for name in variants
    ]
    rows += setting.part_rows(repeats)
    rates = [images / duration for duration in seconds[FILL]]
    fill_of_a_batch = [duration * batch / images for duration in seconds[FILL]]
    figures: dict[str, Any] = ratios("time_ratio", seconds[STEP], seconds[PASSES])
    if live:
        figures |= ratios("live_ratio", seconds[LIVE], seconds[PASSES])
    figures["cache_bytes_per_image"] = cached.cache.record.itemsize
    figures["fill_images_per_second"] = median(rates)
    figures["fill_images_per_second_spread"] = interquartile_range(rates)
    figures |= ratios("fill_ratio", fill_of_a_batch, seconds[STEP])
    figures |= ratios("read_ratio", seconds[READ], seconds[STEP])
    return Bench(
        kind="teacher",
        settings={
            "recipe": recipe,
            "backbone": config.model.backbone,
            "strides": list(config.model.strides),
            "size": size,
            "batch": batch,
            "teacher": teacher,
            "teacher_size": teacher_size,
            "features": cached.frozen.dim,
            "cells": cached.frozen.side**2,
            "reference_grid": config.objectives.reference_grid,
            "points": config.objectives.distill_points,
            "repeats": repeats,
            "device": str(chosen),
            "precision": str(setting.learner.precision).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
        figures=figures,
        rows=rows,
    )


class CachedTeacher:
    """The frozen teacher of a run, the cache of its features, and the variants that concern it.

    Args:
        plan: A run with a frozen teacher.
        log: The log of the run.

    Raises:
        ConfigError: The cache would be larger than `teacher.cache_gigabytes`.
    """

    def __init__(self, plan: Plan, log: RunLog) -> None:
        frozen = prepare_teacher(plan)
        assert frozen is not None  # the settings want a frozen teacher
        cache = open_cache(plan, frozen, log)
        if cache is None:
            raise ConfigError("the cache of so many features is too large; choose a smaller teacher_size or batch")
        self.plan = plan
        self.log = log
        self.frozen: FrozenTeacher = frozen
        self.cache: TeacherCache = cache

    def fill(self) -> None:
        """Compute the features of all images anew."""
        self.cache.path.write_bytes(bytes(self.cache.path.stat().st_size))  # zeros are no valid record
        fill_cache(self.plan, self.frozen, self.cache, self.log, should_stop=lambda: False)

    def batch(self, live: bool = False) -> Batch:
        """Load a batch with features or, for a live teacher, with whole images."""
        cache = None if live else self.cache
        dataset = ViewDataset(self.plan.images, self.plan.train, self.plan.config, cache)
        return collate([dataset[0, index] for index in range(self.plan.config.optim.batch_size)])

    def read(self) -> None:
        """Read the features of a batch."""
        for position in self.plan.train[: self.plan.config.optim.batch_size].tolist():
            self.cache.read(position)


def frozen_run(
    folder: Path, recipe: str, size: int, batch: int, teacher: str, teacher_size: int, device: str
) -> Config:
    """Configure a run with only the frozen teacher's term, and write random weights of the teacher."""
    weights = folder / "teacher.safetensors"
    save_file(build_backbone(teacher).net.state_dict(), weights)
    base = preset(recipe).with_values(FROZEN_TEACHER_ALONE)
    config = short_run(
        folder, base.model.backbone, size, batch, steps=1, repeats=1, workers=0, device=device, recipe=base
    )
    return config.with_values({"teacher.backbone": teacher, "teacher.init": str(weights), "teacher.size": teacher_size})
