"""Fine-tuning: labels and initial weights in, a score on test images out. One loop for boxes, masks and classes.

Layer 5: imports engine and below, and this folder. Every draw follows from (seed, step), so a run that was stopped goes
on to the same numbers. Normalization, trainable layers and the schedule are those of `protocols.TransferConfig`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from plrc import rng
from plrc.data.workers import load_batches
from plrc.engine.runlog import RunLog
from plrc.errors import PlrcError
from plrc.files import parse_json, write_atomic, write_json
from plrc.machine import versions
from plrc.progress import OnProgress, ignore_progress
from plrc.runtime import StopRequest, choose_device
from plrc.transfer.initial import Initial, initial_backbone, verify_inside
from plrc.transfer.labels.splits import LabelledSet, Splits, labelled_subset, read_labelled
from plrc.transfer.protocols import OptimConfig, TransferConfig
from plrc.transfer.tasks import TASKS, Work

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
CHECKPOINT, RESULT, WEIGHTS = "checkpoint.pt", "result.json", "model.safetensors"


@dataclass(frozen=True)
class Result:
    """What a transfer run ended with. Scores in percent, by the names of `metrics.py`."""

    metrics: dict[str, float]
    """Of the test images."""
    val: dict[str, float]
    """Of the validation images, at the end; empty where there are none."""
    curve: list[dict[str, float]]
    """Scores of the validation images while training; each with its `step`."""
    diverged: int
    """The step at which the loss was no longer finite; scores are then 0. Otherwise 0."""
    init: str
    init_report: str
    inside: str
    """What the comparison of the finished detector's backbone with the file said."""
    train_images: int
    steps: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    labels: str = ""
    """Digest of the labels (`Splits.digest`)."""
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Result:
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
            found |= {"metrics": _scores(found["metrics"]), "val": _scores(found["val"])}
            return cls(**found | {"curve": [_scores(point) for point in found["curve"]]})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise PlrcError(f"cannot read the result {path} ({error}); remove it to run this again") from error


def transfer(config: TransferConfig, on_progress: OnProgress = ignore_progress) -> Result | None:
    """Fine-tune and score as `config` says; writes OUT/result.json. None: asked to stop (SIGTERM, Ctrl-C), and saved.

    A finished run is not run again: its result is read. Raises PlrcError for whatever the user can mend.
    """
    out = _folder(config)
    if (out / RESULT).exists():
        return Result.load(out / RESULT)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    device = choose_device(config.run.device)
    layer4_stride = 1 if config.task == "semantic" else 2
    backbone, initial = initial_backbone(
        config.init, config.model.backbone, config.partial, layer4_stride, seed=config.seed
    )
    splits = read_labelled(config.data, config.task)
    labelled = labelled_subset(splits.train, config.data.fraction, config.data.shots, config.seed, config.task)
    work = TASKS[config.task](config, backbone, len(splits.train.classes), device)
    out.mkdir(parents=True, exist_ok=True)
    config.with_values({"run.resume": False}).save(out / "config.toml")
    stop = StopRequest()
    try:
        return _tune(config, out, work, labelled, splits, initial, stop, on_progress)
    finally:
        stop.restore()


