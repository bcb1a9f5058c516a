"""The picture of a study: means with 95 % intervals, along its numeric axis if it has one. Needs the extra `report`.

Layer 5. Takes the rows of `study.summary`, which are plain dicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plrc.config import PlrcError

ENDINGS = (".png", ".svg", ".pdf")


def save_study(path: Path, rows: Sequence[dict[str, Any]], metric: str, numeric: Sequence[str]) -> None:
    """Write the picture, along the first of the `numeric` axes if there is one; the path's ending says how. Raises
    PlrcError for another ending, or where there is no row."""
    if path.suffix not in ENDINGS:
        raise PlrcError(f"{path} is no picture that can be written; end it in {', '.join(ENDINGS)}")
    if not rows:
        raise PlrcError(f"no run has the score {metric} yet, so there is nothing to draw")
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(metric)
    (_along if numeric else _listed)(axes, rows, *numeric[:1])
    figure.savefig(path, dpi=200)


def _along(axes: Axes, rows: Sequence[dict[str, Any]], axis: str) -> None:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if axis in row["axes"]:
            name = ", ".join(str(value) for key, value in row["axes"].items() if key != axis)
            kinds.setdefault(name, []).append(row)
    for name, found in kinds.items():
        found.sort(key=lambda row: row["axes"][axis])
        axes.errorbar(
            [row["axes"][axis] for row in found], [row["mean"] for row in found], yerr=_errors(found),
            marker="o", capsize=3, label=name,
        )  # fmt: skip
    axes.set_xlabel(axis)
    axes.legend(frameon=False)


def _listed(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    names = [", ".join(str(value) for value in row["axes"].values()) for row in rows]
    axes.errorbar([row["mean"] for row in rows], range(len(rows)), xerr=_errors(rows), fmt="o", capsize=3)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()


def _errors(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Lengths below and above the means; 0 where there is no interval."""
    below = [row["mean"] - (row["low"] if row["low"] is not None else row["mean"]) for row in rows]
    above = [(row["high"] if row["high"] is not None else row["mean"]) - row["mean"] for row in rows]
    return [below, above]
