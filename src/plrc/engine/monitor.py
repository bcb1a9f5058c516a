"""What the loop watches: the health of features, unreadable images, gradients that are not finite.

Only the main process measures; an error that ends the run is raised in all processes alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from plrc import distributed
from plrc.engine import health, recovery
from plrc.engine.checkpointer import Checkpointer
from plrc.engine.runlog import RunLog, duration, position, provenance
from plrc.engine.setup import Plan
from plrc.engine.state import TrainingState
from plrc.errors import DataError, RunError
from plrc.pixels import IMAGENET
from plrc.text import printable

_FEWEST_RISING_STEPS = 10  # in fewer steps, noise hides a rise of the loss


class Monitor:
    """Watches a run.

    Args:
        plan: The run.
        state: What is trained.
        log: Where everything is reported.
        checkpointer: Saves the run before it is stopped.

    Attributes:
        failures: Name -> reason for the images that this process could not read and has not reported yet.
    """

    def __init__(self, plan: Plan, state: TrainingState, log: RunLog, checkpointer: Checkpointer) -> None:
        self.plan = plan
        self.state = state
        self.log = log
        self.checkpointer = checkpointer
        self.failures: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}  # of all processes
        held_out = plan.held_out if distributed.is_main() else plan.held_out[:0]
        self.health_check = health.HealthCheck(plan.config, plan.images, held_out, plan.device)
        for name, reason in self.health_check.unreadable.items():
            log.warning(f"cannot read the held-out image {printable(name)}: {reason}; health is measured without it")
        if 0 < len(held_out) == len(self.health_check.unreadable):
            log.warning("no held-out image can be read: there are no health checks")

    def check_health(self, step: int) -> None:
        """Measure the health of the features, unless this step was measured before a resume.

        Raises:
            RunError: If the features have collapsed; the run is saved before.
        """
        history = self.state.history
        if not history or history[-1].step < step:
            self._measure_health(step)
        stop = distributed.is_main() and self.plan.config.run.stop_on_collapse and health.should_stop(history)
        if distributed.any_process(stop):
            self.checkpointer.save(step)
            raise RunError(f"stopped at step {step}: {health.COLLAPSE_ADVICE}")

    def add_unreadable(self, failures: Iterable[tuple[str, str]]) -> None:
        """Note the images of a batch that could not be read.

        A single process reports them at once. Several processes do so together, when a step is logged.

        Args:
            failures: (name, reason) of each image.

        Raises:
            DataError: See `report_unreadable`.
        """
        self.failures.update(failures)
        if self.failures and distributed.world_size() == 1:
            self.report_unreadable()

    def report_unreadable(self) -> None:
        """Name each image that could not be read since the last call, once.

        Raises:
            DataError: If more images are unreadable than `data.max_unreadable_fraction` allows.
        """
        failures = distributed.merge_dicts(self.failures)
        self.failures = {}
        for name in sorted(failures.keys() - self.unreadable.keys()):
            self.log.warning(f"cannot read {printable(name)}: {failures[name]}; another image takes its place")
        self.unreadable |= failures
        count = self._count_unreadable()
        images = len(self.plan.train)
        limit = self.plan.config.data.max_unreadable_fraction
        if count > limit * images:
            name = min(self.unreadable)
            raise DataError(
                f"{count} of {images} images cannot be read, more than data.max_unreadable_fraction ({limit:.0%}), "
                f"such as {printable(name)}: {self.unreadable[name]}; "
                "log.txt names those met so far; plrc scan DIR looks at every image, and later runs leave out what it "
                "could not read; or raise --data.max-unreadable-fraction"
            )

    def report_skipped(self, step: int, skipped: float) -> None:
        """Warn of steps whose gradient was not finite."""
        if skipped:
            self.log.warning(f"{skipped:.0f} steps before step {step} skipped: their gradient was not finite")

    def check_gradients(self, step: int) -> None:
        """Check the number of skipped steps in a row.

        Raises:
            Diverged: If they are too many and the run can fall back to a checkpoint.
            RunError: If it cannot.
        """
        in_a_row = int(self.state.skipped_in_a_row)
        if in_a_row >= recovery.MAX_SKIPPED_IN_A_ROW:
            reason = f"the last {in_a_row} gradients were not finite"
            recovery.diverge(self.plan, self.state.lr_factor, step, reason)

    def finish(self) -> None:
        """Report what is still to be reported, and sum up."""
        self.report_unreadable()
        if self.unreadable:
            names = ", ".join(printable(name) for name in sorted(self.unreadable)[:5])
            self.log.info(f"{self._count_unreadable()} images could not be read and were replaced by others: {names}")

    def _measure_health(self, step: int) -> None:
        started = time.perf_counter()
        result = self.health_check.measure(
            self.state.learner.student.backbone, self.plan.config.model.largest_stride, step
        )
        if result is None:
            return
        self.state.history.append(result)
        seconds = {"seconds": time.perf_counter() - started}
        self.log.record(step, "health", result.to_dict() | self.state.drift() | seconds)
        self.log.info(str(result))
        for sentence in health.alarms(self.state.history):
            self.log.warning(sentence)

    def _count_unreadable(self) -> int:
        """Count images that could not be read; a shard that could not be read counts as all of its images."""
        shards = self.plan.images.shards
        if shards is None:
            return len(self.unreadable)
        return sum(max(1, shards.count_images(name)) for name in self.unreadable)


def log_start(log: RunLog, plan: Plan, state: TrainingState, start_step: int) -> None:
    """Log how the run starts, and what was decided before."""
    for sentence in plan.remarks:
        log.info(sentence)
    for sentence in plan.warnings:
        log.warning(sentence)
    for sentence in state.remarks:
        log.info(sentence)
    frozen = state.learner.frozen
    if frozen is not None and frozen.backbone.pixels != IMAGENET:
        log.info(f"pixels of the frozen teacher are normalized with {frozen.backbone.pixels}")
    for sentence in state.warnings:
        log.warning(sentence)
    start = position(start_step, plan.steps)
    if start_step >= plan.steps or state.budget.is_over:
        log.info(f"nothing left to do: the run is finished, at {start}")
        return
    log.info(f"{'resuming' if start_step else 'starting'} at {start} on {plan.device}")
    if state.budget.total:
        left = duration(state.budget.seconds_left)
        log.info(f"the schedule ends with the time budget: {left} of {plan.config.optim.clock} time left")
    log.record(start_step, "start", provenance(plan.device))
    if plan.config.objectives.image_weight > 0 and not start_step:
        filling = math.ceil(plan.config.objectives.queue / plan.config.optim.batch_size)
        rising = min(filling, plan.steps)
        if rising >= _FEWEST_RISING_STEPS:
            log.info(f"the image loss rises for {rising} steps, while real keys replace the random ones in the queue")
