"""Saving a run: refuses numbers that are not finite, survives storage that fails, and calls what follows a save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc import distributed
from plrc.data.manifest import read_manifest
from plrc.engine.checkpoint import save_checkpoint
from plrc.engine.recovery import diverge, non_finite
from plrc.engine.runlog import RunLog
from plrc.engine.setup import Plan
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError, RunError
from plrc.files import FolderLock
from plrc.progress import OnProgress

RunHook = Callable[[Path], None]
"""Called in the main process with the run folder."""


@dataclass(frozen=True)
class Hooks:
    """What a run calls.

    Attributes:
        on_checkpoint: Called after each save.
        on_finish: Called when the run is finished or stopped, and when a finished run is started again.
        on_progress: Called with each line of progress.
    """

    on_checkpoint: Sequence[RunHook]
    on_finish: Sequence[RunHook]
    on_progress: OnProgress


class Checkpointer:
    """Writes checkpoints of a run.

    Args:
        plan: The run.
        lock: The lock on its folder.
        state: What is saved.
        log: Where a save that fails is reported.
        on_checkpoint: Called after each save.
    """

    def __init__(
        self, plan: Plan, lock: FolderLock, state: TrainingState, log: RunLog, on_checkpoint: Sequence[RunHook]
    ) -> None:
        self.plan = plan
        self.lock = lock
        self.state = state
        self.log = log
        self.on_checkpoint = on_checkpoint
        self.images_digest = str(read_manifest(plan.out / "manifest.json")["sha256"])

    def save(self, step: int, required: bool = True) -> None:
        """Write a checkpoint; all processes call this.

        Args:
            step: The step that was just made.
            required: Whether storage that fails ends the run; otherwise a warning is logged.

        Raises:
            Diverged: If a number is not finite and the run can fall back to a checkpoint before it.
            RunError: If it cannot, or if a required save fails.
        """
        content = self.state.checkpoint(step, self.images_digest)
        bad = non_finite(content)
        if distributed.any_process(bool(bad)):
            reason = f"{bad or 'a tensor of another process'} is not finite and was not saved"
            diverge(self.plan, self.state.lr_factor, step, reason)
        if not distributed.is_main():
            return
        try:
            self._check_folder()
            save_checkpoint(self.plan.out / "checkpoints", content, self.plan.config.run.keep_checkpoints)
            for call in self.on_checkpoint:
                call(self.plan.out)
        except PlrcError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            if required:
                raise RunError(f"{error}; when this is fixed, resume with --resume") from error
            self.log.warning(f"{error}; training continues, and the next checkpoint is tried as scheduled")

    def _check_folder(self) -> None:
        try:
            self.lock.check()
        except OSError as error:
            raise RunError(f"cannot save to {self.plan.out}: {error.strerror}") from error
