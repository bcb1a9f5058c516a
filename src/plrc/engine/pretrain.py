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
from plrc.data.teacher_cache import TeacherCache
from plrc.data.workers import end_if_importing_main
from plrc.engine import health, memory, recovery, schedule
from plrc.engine.checkpoint import newest_checkpoint
from plrc.engine.checkpointer import Checkpointer, Hooks, RunHook
from plrc.engine.frozen import fill_cache, open_cache, prepare_teacher
from plrc.engine.metrics import MetricWindow
from plrc.engine.monitor import Monitor, log_start
from plrc.engine.runlog import RunLog, position
from plrc.engine.setup import Plan, prepare, write_records
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError, RunError
from plrc.files import FolderLock
from plrc.interrupts import raise_waiting
from plrc.progress import OnProgress, ignore_progress
from plrc.runtime import StopRequest


@dataclass(frozen=True, repr=False)
class Run:
    """The result of `pretrain`.

    Attributes:
        path: The run folder.
        step: The last step that was trained.
        finished: Whether `step` is the last step of the run. False if SIGTERM or SIGINT stopped the run; it can then be
            resumed.
        health: The results of all health checks, oldest first.
    """

    path: Path
    step: int
    finished: bool
    health: tuple[health.Health, ...]

    def __repr__(self) -> str:
        state = "finished" if self.finished else "stopped"
        checks = f"{len(self.health)} health checks"
        if self.health:
            checks += f", the last with effective rank {self.health[-1].effective_rank:.1f}"
        return f"Run({str(self.path)!r}, {state} at step {self.step}, {checks})"


def pretrain(
    config: Config,
    *,
    on_checkpoint: Sequence[RunHook] = (),
    on_finish: Sequence[RunHook] = (),
    on_progress: OnProgress = ignore_progress,
) -> Run:
    """Run the training loop, from the first check to the last checkpoint.

    Users call `plrc.pretrain`, which passes the export and the report as hooks.

    Args:
        config: The settings. Those that the user did not set (`Config.pinned`) are adapted to the data.
        on_checkpoint: Called with the run folder after each save, in the main process.
        on_finish: Called with the run folder in the main process when the run is finished or stopped, and when a
            finished run is started again.
        on_progress: Called with each line of progress, in the main process.

    Raises:
        PlrcError: If the run cannot start or continue.
    """
    end_if_importing_main()
    raise_waiting()
    hooks = Hooks(on_checkpoint, on_finish, on_progress)
    stop = StopRequest()
    lock = FolderLock()
    threads = torch.get_num_threads()  # `prepare` sets those of the run
    started_by_caller = distributed.is_started()
    try:
        stop.has_work = False
        plan = prepare(config, lock)
        stop.has_work = True
        try:
            return _train_with_recovery(plan, lock, stop, hooks)
        except (RuntimeError, MemoryError, OSError) as error:
            explanation = recovery.explain(error)
            if explanation:
                raise RunError(explanation) from error
            if not memory.ran_out(error):
                raise
        # Memory ran out. `advice` finds the batch that fits by training two steps. It runs after the `except` block:
        # inside it, the traceback of the error would keep the network in memory.
        raise RunError(memory.advice(plan))
    finally:
        lock.release()
        stop.restore()
        torch.set_num_threads(threads)
        if not started_by_caller:
            distributed.stop()


def _train_with_recovery(plan: Plan, lock: FolderLock, stop: StopRequest, hooks: Hooks) -> Run:
    """Train; if gradients or weights are no longer finite, train once more from the last good checkpoint."""
    try:
        return _train(plan, lock, stop, hooks)
    except recovery.Diverged as error:
        reason = str(error)  # only the text: the traceback of the error would keep the network in memory
    return _train(recovery.fall_back(plan, reason), lock, stop, hooks)


def _train(plan: Plan, lock: FolderLock, stop: StopRequest, hooks: Hooks) -> Run:
    config = plan.config
    frozen = prepare_teacher(plan)
    state = TrainingState(config, plan.device, frozen)
    start_step = state.begin(plan.checkpoint, plan.out / "checkpoints")
    if plan.checkpoint is not None and distributed.is_main():
        write_records(plan)
    with RunLog(
        plan.out,
        start_step,
        plan.steps,
        distributed.is_main(),
        hooks.on_progress,
        config.run.loggers,
        config.flat(),
    ) as log:
        log_start(log, plan, state, start_step)
        last_step = start_step
        if start_step < plan.steps and not state.budget.is_over:
            checkpointer = Checkpointer(plan, lock, state, log, hooks.on_checkpoint)
            last_step = _loop(plan, state, log, checkpointer, stop, start_step)
        finished = last_step >= plan.steps or state.budget.is_over
        log.is_finished = finished
        if distributed.is_main() and newest_checkpoint(plan.out) is not None:  # none if stopped before the first step
            _finish(plan.out, hooks.on_finish)
    return Run(path=plan.out, step=last_step, finished=finished, health=tuple(state.history))


