"""A whole training step compared with the network passes it needs and with the bare backbone, and where its time goes.

All variants share one student, teacher and optimizer, run in turn in one process, and start from a batch in memory:
uint8 views for the step, which augments them; finished views for the others. Each updates with learning rate 0, at the
usual cost, so that all repeats see the same weights.

    training step    as in `engine/pretrain.py`: augmentation, teacher, student, objectives, backward, update, means
    network passes   student forward and backward on A, teacher forward on C and B, heads included; optimizer step
    bare backbone    the same without heads and optimizer

All of them process the batch in the same `bn_groups` parts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.photographs import write_photographs
from benchmarks.report import Bench, interquartile_range, median, peak_bytes, ratios, synchronize, time_interleaved
from plrc import rng
from plrc.config import Config, DataConfig
from plrc.data.loader import Batch, ViewDataset, collate
from plrc.data.sources import find_images
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.engine.adapt import adapt
from plrc.engine.metrics import MetricWindow
from plrc.engine.optim import finite_gradient, guarded_step
from plrc.engine.state import TrainingState
from plrc.errors import ConfigError
from plrc.model import FrozenTeacher, update_teacher
from plrc.model.network import Features
from plrc.presets import preset
from plrc.runtime import choose_device

STEP, PASSES, BACKBONE = "training step", "network passes", "bare backbone"


def run(
    *,
    backbone: str = "resnet50",
    size: int = 224,
    batch: int = 8,
    bn_groups: int = 0,
    repeats: int = 5,
    device: str = "auto",
    peers: bool = False,
) -> Bench:
    """Measure time and peak memory of a training step of the preset paper_r50.

    Args:
        backbone: A torchvision ResNet.
        size: Side of a view, pixels.
        batch: Images per step.
        bn_groups: BatchNorm groups; 0: what `plrc pretrain` chooses for the batch.
        repeats: Measured rounds.
        device: auto, cpu, cuda or cuda:N.
        peers: Also measure the steps of lightly's MoCo v2 and DenseCL (`peers.py`), interleaved with ours.

    Figures are medians over rounds of ratios within a round: `time_ratio` (step / network passes) and
    `backbone_ratio` (step / bare backbone), each with its interquartile range; `memory_ratio` compares peaks beyond
    what is always alive (weights, queue, optimizer state). Rows with a `part` come from a separate step that waits for
    the device after each part, so on a GPU they may add up to more than the step.
    """
    chosen = choose_device(device)
    config = _config(backbone, size, batch, bn_groups)
    setting = Setting(config, make_batch(config).to(chosen), chosen)
    variants: dict[str, Callable[[], object]] = {
        STEP: setting.step,
        PASSES: setting.passes,
        BACKBONE: setting.bare_backbone,
    }
    if peers:
        from benchmarks.peers import peer_variants

        variants |= peer_variants(config, setting.views[QUERY], setting.views[REFERENCE], setting.autocast)
    print(f"step: {backbone}, {size} px, batch {batch}; {', '.join(variants)}", file=sys.stderr)
    seconds = time_interleaved(variants | {"parts": setting.step_in_parts}, repeats, chosen)
    print(f"step: peak memory of {len(variants)} variants", file=sys.stderr)
    peaks = {name: peak_bytes(function, chosen) for name, function in variants.items()}
    rows: list[dict[str, Any]] = [
        {
            "variant": name,
            "seconds": median(seconds[name]),
            "spread": interquartile_range(seconds[name]),
            "peak_bytes": peaks[name],
        }
        for name in variants
    ]
    rows += setting.part_rows(repeats)
    figures = ratios("time_ratio", seconds[STEP], seconds[PASSES])
    figures |= ratios("backbone_ratio", seconds[STEP], seconds[BACKBONE])
    figures["memory_ratio"] = peaks[STEP] / peaks[PASSES]
    for name in variants:
        passes = f"{name}: {PASSES}"
        if passes in variants:
            figures |= ratios(f"{name}: time_ratio", seconds[name], seconds[passes])
            figures[f"{name}: memory_ratio"] = peaks[name] / peaks[passes]
    precision = str(setting.state.learner.precision).removeprefix("torch.")
    return Bench(
        kind="step",
        settings={
            "backbone": backbone,
            "size": size,
            "batch": batch,
            "bn_groups": config.model.bn_groups,
            "repeats": repeats,
            "device": str(chosen),
            "precision": precision,
            "threads": torch.get_num_threads(),
        },
        figures=figures,
        rows=rows,
    )


class Setting:
    """Training state, batch and views of the benchmark, and its variants as methods."""

    def __init__(self, config: Config, batch: Batch, device: torch.device, frozen: FrozenTeacher | None = None) -> None:
        self.config = config
        self.batch = batch
        self.device = device
        self.state = TrainingState(config, device, frozen)
        self.learner = self.state.learner
        learner = self.learner
        self.window = MetricWindow(config.optim.batch_size, learner.key_counts())
        self.views = learner.augment(batch)
        self.order = torch.from_numpy(rng.generator(config.seed, "shuffle").permutation(batch.images.shape[1]))
        self.parts: dict[str, list[float]] = {}  # seconds of each call of step_in_parts

    def step(self, lr: float = 0.0) -> None:
        """Do what `engine/pretrain.py` does with a batch."""
        temperature = self.config.objectives.teacher_temperature
        self.state.guard.save()
        outcome = self.learner.compute_terms(self.batch, self.learner.student, self.order, temperature)
        self.state.scaler.scale(self.learner.total_loss(outcome.terms)).backward()
        self.window.add_terms(outcome.terms)
        self.window.add_step(*self.state.update([outcome], lr, self.config.optim.teacher_momentum))

    def step_in_parts(self, lr: float = 0.0) -> None:
        """Do the same with `TrainingState.update` written out, and wait for the device after each part."""
        state = self.state
        learner = self.learner
        temperature = self.config.objectives.teacher_temperature
        laps = _Laps(self.device)
        state.guard.save()
        laps("guard")
        hooks = [
            learner.teacher.register_forward_pre_hook(lambda *_: laps("augmentation and shuffling")),
            learner.teacher.register_forward_hook(lambda *_: laps("teacher forward")),
        ]

        def student(*arguments: Any) -> Features:
            laps("augmentation and shuffling")  # undoing the shuffle that the teacher's BatchNorm saw
            features: Features = learner.student(*arguments)
            laps("student forward")

            def end_objectives(_: Tensor) -> None:  # the first call: the heads' backward follows that of all objectives
                laps("objectives")
                for end in ends:
                    end.remove()

            ends = [feature.register_hook(end_objectives) for feature in features.values()]
            return features

        outcome = learner.compute_terms(self.batch, student, self.order, temperature)
        for hook in hooks:
            hook.remove()
        loss = state.scaler.scale(learner.total_loss(outcome.terms))
        laps("objectives")
        loss.backward()
        laps("backward")
        if state.scaler.is_enabled():
            state.scaler.unscale_(state.optimizer)
        norm, keep = finite_gradient(learner.student, self.config.optim.max_grad_norm)
        laps("guard")
        guarded_step(state.optimizer, lr, keep)
        state.scaler.update()
        laps("optimizer")
        update_teacher(learner.teacher, learner.student, self.config.optim.teacher_momentum, keep)
        laps("EMA")
        learner.update_queue_and_center([outcome], keep)
        laps("queue")
        state.guard.restore_unless(keep)
        laps("guard")
        self.window.add_terms(outcome.terms)
        self.window.add_step(norm, keep)
        laps("running means")
        for name, seconds in laps.seconds.items():
            self.parts.setdefault(name, []).append(seconds)

    def part_rows(self, repeats: int) -> list[dict[str, Any]]:
        """Return a row for each part of a step: the median over the last `repeats` calls of `step_in_parts`."""
        seconds = {name: median(laps[-repeats:]) for name, laps in self.parts.items()}
        total = sum(seconds.values())
        rows: list[dict[str, Any]] = []
        for name, duration in seconds.items():
            rows.append({"variant": STEP, "part": name, "seconds": duration, "share": duration / total})
        return rows

    def passes(self) -> None:
        """Run the networks on the views that the settings need, the student's backward pass and the optimizer."""
        student = self.learner.student
        teacher = self.learner.teacher
        groups = self.config.model.bn_groups
        with self.autocast():
            with torch.no_grad():
                if self.config.needs_reference_view:
                    teacher(self.views[REFERENCE], groups)
                if self.config.objectives.needs_match_view:
                    teacher(self.views[MATCH], groups, ("distill",))
            features = student(self.views[QUERY], groups)
        _backward(list(features.values()))
        guarded_step(self.state.optimizer, 0.0, torch.ones((), dtype=torch.bool, device=self.device))

    def bare_backbone(self) -> None:
        student = self.learner.student
        teacher = self.learner.teacher
        groups = self.config.model.bn_groups
        with self.autocast():
            with torch.no_grad():
                for view in (REFERENCE, MATCH):
                    for part in self.views[view].tensor_split(groups):
                        teacher.backbone(part, teacher.strides[-1])
            parts = self.views[QUERY].tensor_split(groups)
            features = [student.backbone(part, student.strides[-1])[student.strides[-1]] for part in parts]
        _backward(features)
        student.zero_grad(set_to_none=True)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the networks in a step; disabled for float32."""
        precision = self.learner.precision
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)


def make_batch(config: Config) -> Batch:
    """Make a batch as the loader's workers do, from generated photographs."""
    count = config.optim.batch_size
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder) / "images", count)
        images = find_images(DataConfig(source=str(Path(folder) / "images")))
        dataset = ViewDataset(images, np.arange(count), config)
        return collate([dataset[0, i] for i in range(count)])


def _config(backbone: str, size: int, batch: int, bn_groups: int) -> Config:
    """Return paper_r50 at these sizes; raise ConfigError for sizes that no run could have."""
    if not 0 <= bn_groups <= batch:
        raise ConfigError(f"bn_groups must be 0 (chosen from the batch) to {batch} (the batch), got {bn_groups}")
    values = {
        "model.backbone": backbone,
        "views.size": size,
        "optim.batch_size": batch,
        "objectives.queue": preset("paper_r50").objectives.queue,
    }
    if bn_groups:
        values["model.bn_groups"] = bn_groups
    config = preset("paper_r50").with_values(values)
    return adapt(config, images=100 * batch)[0]


def _backward(features: list[Tensor]) -> None:
    torch.stack([feature.mean() for feature in features]).sum().backward()


class _Laps:
    """A stopwatch: laps(part) waits for the device and adds the time since the last call to `part`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = defaultdict[str, float](float)
        synchronize(device)
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now
