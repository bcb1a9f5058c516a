"""What surrounds the loop: health checks, unreadable images, numbers that are not finite, saving. Layer 4.

Only the main process measures and writes; what ends a run ends it in all processes alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from plrc import distributed
from plrc.data.manifest import read_manifest
from plrc.engine import health, recovery
from plrc.engine.checkpoint import newest_checkpoint, save_checkpoint
from plrc.engine.runlog import RunLog
from plrc.engine.setup import Plan
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError
from plrc.files import FolderLock
from plrc.machine import return_freed_memory
from plrc.text import printable

OnCheckpoint = Callable[[Path], None]


class Monitor:
    """Called by the loop at its steps; it holds what has been seen so far."""

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
                for sentence in (str(found), *(f"warning: {w}" for w in health.alarms(history))):
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
        count = self._lost()
        if count > self.plan.config.data.max_unreadable_fraction * len(self.plan.train):
            name = min(self.bad)
            raise PlrcError(
                f"{count} of {len(self.plan.train)} images cannot be read, more than data.max_unreadable_fraction "
                f"({self.plan.config.data.max_unreadable_fraction:.0%}), such as {printable(name)}: {self.bad[name]}; "
                "log.txt names those met so far, plrc scan DIR looks at every image"
            )

    def _lost(self) -> int:
        """Images that could not be read; a shard that could not be read counts as all of its own."""
        shards = self.plan.images.shards
        return sum(max(1, shards.count_images(name)) for name in self.bad) if shards else len(self.bad)

    def tell_skipped(self, step: int, skipped: float) -> None:
        """Warn of steps whose gradient was not finite."""
        if skipped:
            self.log.say(f"warning: {skipped:.0f} steps before step {step} skipped: their gradient was not finite")

    def check_numbers(self, step: int) -> None:
        """Leave the loop where too many steps in a row were skipped, in all processes alike."""
        in_a_row = int(self.state.skipped_in_a_row)
        if in_a_row >= recovery.MOST_SKIPPED:
            self._diverge(step, f"the last {in_a_row} gradients were not finite")

    def _diverge(self, step: int, reason: str) -> NoReturn:
        if self.state.lr_factor == 1 and newest_checkpoint(self.plan.out):
            raise recovery.Diverged(f"at step {step} {reason}")
        raise PlrcError(
            f"stopped at step {step}: {reason}; start again with a lower optim.lr, or with optim.precision float32"
        )

    def save(self, step: int, or_fail: bool = True) -> None:
        """Write a checkpoint and what is made of it. Where the storage refuses, raise or, if not `or_fail`, tell."""
        content = self.state.checkpoint(step, self.images)
        bad = recovery.non_finite(content)
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
            self.log.say(f"{self._lost()} images could not be read and were replaced by others: {names}")