def _finish(out: Path, on_finish: Sequence[RunHook]) -> None:
    try:
        for hook in on_finish:
            hook(out)
    except PlrcError as error:
        if isinstance(error.__cause__, OSError):  # the disk is full, for example: the user can fix it and resume
            raise RunError(f"{error}; when this is fixed, resume with --resume") from error
        raise


def _loop(
    plan: Plan, state: TrainingState, log: RunLog, checkpointer: Checkpointer, stop: StopRequest, start_step: int
) -> int:
    """Train steps start_step + 1 to plan.steps, or until the time budget is used. Returns the last step trained."""
    config = plan.config
    accumulation = config.optim.gradient_accumulation_steps
    learner = state.learner
    monitor = Monitor(plan, state, log, checkpointer)
    teacher_cache: TeacherCache | None = None
    if learner.frozen is not None:
        teacher_cache = open_cache(plan, learner.frozen, log)
        if teacher_cache is not None and not fill_cache(plan, learner.frozen, teacher_cache, log, stop.agreed):
            log.info("stopped while the teacher's features were computed; resume with --resume")
            return start_step
    data = ViewDataset(plan.images, plan.train, config, teacher_cache)
    sampler = StepSampler(
        num_images=len(data),
        batch_size=config.optim.batch_size,
        gradient_accumulation_steps=accumulation,
        seed=config.seed,
        start=start_step,
        stop=plan.steps,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        groups=data.groups,
    )
    loader = DeviceLoader(data, sampler, plan.workers, plan.device)
    student = learner.wrapped_student()
    window = MetricWindow(config.optim.batch_size, learner.key_counts())
    if not state.history:  # measures the network before training
        monitor.check_health(start_step)

    state.budget.start()
    log.start_clock(start_step)
    with contextlib.closing(iter(loader)) as batches:
        for step in range(start_step + 1, plan.steps + 1):
            # schedule; it counts steps from 0
            steps = state.budget.expected_steps(step - 1, plan.steps)
            lr = state.lr_factor * schedule.learning_rate(config.optim, step - 1, steps, plan.steps_per_epoch)
            momentum = schedule.teacher_momentum(config.optim, step - 1, steps)
            temperature = schedule.teacher_temperature(config.objectives, step - 1, steps)
            # for layers such as dropout, which differ from process to process
            torch.manual_seed(rng.torch_seed(config.seed, "layers", epoch=distributed.rank(), index=step))
            teacher_order = _teacher_order(config, step)

            # forward and backward, one micro-batch after another
            state.guard.save()  # BatchNorm statistics, for the case that the step is skipped
            outputs = []
            for micro_batch in range(accumulation):
                batch = next(batches)
                monitor.add_unreadable(batch.failures)
                with _gradient_exchange(student, enabled=micro_batch == accumulation - 1):
                    output = learner.compute_terms(batch, student, teacher_order, temperature)
                    state.scaler.scale(learner.total_loss(output.terms) / accumulation).backward()
                window.add_terms(output.terms)
                outputs.append(output)

            # update the student, then teacher, queue and center; a step without a finite gradient is skipped
            gradient_norm, is_kept = state.update(outputs, lr, momentum)
            window.add_step(gradient_norm, is_kept)

            # log, check, save
            state.budget.update()
            is_last = step == plan.steps or state.budget.is_over
            if is_last or step % config.run.log_every_steps == 0:
                values = window.read(loader.seconds_waited)
                rates = {"lr": lr, "teacher_momentum": momentum, "teacher_temperature": temperature}
                log.log_training(step, values | rates, state.budget)
                monitor.report_unreadable()
                monitor.report_skipped(step, values["skipped_steps"])
            else:
                log.log_step(step, state.budget)
            # Not after every step: reading the number of skipped steps waits for the device.
            if step % recovery.MAX_SKIPPED_IN_A_ROW == 0:
                monitor.check_gradients(step)
            stopped = stop.agreed()  # the same in all processes
            if is_last or step % config.run.health_every_steps == 0:
                monitor.check_health(step)
            if is_last or stopped or step % config.run.checkpoint_every_steps == 0:
                checkpointer.save(step, required=is_last or stopped)  # if a required save fails, the run fails
            if stopped and not is_last:
                log.info(f"stopped at {position(step, plan.steps)} and saved; resume with --resume")
            if stopped or is_last:
                break
    monitor.finish()
    return step


def _teacher_order(config: Config, step: int) -> torch.Tensor:
    """Draw the order in which the teacher sees a micro-batch: its BatchNorm groups differ from the student's."""
    size = config.optim.batch_size // config.optim.gradient_accumulation_steps
    return torch.from_numpy(rng.generator(config.seed, "shuffle", index=step).permutation(size))


def _gradient_exchange(student: nn.Module, enabled: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a backward pass exchanges gradients between processes only if `enabled`."""
    if enabled or not isinstance(student, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return student.no_sync()
