"""The transfer runs that a comparison is made of: which there are, what names them, where their results lie.

Layer 5: imports engine and below, and this folder. A *cell* is one transfer run. Its folder is named by a hash of all
that changes its numbers, so a finished cell is never run again, whatever else is compared later. Any number of
processes and commands share a folder: a cell belongs to whoever holds the lock on its file `lock`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from plrc.engine.checkpoint import newest_checkpoint
from plrc.errors import PlrcError
from plrc.files import parse_json
from plrc.machine import cores
from plrc.settings import require
from plrc.transfer.finetune import RESULT
from plrc.transfer.protocols import TransferConfig
from plrc.transfer.tasks import MAIN_METRIC

NAMED = ("random", "torchvision")  # initial weights that are no path


@dataclass(frozen=True)
class Comparison:
    """What is compared. The detector, the schedule and the order of the data are those of `base` for all."""

    base: TransferConfig
    inits: dict[str, tuple[str, ...]]
    """Name -> what `TransferConfig.init` takes; of several (pre-training runs), seed s takes number s modulo theirs."""
    fractions: tuple[float, ...]
    shots: tuple[int, ...]
    """Instead of `fractions` where there are any."""
    seeds: int
    lrs: tuple[float, ...]
    """Rising. One is chosen on the validation images at seed 0, for each init and number of labels."""
    out: Path
    processes: int = 1
    digest: str = ""
    """Of the labels (`Splits.digest`): cells whose labels differ have different names."""

    def __post_init__(self) -> None:
        base = self.base
        require(next(iter(self.inits), "") == "random", "random weights must be the first of the initial weights")
        require(len(self.inits) > 1, "nothing to compare random weights with; write --init RUN or --init FILE")
        require(self.seeds >= 1, f"seeds is {self.seeds}; write at least 1")
        require(self.processes >= 1, f"processes is {self.processes}; write at least 1")
        rising = self.lrs == tuple(sorted(set(self.lrs)))
        require(rising and min(self.lrs, default=0) > 0, f"lrs are {self.lrs}; write rising numbers above 0")
        require(bool(self.shots or self.fractions), "no number of labels named; write --fractions 0.1 1")
        require(all(0 < share <= 1 for share in self.fractions), "fractions must be above 0 and at most 1")
        require(all(n >= 1 for n in self.shots), "shots must be 1 or more")
        plain = base.data.fraction == 1 and not base.data.shots
        require(plain, "data.fraction or data.shots is set; a comparison takes --fractions or --shots")
        require(
            base.data.val != "none",
            "data.val is none, but learning rates are chosen on validation images; name a split",
        )
        require(base.evaluations >= 1, "evaluations is 0, but learning rates are chosen by them; write at least 1")

    @property
    def labels(self) -> dict[str, dict[str, Any]]:
        """Name of each number of labels -> its settings, from few to many."""
        if self.shots:
            return {f"{n} images a class": {"data.shots": n} for n in sorted(set(self.shots))}
        return {f"{100 * share:g} % of the labels": {"data.fraction": share} for share in sorted(set(self.fractions))}

    @property
    def metric(self) -> str:
        """The score that is compared."""
        return MAIN_METRIC[self.base.task]


@dataclass
class Cells:
    """The cells of a comparison, as they stand on the disk; `prints` says which content each file had at the start."""

    comparison: Comparison
    prints: dict[str, str]
    _configs: dict[tuple[str, str, float, int], TransferConfig] = field(default_factory=dict)
    _results: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, comparison: Comparison) -> Cells:
        return cls(comparison, {file: fingerprint(file) for group in comparison.inits.values() for file in group})

    def config(self, init: str, labels: str, lr: float, seed: int) -> TransferConfig:
        """The settings of a cell; `run.out` is its folder."""
        key = init, labels, lr, seed
        if key not in self._configs:
            self._configs[key] = self._config(*key)
        return self._configs[key]

    def _config(self, init: str, labels: str, lr: float, seed: int) -> TransferConfig:
        comparison = self.comparison
        group = comparison.inits[init]
        values = {"init": group[seed % len(group)], "seed": seed, "optim.lr": lr, **comparison.labels[labels]}
        config = comparison.base.with_values(values)
        content = {"init": self.prints[config.init], "labels": comparison.digest}
        text = json.dumps(config.numbers() | content, sort_keys=True)
        folder = comparison.out / "cells" / hashlib.sha256(text.encode()).hexdigest()[:16]
        threads = max(1, cores() // comparison.processes) if comparison.processes > 1 else 0
        run = {"run.out": str(folder), "run.resume": True, "run.threads": config.run.threads or threads}
        return config.with_values(run)

    def result(self, config: TransferConfig) -> dict[str, Any] | None:
        """What the cell's result.json holds (`finetune.Result`), or None where there is none yet."""
        return self.read(config) if (Path(config.run.out) / RESULT).exists() else None

    def read(self, config: TransferConfig) -> dict[str, Any]:
        """The same; raises PlrcError where there is none."""
        path = Path(config.run.out) / RESULT
        if path not in self._results:
            self._results[path] = self._read(path)
        return self._results[path]

    def validation(self, init: str, labels: str) -> dict[float, float | None]:
        """Learning rate -> score of the validation images at seed 0, None where it is not known yet."""
        found = {lr: self.result(self.config(init, labels, lr, 0)) for lr in self.comparison.lrs}
        return {lr: result["val"][self.comparison.metric] if result else None for lr, result in found.items()}

    def chosen(self, init: str, labels: str) -> float | None:
        """The learning rate with the best validation score (of equals the lowest), None while one is missing."""
        if len(self.comparison.lrs) == 1:
            return self.comparison.lrs[0]
        scores = {lr: score for lr, score in self.validation(init, labels).items() if score is not None}
        return max(scores, key=lambda lr: scores[lr]) if len(scores) == len(self.comparison.lrs) else None

    def known(self) -> Iterator[tuple[str, TransferConfig]]:
        """(name, settings) of every cell that is known to be needed: all rates at seed 0, then those chosen."""
        comparison = self.comparison
        rows = [(init, labels) for labels in comparison.labels for init in comparison.inits]
        wanted = [(init, labels, lr, 0) for init, labels in rows for lr in comparison.lrs]
        chosen = [(init, labels, lr) for init, labels in rows if (lr := self.chosen(init, labels)) is not None]
        wanted += [(init, labels, lr, seed) for seed in range(1, comparison.seeds) for init, labels, lr in chosen]
        for init, labels, lr, seed in wanted:
            yield f"{init}, {labels}, lr {lr:g}, seed {seed}", self.config(init, labels, lr, seed)

    def pending(self) -> list[tuple[str, TransferConfig]]:
        """Those of them that have no result."""
        return [(name, config) for name, config in self.known() if self.result(config) is None]

    @property
    def total(self) -> int:
        """How many cells there will have been."""
        comparison = self.comparison
        return len(comparison.labels) * len(comparison.inits) * (len(comparison.lrs) + comparison.seeds - 1)

    @property
    def done(self) -> int:
        return sum(self.result(config) is not None for _, config in self.known())

    def refuse_changed(self, file: str) -> None:
        """Initial weights must stay what they were when the cells got their names."""
        if fingerprint(file) != self.prints[file]:
            raise PlrcError(f"{file} has changed since this comparison was started; repeat the command when it is done")

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
            scores = [found[part][self.comparison.metric] for part in ("metrics", "val")]
            changed = found["labels"] != self.comparison.digest
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlrcError(f"cannot read the result {path} ({error!r}); remove it to run this again") from error
        if changed:
            raise PlrcError(f"the labels changed before {path} was computed; remove it and repeat the command")
        if not all(score is not None and math.isfinite(score) for score in scores):
            raise PlrcError(
                f"{path} has no {self.comparison.metric}: the validation or the test images have no label that counts; "
                "name other splits with data.val and data.test"
            )
        return found


def fingerprint(init: str) -> str:
    """What initial weights hold: the SHA-256 of a file, of a run folder's newest checkpoint; random is just random."""
    if init in NAMED:
        return init
    file = newest_checkpoint(Path(init)) if Path(init).is_dir() else Path(init)
    if file is None or not file.is_file():
        raise PlrcError(f"{init} is neither a weights file nor a run folder with a checkpoint; name one of these")
    found = file.stat()
    return _sha256(file, found.st_size, found.st_mtime_ns)


@lru_cache
def _sha256(file: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def kind(init: str) -> str:
    """random, torchvision, plrc (a run folder, or an export of one), or file."""
    if init in NAMED:
        return init
    if Path(init).is_dir():
        return "plrc"
    with contextlib.suppress(SafetensorError), safe_open(init, framework="pt") as file:
        return "plrc" if (file.metadata() or {}).get("format") == "plrc" else "file"
    return "file"
