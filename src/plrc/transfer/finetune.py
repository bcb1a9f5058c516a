"""Fine-tuning: labels and initial weights in, a score on test images out. One loop for all tasks.

Every draw follows from (seed, step), so a run that was stopped and resumed ends with the same numbers.
"""

from __future__ import annotations

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
from plrc.data.workers import end_if_importing_main, load_batches
from plrc.engine.runlog import RunLog
from plrc.errors import RunError
from plrc.files import LOCK, is_unused, parse_json, write_atomic, write_json
from plrc.machine import versions
from plrc.progress import OnProgress, ignore_progress
from plrc.runtime import StopRequest, choose_device
from plrc.transfer.data_checks import log_data_warnings
from plrc.transfer.detector_file import WEIGHTS, model_metadata
from plrc.transfer.initial import (
    InitialWeights,
    initial_backbone,
    verify_initial_weights,
    with_detector,
    with_own_backbone,
)
from plrc.transfer.labels.datasets import usual_pixels
from plrc.transfer.labels.splits import LabelledSet, Splits, labelled_subset, read_labelled, require_labels
from plrc.transfer.optim import build_optimizer, has_finite_weights, learning_rate
from plrc.transfer.protocols import OptimConfig, TransferConfig
from plrc.transfer.tasks import TaskModel, build_task_model

