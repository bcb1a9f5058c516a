"""THE loop: schedule, forward, backward, step, teacher, queue, log, check, save. Layer 4.

Method: METHOD sections 2 to 4. It runs unchanged on a CPU, on one GPU, and under torchrun.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from plrc import distributed, rng
from plrc.config import Config, PlrcError
from plrc.data.loader import DeviceLoader, StepSampler, ViewDataset
from plrc.data.manifest import read_manifest
from plrc.engine import health, memory, schedule
from plrc.engine.checkpoint import newest_checkpoint, save_checkpoint
from plrc.engine.recovery import MOST_SKIPPED, Diverged, fall_back, non_finite
from plrc.engine.runlog import RunLog, provenance
from plrc.engine.setup import Plan, StopRequest, prepare
from plrc.engine.state import TrainingState
from plrc.engine.window import Window, total_loss
from plrc.files import FolderLock, printable
from plrc.machine import return_freed_memory

ENDED_LOADER = "DataLoader worker (pid"  # how PyTorch begins to say that a loader process is gone

OnCheckpoint = Callable[[Path], None]


@dataclass(frozen=True)
class Run:
    """A run folder and where its training stands. `finished` is False after SIGTERM or SIGINT: resume it."""

    path: Path
    step: int
    finished: bool
    health: tuple[health.Health, ...]


def pretrain(config: Config, explicit: Set[str] = frozenset(), on_checkpoint: Sequence[OnCheckpoint] = ()) -> Run:
    """Pre-train as `config` says. `explicit`: dotted names of settings that must not be adapted.

    Each of `on_checkpoint` is called with the run folder after every save, in the main process.
    """
    stop, lock, theirs = StopRequest(), FolderLock(), distributed.is_started()
    try:
        plan = prepare(config, explicit, lock)
        try:
            return _recovering(plan, lock, stop, on_checkpoint)
        except (RuntimeError, MemoryError) as error:
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


def _recovering(plan: Plan, lock: FolderLock, stop: StopRequest, on_checkpoint: Sequence[OnCheckpoint]) -> Run:
    """Train; where the numbers are no longer finite, once more from the last good checkpoint."""
    try:
        return _train(plan, lock, stop, on_checkpoint)
    except Diverged as error:
        reason = str(error)  # and not its traceback, which holds the network
    return _train(fall_back(plan, reason), lock, stop, on_checkpoint)


def _train(plan: Plan, lock: FolderLock, stop: StopRequest, on_checkpoint: Sequence[OnCheckpoint]) -> Run:
    config, device, parts = plan.config, plan.device, plan.config.optim.accumulate
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
        watch = Watch(plan, lock, state, log, on_checkpoint)
        learner, student = state.learner, state.learner.wrapped_student()
        window = Window(config, learner.key_counts())

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
                    outcome = learner.terms(batch, student, order, temperature)
                    state.scaler.scale(total_loss(outcome.terms, config) / parts).backward()
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
            if step % MOST_SKIPPED == 0:
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


class Watch:
    """What surrounds the loop: health checks, unreadable images, saving. Only the main process measures and writes."""

    def __init__(
        self, plan: Plan, lock: FolderLock, state: TrainingState, log: RunLog, on_checkpoint: Sequence[OnCheckpoint]
    ) -> None:
        self.plan, self.lock, self.state, self.log, self.on_checkpoint = plan, lock, state, log, on_checkpoint
        held_out = plan.held_out if distributed.is_main() else plan.held_out[:0]
        self.health = health.HealthCheck(plan.config, plan.images, held_out, plan.device)
        for name, reason in self.health.unreadable.items():
            log.say(f"warning: cannot read the held-out image {name}: {reason}; health is measured without it")
        if 0 < len(held_out) == len(self.health.unreadable):
            log.say("warning: no held-out image can be read: there are no health checks")
        self.failures: dict[str, str] = {}  # of this process, not yet told: name and reason
        self.bad: dict[str, str] = {}  # of all processes
        self.images = str(read_manifest(plan.out / "manifest.json")["sha256"])

    def check(self, step: int) -> None:
        """Measure health; stop the run, after saving, when the features have collapsed."""
        history = self.state.history
        if not history or history[-1].step < step:
            began = time.perf_counter()
            found = self.health.measure(self.state.learner.student.backbone, self.plan.config.model.stride, step)
            if found:
                history.append(found)
                took = {"seconds": time.perf_counter() - began}
                self.log.record(step, "health", found.to_dict() | self.state.drift() | took)
                for sentence in (str(found), *(f"warning: {w}" for w in health.warnings(history))):
                    self.log.say(sentence)
        stop = distributed.is_main() and self.plan.config.run.stop_on_collapse and health.should_stop(history)
        if distributed.any_process(stop):
            self.save(step)
            raise PlrcError(f"stopped at step {step}: {health.COLLAPSE_ADVICE}")

    def tell_failures(self) -> None:
        """Name the images that could not be read since the last time, once each; stop above the limit."""
        found, self.failures = distributed.gather_words(self.failures), {}
        for name in sorted(found.keys() - self.bad.keys()):
            self.log.say(f"warning: cannot read {printable(name)}: {found[name]}; another image takes its place")
        self.bad |= found
        shards = self.plan.images.shards
        count = sum(max(1, shards.images_of(name)) for name in self.bad) if shards else len(self.bad)
        if count > self.plan.config.data.bad_limit * len(self.plan.train):
            name = min(self.bad)
            raise PlrcError(
                f"{count} of {len(self.plan.train)} images cannot be read, more than data.bad_limit "
                f"({self.plan.config.data.bad_limit:.0%}), such as {printable(name)}: {self.bad[name]}; "
                "log.txt names those met so far, plrc scan DIR looks at every image"
            )

    def tell_skipped(self, step: int, skipped: float) -> None:
        """Warn of steps whose gradient was not finite."""
        if skipped:
            self.log.say(f"warning: {skipped:.0f} steps before step {step} skipped: their gradient was not finite")

    def check_numbers(self, step: int) -> None:
        """Leave the loop where too many steps in a row were skipped, in all processes alike."""
        in_a_row = int(self.state.skipped_in_a_row)
        if in_a_row >= MOST_SKIPPED:
            self._diverge(step, f"the last {in_a_row} gradients were not finite")

    def _diverge(self, step: int, reason: str) -> NoReturn:
        if self.state.lr_factor == 1 and newest_checkpoint(self.plan.out):
            raise Diverged(f"at step {step} {reason}")
        raise PlrcError(
            f"stopped at step {step}: {reason}; start again with a lower optim.lr, or with optim.precision float32"
        )

    def save(self, step: int, or_fail: bool = True) -> None:
        """Write a checkpoint and what is made of it. Where the storage refuses, raise or, if not `or_fail`, tell."""
        content = self.state.checkpoint(step, self.images)
        bad = non_finite(content)
        if distributed.any_process(bool(bad)):
            self._diverge(step, f"{bad or 'a tensor of another process'} is not finite and was not saved")
        if not distributed.is_main():
            return
        try:
            self._store(content)
        except PlrcError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            if or_fail:
                raise PlrcError(f"{error}; when this is mended, go on with --resume") from error
            self.log.say(f"warning: {error}; training goes on, and the next checkpoint is tried at its time")

    def _store(self, content: dict[str, Any]) -> None:
        try:
            self.lock.check()
        except OSError as error:
            raise PlrcError(f"cannot save to {self.plan.out}: {error.strerror}") from error
        save_checkpoint(self.plan.out / "checkpoints", content, self.plan.config.run.keep_checkpoints)
        for call in self.on_checkpoint:
            call(self.plan.out)
        return_freed_memory()

    def close(self) -> None:
        if self.bad:
            names = ", ".join(map(printable, sorted(self.bad)[:5]))
            self.log.say(f"{len(self.bad)} images could not be read and were replaced by others: {names}")


def _explained(error: Exception) -> str:
    """What a failure of another process means for the user; empty for all other errors."""
    if str(error).startswith(ENDED_LOADER):
        reason = f"a loader process was ended from outside, most often for want of memory ({error})"
        return f"{reason}; go on with --resume and a lower --run.workers"
    gone = distributed.lost(error)
    return f"{gone}: it has ended or hangs; look at what it said, then go on with --resume" if gone else ""


def _teacher_order(config: Config, step: int) -> torch.Tensor:
    """The permutation of the joined part by which the teacher's BatchNorm groups differ from the student's."""
    size = config.optim.batch_size // config.optim.accumulate
    return torch.from_numpy(rng.generator(config.seed, "shuffle", index=step).permutation(size))


def _sync_if(last: bool, student: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Only the last part of a step exchanges gradients between processes."""
    if last or not isinstance(student, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return student.no_sync()
