"""The training loop: schedule, forward, backward, step, teacher and queue, log, check, save (METHOD sections 2 to 4).

It is the same on a CPU, on a GPU, and in several processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from plrc import distributed, rng
from plrc.config import Config
from plrc.data.loader import DeviceLoader, ViewDataset
from plrc.data.sampler import StepSampler
from plrc.engine import health, memory, recovery, schedule
from plrc.engine.checkpointer import Checkpointer, Hooks, RunHook
from plrc.engine.metrics import MetricWindow
from plrc.engine.monitor import Monitor, log_start
from plrc.engine.runlog import RunLog
from plrc.engine.setup import Plan, prepare
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError, RunError
from plrc.files import FolderLock
from plrc.progress import OnProgress, ignore_progress
from plrc.runtime import StopRequest


@dataclass(frozen=True)
class Run:
    """The result of `pretrain`.

    Attributes:
        path: The run folder.
        step: The last step that was made.
        finished: Whether that is the last step of the run; False after SIGTERM or SIGINT, which can be resumed.
        health: All health checks.
    """

    path: Path
    step: int
    finished: bool
    health: tuple[health.Health, ...]


def pretrain(
    config: Config,
    *,
    on_checkpoint: Sequence[RunHook] = (),
    on_finish: Sequence[RunHook] = (),
    on_progress: OnProgress = ignore_progress,
) -> Run:
    """Pre-train a backbone.

    Args:
        config: The settings; those that are not pinned are adapted to the data.
        on_checkpoint: Called with the run folder after each save, in the main process.
        on_finish: Called with the run folder in the main process when the run is finished or stopped, and when a
            finished run is started again.
        on_progress: Called with each line of progress, in the main process.

    Raises:
        PlrcError: If the run cannot start or continue.
    """
    hooks = Hooks(on_checkpoint, on_finish, on_progress)
    stop = StopRequest()
    lock = FolderLock()
    group_of_caller = distributed.is_started()
    try:
        plan = prepare(config, lock)
        try:
            return _train_with_recovery(plan, lock, stop, hooks)
        except (RuntimeError, MemoryError, OSError) as error:
            explanation = recovery.explain(error)
            if explanation:
                raise RunError(explanation) from error
            if not memory.ran_out(error):
                raise
        raise RunError(memory.advice(plan))  # not inside `except`, where the traceback holds what filled the memory
    finally:
        lock.release()
        stop.restore()
        if not group_of_caller:
            distributed.stop()


def _train_with_recovery(plan: Plan, lock: FolderLock, stop: StopRequest, hooks: Hooks) -> Run:
    """Train; if the numbers are no longer finite, train once more from the last good checkpoint."""
    try:
        return _train(plan, lock, stop, hooks)
    except recovery.Diverged as error:
        reason = str(error)  # and not the error, whose traceback holds the network
    return _train(recovery.fall_back(plan, reason), lock, stop, hooks)


def _train(plan: Plan, lock: FolderLock, stop: StopRequest, hooks: Hooks) -> Run:
    config = plan.config
    state = TrainingState(config, plan.device)
    first = state.begin(plan.checkpoint, plan.out / "checkpoints")
    with RunLog(plan.out, first, plan.steps, distributed.is_main(), hooks.on_progress) as log:
        log_start(log, plan, state, first)
        step = first
        if first < plan.steps:
            step = _loop(plan, state, log, Checkpointer(plan, lock, state, log, hooks.on_checkpoint), stop, first)
        if distributed.is_main():
            _finish(plan.out, hooks.on_finish)
    return Run(plan.out, step, step == plan.steps, tuple(state.history))


def _finish(out: Path, on_finish: Sequence[RunHook]) -> None:
    try:
        for call in on_finish:
            call(out)
    except PlrcError as error:
        if isinstance(error.__cause__, OSError):
            raise RunError(f"{error}; when this is fixed, resume with --resume") from error
        raise


def _loop(
    plan: Plan, state: TrainingState, log: RunLog, checkpointer: Checkpointer, stop: StopRequest, first: int
) -> int:
    """Make the steps after `first`; returns the last one."""
    config = plan.config
    accumulation = config.optim.gradient_accumulation_steps
    learner = state.learner
    monitor = Monitor(plan, state, log, checkpointer)
    data = ViewDataset(plan.images, plan.train, config)
    steps = (config.seed, first, plan.steps)
    ranks = (distributed.rank(), distributed.world_size())
    sampler = StepSampler(len(data), config.optim.batch_size, accumulation, *steps, *ranks, groups=data.groups)
    loader = DeviceLoader(data, sampler, plan.workers, plan.device)
    student = learner.wrapped_student()
    window = MetricWindow(config.optim.batch_size, learner.key_counts())
    if not state.history:
        monitor.check_health(first)

    with contextlib.closing(iter(loader)) as batches:
        for step in range(first + 1, plan.steps + 1):
            # schedule
            lr = state.lr_factor * schedule.learning_rate(config.optim, step - 1, plan.steps, plan.steps_per_epoch)
            momentum = schedule.teacher_momentum(config.optim, step - 1, plan.steps)
            temperature = schedule.teacher_temperature(config.objectives, step - 1, plan.steps)
            torch.manual_seed(rng.torch_seed(config.seed, "layers", index=step))
            order = _teacher_order(config, step)

            # forward and backward, one micro-batch after another
            state.guard.save()
            outputs = []
            for micro_batch in range(accumulation):
                batch = next(batches)
                monitor.failures.update(batch.failures)
                with _sync_gradients(student, micro_batch == accumulation - 1):
                    output = learner.compute_terms(batch, student, order, temperature)
                    state.scaler.scale(learner.total_loss(output.terms) / accumulation).backward()
                window.add_terms(output.terms)
                outputs.append(output)

            # student, then teacher, queue and center
            norm, keep = state.update(outputs, lr, momentum)
            window.add_step(norm, keep)

            # log, check, save
            last = step == plan.steps
            if last or step % config.run.log_every_steps == 0:
                values = window.read(loader.waited)
                rates = {"lr": lr, "teacher_momentum": momentum, "teacher_temperature": temperature}
                log.train_line(step, values | rates)
                monitor.report_unreadable()
                monitor.report_skipped(step, values["skipped_steps"])
            if step % recovery.MOST_SKIPPED == 0:
                monitor.check_gradients(step)
            stopped = stop.agreed()
            if last or step % config.run.health_every_steps == 0:
                monitor.check_health(step)
            if last or stopped or step % config.run.checkpoint_every_steps == 0:
                checkpointer.save(step, required=last or stopped)
            if stopped and not last:
                log.info(f"stopped at step {step} of {plan.steps} and saved; resume with --resume")
                break
    monitor.finish()
    return step


def _teacher_order(config: Config, step: int) -> torch.Tensor:
    """The permutation of a micro-batch of all processes that gives the teacher other BatchNorm groups."""
    size = config.optim.batch_size // config.optim.gradient_accumulation_steps
    return torch.from_numpy(rng.generator(config.seed, "shuffle", index=step).permutation(size))


def _sync_gradients(student: nn.Module, sync: bool) -> contextlib.AbstractContextManager[None]:
    """Whether processes exchange gradients in this backward pass: only the last micro-batch of a step does."""
    if sync or not isinstance(student, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return student.no_sync()
