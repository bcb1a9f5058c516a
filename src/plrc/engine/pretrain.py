"""THE loop: schedule, forward, backward, step, teacher, queue, log, check, save. Layer 4.

Method: METHOD sections 2 to 4. It runs unchanged on a CPU, on one GPU, and under torchrun.
"""

from __future__ import annotations

import contextlib
import math
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
from plrc.engine.metrics import MetricWindow
from plrc.engine.monitor import Monitor, OnCheckpoint
from plrc.engine.runlog import RunLog, provenance
from plrc.engine.setup import Plan, prepare
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError, RunError
from plrc.files import FolderLock
from plrc.runtime import StopRequest

ENDED_LOADER = "DataLoader worker (pid"  # how PyTorch begins to say that a loader process is gone


@dataclass(frozen=True)
class Run:
    """A run folder and where its training stands. `finished` is False after SIGTERM or SIGINT: resume it."""

    path: Path
    step: int
    finished: bool
    health: tuple[health.Health, ...]


def pretrain(config: Config, on_checkpoint: Sequence[OnCheckpoint] = (), on_finish: Sequence[OnCheckpoint] = ()) -> Run:
    """Pre-train as `config` says. Settings in `config.pinned` are not adapted to the data.

    The main process calls each of `on_checkpoint` with the run folder after every save, and each of `on_finish` when
    training is finished or stopped, and when a finished run is started again.
    """
    stop, lock, theirs = StopRequest(), FolderLock(), distributed.is_started()
    try:
        plan = prepare(config, lock)
        try:
            run = _recovering(plan, lock, stop, on_checkpoint)
            _finish(run, on_finish)
            return run
        except (RuntimeError, MemoryError, OSError) as error:
            if sentence := _explained(error):
                raise PlrcError(sentence) from error
            if not memory.ran_out(error):
                raise
        raise PlrcError(memory.advice(plan))  # out here, where nothing holds on to what had filled the memory
    finally:
        lock.release()
        stop.restore()
        if not theirs:
            distributed.stop()


def _explained(error: Exception) -> str:
    """What a failure of another process means for the user; empty for all other errors."""
    if str(error).startswith(ENDED_LOADER):
        reason = f"a loader process was ended from outside, most often for want of memory ({error})"
        return f"{reason}; go on with --resume and a lower --run.workers"
    gone = distributed.lost(error)
    return f"{gone}: it has ended or hangs; look at what it said, then go on with --resume" if gone else ""


def _recovering(plan: Plan, lock: FolderLock, stop: StopRequest, on_checkpoint: Sequence[OnCheckpoint]) -> Run:
    """Train; where the numbers are no longer finite, once more from the last good checkpoint."""
    try:
        return _train(plan, lock, stop, on_checkpoint)
    except recovery.Diverged as error:
        reason = str(error)  # and not its traceback, which holds the network
    return _train(recovery.fall_back(plan, reason), lock, stop, on_checkpoint)


def _finish(run: Run, on_finish: Sequence[OnCheckpoint]) -> None:
    if not distributed.is_main():
        return
    try:
        for call in on_finish:
            call(run.path)
    except PlrcError as error:
        if isinstance(error.__cause__, OSError):
            raise RunError(f"{error}; when this is fixed, resume with --resume") from error
        raise


def _train(plan: Plan, lock: FolderLock, stop: StopRequest, on_checkpoint: Sequence[OnCheckpoint]) -> Run:
    config, device, parts = plan.config, plan.device, plan.config.optim.gradient_accumulation_steps
    state = TrainingState(config, device)
    first = state.begin(plan.checkpoint, plan.out / "checkpoints")
    log = RunLog(plan.out, first, plan.steps, distributed.is_main())
    with contextlib.ExitStack() as ends:
        ends.enter_context(contextlib.closing(log))
        for remark in (*plan.remarks, *state.remarks):
            log.say(remark)
        if first >= plan.steps:
            log.say(f"nothing left to do: the run is finished, at step {first} of {plan.steps}")
            return Run(plan.out, first, True, tuple(state.history))
        log.say(f"{'resuming' if first else 'starting'} at step {first} of {plan.steps} on {device}")
        log.record(first, "start", provenance(device))
        if config.objectives.image_weight > 0 and not first:
            filling = math.ceil(config.objectives.queue / config.optim.batch_size)
            log.say(f"the image loss rises for {filling} steps, while real keys replace the random ones in the queue")
        ranks = distributed.rank(), distributed.world_size()
        data = ViewDataset(plan.images, plan.train, config)
        steps = config.seed, first, plan.steps
        sampler = StepSampler(len(data), config.optim.batch_size, parts, *steps, *ranks, groups=data.groups)
        loader = DeviceLoader(data, sampler, plan.workers, device)
        batches = ends.enter_context(contextlib.closing(iter(loader)))
        watch = Monitor(plan, lock, state, log, on_checkpoint)
        learner, student = state.learner, state.learner.wrapped_student()
        window = MetricWindow(config.optim.batch_size, learner.key_counts())

        if not state.history:
            watch.check(first)
        step = first
        for step in range(first + 1, plan.steps + 1):
            lr = state.lr_factor * schedule.learning_rate(config.optim, step - 1, plan.steps, plan.steps_per_epoch)
            temperature = schedule.teacher_temperature(config.objectives, step - 1, plan.steps)
            momentum = schedule.teacher_momentum(config.optim, step - 1, plan.steps)
            torch.manual_seed(rng.torch_seed(config.seed, "layers", index=step))
            order = _teacher_order(config, step)

            state.guard.remember()
            outcomes = []
            for part in range(parts):
                batch = next(batches)
                watch.failures.update(batch.failures)
                with _sync_if(part == parts - 1, student):
                    outcome = learner.compute_terms(batch, student, order, temperature)
                    state.scaler.scale(learner.total_loss(outcome.terms) / parts).backward()
                window.add_terms(outcome.terms)
                outcomes.append(outcome)
            norm, keep = state.update(outcomes, lr, momentum)
            window.add_step(norm, keep)

            last = step == plan.steps
            log_now = last or step % config.run.log_every_steps == 0
            if log_now:
                rates = {"lr": lr, "teacher_momentum": momentum, "teacher_temperature": temperature}
                values = window.read(loader.waited)
                log.train_line(step, values | rates)
                watch.tell_failures()
                watch.tell_skipped(step, values["skipped_steps"])
            if step % recovery.MOST_SKIPPED == 0:
                watch.check_numbers(step)
            asked = stop.agreed()
            if last or step % config.run.health_every_steps == 0:
                watch.check(step)
            if last or asked or step % config.run.checkpoint_every_steps == 0:
                watch.save(step, or_fail=last or asked)
            if asked and not last:
                log.say(f"stopped at step {step} of {plan.steps} and saved; go on with --resume")
                break
        watch.tell_failures()
        watch.close()
        return Run(plan.out, step, step == plan.steps, tuple(state.history))


def _teacher_order(config: Config, step: int) -> torch.Tensor:
    """The permutation of the joined part by which the teacher's BatchNorm groups differ from the student's."""
    size = config.optim.batch_size // config.optim.gradient_accumulation_steps
    return torch.from_numpy(rng.generator(config.seed, "shuffle", index=step).permutation(size))


def _sync_if(last: bool, student: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Only the last part of a step exchanges gradients between processes."""
    if last or not isinstance(student, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return student.no_sync()