def _tune(
    config: TransferConfig,
    out: Path,
    work: Work,
    labelled: LabelledSet,
    splits: Splits,
    initial: Initial,
    stop: StopRequest,
    on_progress: OnProgress,
) -> Result | None:
    steps, model = config.optim.total_steps, work.model
    optimizer = _optimizer(model, config.optim)
    inside = verify_inside(model, initial)
    first, seconds, curve = _restore(out / CHECKPOINT, model, optimizer)
    started = time.perf_counter() - seconds
    diverged = 0
    with RunLog(out, first, steps, main=True, on_progress=on_progress) as log, contextlib.ExitStack() as ends:
        for sentence in (*splits.notes, *initial.lines(), inside):
            log.info(sentence)
        log.info(f"{'resuming' if first else 'starting'} at step {first} of {steps}: {len(labelled.images)} images")
        times = config.evaluations if splits.val.images else 0
        evaluations = {round(steps * (i + 1) / times) for i in range(times)}
        order = _Order(len(labelled.images), config, first)
        batches = ends.enter_context(load_batches(work.training_images(labelled), order, list, config.run.workers))
        window: list[torch.Tensor] = []
        since = time.perf_counter()
        for step in range(first + 1, steps + 1):
            model.train()
            torch.manual_seed(rng.torch_seed(config.seed, "layers", index=step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.optim, step - 1)
            batch = next(batches)
            with torch.autocast(work.device.type, torch.bfloat16, enabled=config.optim.precision == "bfloat16"):
                loss = work.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            if config.optim.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
            optimizer.step()
            window.append(loss.detach())

            if step % config.run.log_every_steps == 0 or step == steps:
                mean = float(torch.stack(window).mean())
                pace = len(window) * config.optim.batch_size / (time.perf_counter() - since)
                log.train_line(step, {"loss": mean, "images_per_second": pace})
                window, since = [], time.perf_counter()
                if not math.isfinite(mean):
                    diverged = step
                    log.info(f"diverged: the loss is {mean} at step {step}; write a lower optim.lr")
                    break
            if step in evaluations:
                curve.append({"step": step, **work.score(splits.val)})
                log.record(step, "val", curve[-1])
                log.info(f"validation at step {step}: {shown(curve[-1])}")
                on_progress(step, steps, f"validation at step {step}: {shown(curve[-1])}")
                since = time.perf_counter()
            asked = stop.agreed()
            if step < steps and (asked or step % config.run.checkpoint_every_steps == 0):
                _save(out / CHECKPOINT, model, optimizer, step, time.perf_counter() - started, curve)
            if asked and step < steps:
                log.info(f"stopped at step {step} of {steps} and saved; go on with --resume")
                return None
        result = Result(
            metrics=work.score(splits.test) if not diverged else work.nothing(),
            val=_last(curve) if not diverged else work.nothing(),
            curve=curve, diverged=diverged, init=config.init, init_report=initial.table(), inside=inside,
            train_images=len(labelled.images), steps=steps, seconds=round(time.perf_counter() - started, 1),
            notes=list(splits.notes), labels=splits.digest(), config=config.to_dict(), versions=versions(),
        )  # fmt: skip
        log.info(f"test: {shown(result.metrics)}")
    if config.run.keep_model:
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_atomic(out / WEIGHTS, lambda file: file.write(safetensors.torch.save(tensors)))
    write_json(out / RESULT, dataclasses.asdict(result))
    (out / CHECKPOINT).unlink(missing_ok=True)
    return result


def learning_rate(config: OptimConfig, step: int) -> float:
    """The rate of the step after `step` others: linear warm-up, then a tenth after each of `drops`."""
    warmup = min(config.warmup_steps, config.total_steps // 10)
    scale = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return config.lr * scale * 0.1 ** sum(step >= share * config.total_steps for share in config.lr_milestones)


def shown(metrics: dict[str, float]) -> str:
    """Scores in one line."""
    return "  ".join(f"{name} {value:.1f}" for name, value in metrics.items() if name != "step")


def _scores(found: dict[str, Any]) -> dict[str, float]:
    """Scores as JSON holds them, with nan again where there was none."""
    return {name: math.nan if value is None else value for name, value in found.items()}


def _last(curve: list[dict[str, float]]) -> dict[str, float]:
    return {name: value for name, value in curve[-1].items() if name != "step"} if curve else {}


def _folder(config: TransferConfig) -> Path:
    config.check_named()
    out = Path(config.run.out)
    if out.exists() and not out.is_dir():
        raise PlrcError(f"{out} is a file; --out names a folder")
    if not (out / "config.toml").exists():
        if out.exists() and any(entry.name != "lock" for entry in out.iterdir()):
            raise PlrcError(f"{out} is not empty and holds no transfer run (no config.toml); name another --out")
        return out
    if not config.run.resume:
        raise PlrcError(f"{out} holds a transfer run; add --resume to go on with it, or name another --out")
    changes = config.changes(TransferConfig.load(out / "config.toml"))
    if changes:
        text = "; ".join(changes.values())
        raise PlrcError(f"{out} was started with other settings ({text}): resume without changing them")
    return out


def _optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": config.norm_decay},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], config.lr, config.momentum)


class _Order(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from step `first` on; each epoch is a permutation keyed by (seed, epoch)."""

    def __init__(self, images: int, config: TransferConfig, first: int) -> None:
        self.images, self.config, self.first = images, config, first

    def __len__(self) -> int:
        return self.config.optim.total_steps - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.config.optim.batch_size
        epoch, order = -1, rng.generator(0, "order").permutation(0)
        for step in range(self.first, self.config.optim.total_steps):
            batch = []
            for position in range(step * size, (step + 1) * size):
                if position // self.images != epoch:
                    epoch = position // self.images
                    order = rng.generator(self.config.seed, "order", epoch=epoch).permutation(self.images)
                batch.append((epoch, int(order[position % self.images])))
            yield batch


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float, curve: list[Any]
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content = {**state, "step": step, "seconds": seconds, "curve": curve}
    write_atomic(path, lambda file: torch.save(content, file))


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float, list[dict[str, float]]]:
    if not path.exists():
        return 0, 0.0, []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["seconds"], state["curve"]
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise PlrcError(f"{path} is damaged; remove it to start this run again") from error
