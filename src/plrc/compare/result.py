"""The result of a comparison as Python users see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plrc.compare.summary import table


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare_weights`. Its repr is the table that `plrc compare` prints.

    Attributes:
        path: The folder of the comparison; `comparison.html` in it shows the result.
        metric: The score that is compared, such as "AP".
        finished: Whether all runs are done. False if the comparison was stopped; the same call continues it.
        scores: Name of the initial weights -> number of labels -> the score for each seed, None for a run that is
            missing.
        recommendation: What the result means, in sentences.
        content: The content of `comparison.json`: settings, scores, intervals, verdicts, provenance.
    """

    path: Path
    metric: str
    finished: bool
    scores: dict[str, dict[str, tuple[float | None, ...]]]
    recommendation: tuple[str, ...]
    content: Mapping[str, Any] = field(compare=False)

    @classmethod
    def from_content(cls, path: Path, content: Mapping[str, Any]) -> Comparison:
        """Return the result that a comparison.json describes.

        Args:
            path: The folder of the comparison.
            content: The content of the file.
        """
        metric = content["metric"]
        scores: dict[str, dict[str, tuple[float | None, ...]]] = {}
        for init, by_labels in content["results"].items():
            scores[init] = {labels: tuple(result["scores"][metric]) for labels, result in by_labels.items()}
        return cls(
            path=path,
            metric=metric,
            finished=content["finished"],
            scores=scores,
            recommendation=tuple(content["recommendation"]),
            content=content,
        )

    def __repr__(self) -> str:
        state = ""
        if not self.finished:
            state = f"not finished: {self.content['done']} of {self.content['cells']} runs are done\n"
        return state + table(self.content)
