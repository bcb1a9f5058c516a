"""Runs a comparison: which initial weights are best under one protocol, at several numbers of labels and seeds?

All initial weights are treated alike: each gets, at each number of labels, its own learning rate from the same list,
chosen on validation images at seed 0. Scores are those of the test images.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from plrc.compare.grid import PROGRESS_SECONDS, log_start, log_stopped, run_grid
from plrc.compare.plan import ComparisonPlan
from plrc.compare.result import Comparison
from plrc.compare.runs import RUNS_FOLDER, ComparisonRun, ComparisonRuns
from plrc.compare.summary import summarize
from plrc.compare.workers import run_grid_in_processes
from plrc.errors import RunError
from plrc.files import has_locks, is_unused, parse_json, write_json
from plrc.progress import OnProgress
from plrc.runtime import StopRequest
from plrc.transfer.finetune import transfer
from plrc.transfer.protocols import TransferConfig

COMPARISON_FILE = "comparison.json"


class Runner(Protocol):
    """Executes a run and writes its result.json.

    Returns None if it was asked to stop and saved its state; any other value means that the run is finished.
    """

    def __call__(self, config: TransferConfig, on_progress: OnProgress) -> object: ...


def run_comparison(plan: ComparisonPlan, runner: Runner = transfer) -> Comparison:
    """Execute the runs of a comparison that have no result yet.

    Writes OUT/comparison.json after each run. Any number of processes may work in the same folder.

    Args:
        plan: What is compared.
        runner: Executes one run.

    Returns:
        The result; it is not `finished` if the process was asked to stop. All runs are then saved.

    Raises:
        PlrcError: The folder belongs to another comparison, or a run cannot be executed.
    """
    commands = _check_folder_and_list_commands(plan)
    grid = _ComparisonGrid(ComparisonRuns(plan), runner, commands)
    start = log_start(grid, log_pattern=f"{plan.out / RUNS_FOLDER}/*/log.txt")
    grid.write_summary()
    stop = StopRequest()
    try:
        if plan.processes > 1:
            if not has_locks(plan.out):
                raise RunError(f"the file system of {plan.out} has no locks, which processes need; write --processes 1")
            run_grid_in_processes(grid, start, stop, plan.processes)
        else:
            run_grid(grid, start, stop, PROGRESS_SECONDS)
    finally:
        stop.restore()
    if grid.pending_runs():
        log_stopped(grid)
    return Comparison.from_content(plan.out, grid.write_summary())


@dataclass
class _ComparisonGrid:
    """The runs of a comparison as a grid. Each worker process gets a pickled copy."""

    runs: ComparisonRuns
    runner: Runner
    commands: list[str]

    @property
    def num_runs(self) -> int:
        return self.runs.num_runs

    @property
    def num_done(self) -> int:
        return self.runs.num_done

    def pending_runs(self) -> Sequence[ComparisonRun]:
        return self.runs.pending_runs()

    def folder(self, run: ComparisonRun) -> Path:
        return run.folder

    def is_finished(self, run: ComparisonRun) -> bool:
        return self.runs.result(run) is not None

    def execute(self, run: ComparisonRun, on_progress: OnProgress) -> str | None:
        self.runs.check_weights(run.config.init)
        if self.runner(run.config, on_progress) is None:
            return None
        metric = self.runs.comparison.metric
        score = self.runs.read_result(run)["metrics"][metric]
        self.write_summary()
        return f"{metric} {score:.1f}"

    def write_summary(self) -> dict[str, Any]:
        """Write comparison.json from the results so far, and return its content."""
        content = summarize(self.runs, self.commands)
        write_json(self.runs.comparison.out / COMPARISON_FILE, content)
        return content


def _check_folder_and_list_commands(comparison: ComparisonPlan) -> list[str]:
    """Check that the folder is new or belongs to this comparison.

    Returns:
        The command lines that the comparison was started with so far, the current one last if it is new.
    """
    out = comparison.out
    path = out / COMPARISON_FILE
    command = shlex.join(sys.argv)
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must name a folder")
    if not path.exists():
        # Another process may have created the folder of the runs, but not comparison.json yet.
        if not is_unused(out, RUNS_FOLDER):
            raise RunError(f"{out} is not empty and contains no comparison (no {COMPARISON_FILE}); name another --out")
        return [command]
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        differences = comparison.base.describe_differences(TransferConfig.from_dict(stored["settings"]))
        removed_lrs = set(stored["lrs"]) - set(comparison.lrs)
        commands = stored["provenance"]["commands"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"cannot read {path} ({error!r}); remove it and repeat the command: no run is lost") from error
    differences.pop("optim.lr", None)  # replaced by the learning rates of the comparison
    if removed_lrs:
        differences["lrs"] = f"lrs: stored {stored['lrs']}, now {list(comparison.lrs)}"
    if differences:
        raise RunError(
            f"{out} was started with other settings ({'; '.join(differences.values())}); name another --out "
            "(only initial weights, numbers of labels, seeds and learning rates may be added)"
        )
    return list(dict.fromkeys([*commands, command]))  # without repetitions, in the order of the first use
