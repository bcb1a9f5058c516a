"""What is compared: initial weights, numbers of labels, seeds and learning rates under one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plrc.settings import require
from plrc.transfer.protocols import TransferConfig
from plrc.transfer.tasks import MAIN_METRIC


@dataclass(frozen=True)
class ComparisonPlan:
    """Initial weights that are compared with the same detector, schedule and order of the data.

    Attributes:
        base: Settings that all runs share.
        inits: Name of the initial weights -> values of `TransferConfig.init`. Random weights come first. Several values
            are several pre-training runs: seed s uses number s modulo their count.
        fractions: Shares of the training images whose labels are used.
        shots: Images of each class whose labels are used; if not empty, these replace `fractions`.
        seeds: Number of seeds.
        lrs: Learning rates in rising order. For each init and number of labels, one is chosen on the validation images
            at seed 0.
        out: Folder of the comparison.
        processes: Number of runs at the same time.
        digest: Digest of the labels (`Splits.digest`); it is part of the name of each run.
    """

    base: TransferConfig
    inits: dict[str, tuple[str, ...]]
    fractions: tuple[float, ...]
    shots: tuple[int, ...]
    seeds: int
    lrs: tuple[float, ...]
    out: Path
    processes: int = 1
    digest: str = ""

    def __post_init__(self) -> None:
        base = self.base
        require(next(iter(self.inits), "") == "random", "random weights must be the first of the initial weights")
        require(len(self.inits) > 1, "nothing to compare with random weights; write --init RUN or --init FILE")
        require(self.seeds >= 1, f"seeds must be >= 1, got {self.seeds}")
        require(self.processes >= 1, f"processes must be >= 1, got {self.processes}")
        is_rising = self.lrs == tuple(sorted(set(self.lrs)))
        require(is_rising and min(self.lrs, default=0) > 0, f"lrs must be > 0 and in rising order, got {self.lrs}")
        require(bool(self.shots or self.fractions), "no number of labels given; write --fractions 0.1 1")
        require(all(0 < share <= 1 for share in self.fractions), "fractions must be > 0 and <= 1")
        require(all(images >= 1 for images in self.shots), "shots must be >= 1")
        uses_all_labels = base.data.fraction == 1 and not base.data.shots
        require(uses_all_labels, "data.fraction or data.shots is set; a comparison takes --fractions or --shots")
        require(
            base.data.val != "none",
            "data.val is none, but learning rates are chosen on validation images; name a split",
        )
        require(base.evaluations >= 1, "evaluations must be >= 1 to choose learning rates on validation images, got 0")

    @property
    def labels(self) -> dict[str, dict[str, Any]]:
        """Name of each number of labels -> its settings, from few to many."""
        if self.shots:
            return {_shots_text(images): {"data.shots": images} for images in sorted(set(self.shots))}
        return {f"{100 * share:g} % of the labels": {"data.fraction": share} for share in sorted(set(self.fractions))}

    @property
    def metric(self) -> str:
        """Name of the score that is compared."""
        return MAIN_METRIC[self.base.task]


def _shots_text(images: int) -> str:
    return "1 image per class" if images == 1 else f"{images} images per class"
