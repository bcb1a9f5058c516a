"""The transfer runs of a comparison: which are required, their names, and their results on disk.

The folder of a run is named by a hash of everything that changes its numbers, so a finished run is never repeated.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plrc.compare.inits import fingerprint
from plrc.compare.plan import ComparisonPlan
from plrc.errors import DataError, RunError, WeightsError
from plrc.files import parse_json
from plrc.machine import cores
from plrc.transfer.finetune import RESULT
from plrc.transfer.protocols import TransferConfig

RUNS_FOLDER = "cells"  # inside the folder of the comparison


@dataclass(frozen=True)
class ComparisonRun:
    """A transfer run of a comparison; `config.run.out` is its folder."""

    description: str
    config: TransferConfig

    def __str__(self) -> str:
        return self.description

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run.out)


class ComparisonRuns:
    """The runs of a comparison and the results that they have so far.

    Args:
        comparison: What is compared. Its weights files are hashed here, once.

    Attributes:
        fingerprints: Value of `TransferConfig.init` -> SHA-256 of the weights when the comparison was started.
    """

    def __init__(self, comparison: ComparisonPlan) -> None:
        self.comparison = comparison
        self.fingerprints = {init: fingerprint(init) for init in itertools.chain(*comparison.inits.values())}
        self._runs: dict[tuple[str, str, float, int], ComparisonRun] = {}
        self._results: dict[Path, dict[str, Any]] = {}

    def run(self, init: str, labels: str, lr: float, seed: int) -> ComparisonRun:
        """Return a run of the grid.

        Args:
            init: Name of the initial weights, a key of `ComparisonPlan.inits`.
            labels: Name of a number of labels, a key of `ComparisonPlan.labels`.
            lr: Learning rate.
            seed: Seed of the run.
        """
        key = (init, labels, lr, seed)
        if key not in self._runs:
            description = f"{init}, {labels}, lr {lr:g}, seed {seed}"
            self._runs[key] = ComparisonRun(description, self._config(init, labels, lr, seed))
        return self._runs[key]

    def _config(self, init: str, labels: str, lr: float, seed: int) -> TransferConfig:
        comparison = self.comparison
        files = comparison.inits[init]
        values = {"init": files[seed % len(files)], "seed": seed, "optim.lr": lr, **comparison.labels[labels]}
        config = comparison.base.with_values(values)
        content = {"init": self.fingerprints[config.init], "labels": comparison.digest}
        text = json.dumps(config.result_settings() | content, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        threads = config.run.threads
        if not threads and comparison.processes > 1:
            threads = max(1, cores() // comparison.processes)
        folder = comparison.out / RUNS_FOLDER / name
        return config.with_values({"run.out": str(folder), "run.resume": True, "run.threads": threads})

    def result(self, run: ComparisonRun) -> dict[str, Any] | None:
        """Return the content of the run's result.json (`finetune.Result`), or None if the run is not finished."""
        if not (run.folder / RESULT).exists():
            return None
        return self.read_result(run)

    def read_result(self, run: ComparisonRun) -> dict[str, Any]:
        """Return the content of the run's result.json.

        Raises:
            RunError: The file is missing or damaged.
            DataError: The labels have changed, or no label counts in the validation or test images.
        """
        path = run.folder / RESULT
        if path not in self._results:
            self._results[path] = self._read(path)
        return self._results[path]

    def _read(self, path: Path) -> dict[str, Any]:
        metric = self.comparison.metric
        try:
            result: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
            scores = [result["metrics"][metric], result["val"][metric]]
            digest = result["labels"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"cannot read the result {path} ({error!r}); remove it to repeat this run") from error
        if digest != self.comparison.digest:
            raise DataError(f"the labels changed before {path} was computed; remove it and repeat the command")
        if not all(score is not None and math.isfinite(score) for score in scores):
            raise DataError(
                f"{path} has no {metric}: the validation or the test images have no label that counts; "
                "name other splits with data.val and data.test"
            )
        return result

    def validation_scores(self, init: str, labels: str) -> dict[float, float | None]:
        """Return learning rate -> score on the validation images at seed 0, None if that run is not finished."""
        scores: dict[float, float | None] = {}
        for lr in self.comparison.lrs:
            result = self.result(self.run(init, labels, lr, seed=0))
            scores[lr] = result["val"][self.comparison.metric] if result else None
        return scores

    def chosen_lr(self, init: str, labels: str) -> float | None:
        """Return the learning rate with the best validation score, the lowest of equals; None if a score is missing."""
        lrs = self.comparison.lrs
        if len(lrs) == 1:
            return lrs[0]
        best_lr, best_score = lrs[0], -math.inf
        for lr, score in self.validation_scores(init, labels).items():
            if score is None:
                return None
            if score > best_score:
                best_lr, best_score = lr, score
        return best_lr

    def required_runs(self) -> list[ComparisonRun]:
        """Return the runs that are known to be required: all learning rates at seed 0, then the chosen ones."""
        comparison = self.comparison
        groups = list(itertools.product(comparison.labels, comparison.inits))
        runs = [self.run(init, labels, lr, seed=0) for labels, init in groups for lr in comparison.lrs]
        for seed in range(1, comparison.seeds):
            for labels, init in groups:
                lr = self.chosen_lr(init, labels)
                if lr is not None:
                    runs.append(self.run(init, labels, lr, seed))
        return runs

    def pending_runs(self) -> list[ComparisonRun]:
        """Return the required runs that are not finished."""
        return [run for run in self.required_runs() if self.result(run) is None]

    @property
    def num_runs(self) -> int:
        """Total number of runs."""
        comparison = self.comparison
        return len(comparison.labels) * len(comparison.inits) * (len(comparison.lrs) + comparison.seeds - 1)

    @property
    def num_done(self) -> int:
        """Number of required runs that are finished."""
        return sum(self.result(run) is not None for run in self.required_runs())

    def check_weights(self, init: str) -> None:
        """Raise WeightsError if the weights are not what they were when the runs got their names."""
        if fingerprint(init) != self.fingerprints[init]:
            raise WeightsError(
                f"{init} has changed since this comparison was started; repeat the command when the file is final"
            )