CHECKPOINT = "checkpoint.pt"
RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """The outcome of a transfer run. Scores are in percent.

    Attributes:
        metrics: Scores of the test images.
        val: Scores of the validation images at the end; empty without validation images.
        curve: Scores of the validation images while training, each with its "step".
        diverged: The step at which loss or weights were no longer finite (all scores are 0 then); 0 if they were.
        init: The initial weights, as given.
        init_report: The table of the tensors that were loaded.
        inside: Outcome of the comparison of the detector's backbone with the file of weights.
        train_images: Number of images whose labels were used.
        steps: Planned steps of the optimizer.
        seconds: Duration, over all starts of the run.
        notes: What to know about the labels.
        reading: What was read of the labels, as `ReadingReport.to_dict` returns it.
        warnings: Overlaps between splits, and sizes of objects (`data_checks`).
        labels: Digest of the labels (`Splits.digest`).
        config: The configuration.
        versions: Versions of the software.
    """

    metrics: dict[str, float]
    val: dict[str, float]
    curve: list[dict[str, float]]
    diverged: int
    init: str
    init_report: str
    inside: str
    train_images: int
    steps: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    reading: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    labels: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read a result.json. Raises RunError if it cannot be read."""
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            values["metrics"] = _null_to_nan(values["metrics"])
            values["val"] = _null_to_nan(values["val"])
            values["curve"] = [_null_to_nan(scores) for scores in values["curve"]]
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"cannot read the result {path} ({error}); remove it to repeat this run") from error


def transfer(config: TransferConfig, on_progress: OnProgress = ignore_progress) -> Result | None:
    """Fine-tune and score a network, and write OUT/result.json. With `run.resume`, a finished run's result is read.

    Args:
        config: The transfer run.
        on_progress: Called at each line of progress.

    Returns:
        The result; None if the run was asked to stop (SIGTERM, Ctrl-C) and saved a checkpoint.

    Raises:
        PlrcError: Settings, labels, weights or a folder that cannot be used.
    """
    end_if_importing_main()
    config.check_named()
    config = _with_backbone(config)
    out = _check_folder(config)
    if (out / RESULT).exists():
        return Result.load(out / RESULT)
    threads = torch.get_num_threads()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    try:
        return _transfer(config, out, on_progress)
    finally:
        torch.set_num_threads(threads)


def _transfer(config: TransferConfig, out: Path, on_progress: OnProgress) -> Result | None:
    """Build the network, fine-tune it and score it."""
    device = choose_device(config.run.device)
    layer4_stride = 1 if config.task == "semantic" else 2
    splits = read_labelled(config.data, config.task)
    backbone, initial = initial_backbone(
        config.init,
        config.model.backbone,
        config.partial,
        layer4_stride,
        config.seed,
        config.data.pixels,
        usual_pixels(splits.train, config.data.pixels),
    )
    labelled = labelled_subset(splits.train, config.data.fraction, config.data.shots, config.seed)
    require_labels(labelled, config.data)
    task_model = build_task_model(config, backbone, len(splits.train.classes), device)
    initial = with_detector(task_model.model, initial, config, splits.train.classes)
    out.mkdir(parents=True, exist_ok=True)
    config.with_values({"run.resume": False}).save(out / "config.toml")
    stop = StopRequest()
    try:
        return _fine_tune(config, out, task_model, labelled, splits, initial, stop, on_progress)
    finally:
        stop.restore()


def _fine_tune(
    config: TransferConfig,
    out: Path,
    task_model: TaskModel,
    labelled: LabelledSet,
    splits: Splits,
    initial: InitialWeights,
    stop: StopRequest,
    on_progress: OnProgress,
) -> Result | None:
    steps = config.optim.total_steps
    model = task_model.model
    optimizer = build_optimizer(model, config.optim)
    inside = verify_initial_weights(model, initial)
    start_step, seconds_before, curve = _restore(out / CHECKPOINT, model, optimizer)
    started = time.perf_counter() - seconds_before
    diverged = 0
    order = _BatchOrder(len(labelled.images), config, start_step)
    evaluations = _evaluation_steps(config) if splits.val.images else set()
    with (
        RunLog(out, start_step, steps, main=True, on_progress=on_progress) as log,
        load_batches(task_model.training_images(labelled), order, list, config.run.workers) as batches,
    ):
        for line in (*splits.reading.lines(), *initial.lines(), inside):
            log.info(line)
        warnings = log_data_warnings(splits, config.data, [config.init], config)
        verb = "resuming" if start_step else "starting"
        log.info(f"{verb} at step {start_step} of {steps}: {len(labelled.images)} images")
        losses: list[torch.Tensor] = []
        window_started = time.perf_counter()
        for step in range(start_step + 1, steps + 1):
            model.train()
            torch.manual_seed(rng.torch_seed(config.seed, "layers", index=step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.optim, step - 1) * group["lr_factor"]
            optimizer.zero_grad()
            try:
                loss = _backward(task_model, next(batches), config.optim)
            except (ValueError, RuntimeError):  # some detectors refuse boxes that are not finite
                if has_finite_weights(model):
                    raise
                diverged = step
                break
            if config.optim.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
            optimizer.step()
            losses.append(loss)

            if step % config.run.log_every_steps == 0 or step == steps:
                mean_loss = float(torch.stack(losses).mean())
                images_per_second = len(losses) * config.optim.batch_size / (time.perf_counter() - window_started)
                log.log_training(step, {"loss": mean_loss, "images_per_second": images_per_second})
                losses = []
                window_started = time.perf_counter()
                if not math.isfinite(mean_loss):
                    diverged = step
                    break
            else:
                log.log_step(step)
            if (step in evaluations or step == steps) and not has_finite_weights(model):
                diverged = step
                break
            if step in evaluations:
                curve.append({"step": step, **task_model.score(splits.val)})
                log.record(step, "val", curve[-1])
                line = f"validation at step {step}: {format_scores(curve[-1])}"
                log.info(line)
                on_progress(step, steps, line)
                window_started = time.perf_counter()
            stopped = stop.agreed() and step < steps
            if stopped or (step < steps and step % config.run.checkpoint_every_steps == 0):
                _save(out / CHECKPOINT, model, optimizer, step, time.perf_counter() - started, curve)
            if stopped:
                log.info(f"stopped at step {step} of {steps} and saved; resume with --resume")
                return None

        if diverged:
            log.warning(f"diverged: loss or weights are not finite at step {diverged}; write a lower optim.lr")
            metrics = task_model.zero_scores()
            val = task_model.zero_scores() if splits.val.images else {}
        else:
            metrics = task_model.score(splits.test)
            val = _without_step(curve[-1]) if curve else {}
        log.info(f"test: {format_scores(metrics)}")
        result = Result(
            metrics=metrics,
            val=val,
            curve=curve,
            diverged=diverged,
            init=config.init,
            init_report=initial.table(),
            inside=inside,
            train_images=len(labelled.images),
            steps=steps,
            seconds=round(time.perf_counter() - started, 1),
            notes=list(splits.reading.lines()),
            reading=splits.reading.to_dict(),
            warnings=warnings,
            labels=splits.digest(),
            config=config.to_dict(),
            versions=versions(),
        )
    if config.run.keep_model:
        # some networks have one tensor under two names; the file has a copy under each
        tensors = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()
        }
        metadata = model_metadata(config, splits.train.classes, initial.backbone, initial.pixels)
        write_atomic(out / WEIGHTS, lambda file: file.write(safetensors.torch.save(tensors, metadata)))
    write_json(out / RESULT, dataclasses.asdict(result))
    (out / CHECKPOINT).unlink(missing_ok=True)
    return result


def format_scores(scores: dict[str, float]) -> str:
    """Format scores as a line of text, without the step."""
    return "  ".join(f"{name} {value:.1f}" for name, value in _without_step(scores).items())


def _without_step(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name != "step"}


def _null_to_nan(scores: dict[str, Any]) -> dict[str, float]:
    """Scores as JSON has them -> with nan for those that are not defined."""
    return {name: math.nan if value is None else value for name, value in scores.items()}


def _evaluation_steps(config: TransferConfig) -> set[int]:
    """The steps after which the validation images are scored."""
    steps = config.optim.total_steps
    return {round(steps * (i + 1) / config.evaluations) for i in range(config.evaluations)}


def _with_backbone(config: TransferConfig) -> TransferConfig:
    """Let the initial weights decide the backbone; a run that was started keeps its own, and no file is read."""
    stored = Path(config.run.out) / "config.toml"
    if not (config.run.resume and stored.is_file()):
        return with_own_backbone(config, [config.init])
    if "model.backbone" in config.pinned:
        return config
    return config.with_values({"model.backbone": TransferConfig.load(stored).model.backbone}, pin=False)


def _check_folder(config: TransferConfig) -> Path:
    out = Path(config.run.out)
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out names a folder")
    if not (out / "config.toml").exists():
        if not is_unused(out, LOCK):
            raise RunError(f"{out} is not empty and has no transfer run (no config.toml); name another --out")
        return out
    if not config.run.resume:
        raise RunError(f"{out} has a transfer run; add --resume to continue it, or name another --out")
    changes = config.describe_differences(TransferConfig.load(out / "config.toml"))
    if changes:
        text = "; ".join(changes.values())
        raise RunError(f"{out} was started with other settings ({text}): resume without changing them")
    return out


def _backward(task_model: TaskModel, batch: list[Any], config: OptimConfig) -> torch.Tensor:
    """Add the gradients of the mean loss of the batch's parts; returns that loss."""
    parts = config.gradient_accumulation_steps
    size = -(-len(batch) // parts)
    total = torch.zeros((), device=task_model.device)
    for start in range(0, len(batch), size):
        with torch.autocast(task_model.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = task_model.loss(batch[start : start + size]) / parts
        loss.backward()
        total += loss.detach()
    return total


class _BatchOrder:
    """Batches of (epoch, index) from step `start_step` on; each epoch is a permutation keyed by (seed, epoch)."""

    def __init__(self, images: int, config: TransferConfig, start_step: int) -> None:
        self.images = images
        self.config = config
        self.start_step = start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.config.optim.batch_size
        order_epoch = -1
        order: list[int] = []
        for step in range(self.start_step, self.config.optim.total_steps):
            batch = []
            for position in range(step * size, (step + 1) * size):
                epoch, place = divmod(position, self.images)
                if epoch != order_epoch:
                    order = rng.generator(self.config.seed, "order", epoch=epoch).permutation(self.images).tolist()
                    order_epoch = epoch
                batch.append((epoch, order[place]))
            yield batch


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float, curve: list[Any]
) -> None:
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
        "curve": curve,
    }
    write_atomic(path, lambda file: torch.save(content, file))


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float, list[dict[str, float]]]:
    """Load a checkpoint if there is one; returns (step, seconds, curve)."""
    if not path.exists():
        return 0, 0.0, []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["seconds"], state["curve"]
    except Exception as error:  # torch.load raises errors of many classes for damaged files
        raise RunError(f"{path} is damaged; remove it to start this run again") from error
