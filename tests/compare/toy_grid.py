"""A grid whose runs only write files, for the tests of what all grids do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plrc.errors import DataError
from plrc.progress import OnProgress


@dataclass
class ToyGrid:
    """Runs 0 to `num_runs` - 1. Run number `failing` fails, and number `stopping` ends as if it was asked to stop."""

    out: Path
    num_runs: int = 3
    failing: int = -1
    stopping: int = -1

    def folder(self, run: int) -> Path:
        return self.out / str(run)

    def is_finished(self, run: int) -> bool:
        return (self.folder(run) / "result").exists()

    def pending_runs(self) -> list[int]:
        return [run for run in range(self.num_runs) if not self.is_finished(run)]

    @property
    def num_done(self) -> int:
        return self.num_runs - len(self.pending_runs())

    def execute(self, run: int, on_progress: OnProgress) -> str | None:
        if run == self.failing:
            raise DataError(f"run {run} cannot be executed")
        if run == self.stopping:
            return None
        on_progress(1, 2, "1/2  loss 3")
        on_progress(2, 2)
        (self.folder(run) / "result").touch()
        with (self.out / "executed.txt").open("a") as file:
            file.write(f"{run}\n")
        return f"AP {run}"

    def executed(self) -> list[int]:
        """Numbers of the runs in the order in which they were executed."""
        return [int(line) for line in (self.out / "executed.txt").read_text().splitlines()]
