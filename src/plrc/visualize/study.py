"""A study as a page, and as one picture: means with 95 % intervals, along a numeric axis if it has one.

Layer 5: imports config and files, and this folder's page and charts. Takes what `study.content` and `study.summary`
give, which are plain dicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plrc.config import PlrcError
from plrc.files import write_text
from plrc.visualize import charts
from plrc.visualize.page import render

ENDINGS = (".png", ".svg", ".pdf")


def write_study_page(content: dict[str, Any], path: str | Path) -> Path:
    """Write `study_page` to a file, which appears whole or not at all."""
    write_text(Path(path), study_page(content))
    return Path(path)


def study_page(content: dict[str, Any]) -> str:
    """The HTML of a study, from `study.content`."""
    named = [(_name(row["axes"], content["axes"]), row) for row in content["rows"]]
    return render("study.html", s=content, named=named, plots=_plots(content))


def _plots(content: dict[str, Any]) -> list[dict[str, Any]]:
    """One for each numeric axis; one that lists all rows where there is none."""
    rows, metric = content["rows"], content["metric"]
    plots = []
    for axis in content["numeric"]:
        kinds = _kinds(rows, axis, content["axes"])
        draw = partial(_lines, kinds=kinds, axis=axis, metric=metric)
        caption = f"{metric} against {axis}: mean and 95 % interval over seeds"
        plots.append({"caption": caption, "svg": charts.svg(draw, caption), "keys": charts.keys(kinds)})
    if rows and not plots:
        caption = f"{metric}: mean and 95 % interval over seeds"
        size = 6.4, 0.7 + 0.28 * len(rows)
        draw = partial(_bars, rows=rows, order=content["axes"], metric=metric)
        plots.append({"caption": caption, "svg": charts.svg(draw, caption, size), "keys": {}})
    teachers = {
        _name(row["axes"], content["axes"]): row for row in content["curves"] if row["network"] == "teacher"
    }  # fmt: skip
    if teachers:
        caption = "grouping AUC of the teacher, matched for distance: mean over seeds; dashed: the regions given"
        svg = charts.svg(partial(_grouping, teachers=teachers), caption)
        plots.append({"caption": caption, "svg": svg, "keys": charts.keys(teachers)})
    return plots


def _grouping(axes: Axes, teachers: dict[str, dict[str, Any]]) -> None:
    keys = charts.keys(teachers)
    for name, row in teachers.items():
        look = charts.style(keys[name])
        axes.plot(list(row["steps"]), [one["mean"] for one in row["steps"].values()], lw=1.5, ms=5, **look)
        if row["regions"]:
            axes.axhline(row["regions"]["mean"], color=look["color"], lw=1, ls="--")
    charts.steps_axis(axes, "steps")
    axes.set_ylabel("AUC")


def _kinds(rows: Sequence[dict[str, Any]], axis: str, order: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What differs in nothing but the axis, by name; rows without the axis come first."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(_name(row["axes"], [name for name in order if name != axis]), []).append(row)
    shown = {name: found for name, found in kinds.items() if len(found) > 1 or axis not in found[0]["axes"]}
    return dict(sorted(shown.items(), key=lambda kind: axis in kind[1][0]["axes"]))


def _lines(axes: Axes, kinds: dict[str, list[dict[str, Any]]], axis: str, metric: str) -> None:
    keys = charts.keys(kinds)
    for name, rows in kinds.items():
        look = charts.style(keys[name])
        placed = sorted((row for row in rows if axis in row["axes"]), key=lambda row: row["axes"][axis])
        if placed:
            axes.plot([row["axes"][axis] for row in placed], [row["mean"] for row in placed], lw=1.5, ms=5, **look)
        for row in rows:
            if axis not in row["axes"]:
                axes.axhline(row["mean"], color=look["color"], lw=1.2, ls="--")
            elif row["low"] is not None:
                axes.plot([row["axes"][axis]] * 2, [row["low"], row["high"]], color=look["color"], lw=1)
    axes.set_xlabel(axis)
    axes.set_ylabel(metric)


def _bars(axes: Axes, rows: Sequence[dict[str, Any]], order: Sequence[str], metric: str) -> None:
    blue = charts.colour(1)
    for at, row in enumerate(rows):
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [at, at], color=blue, lw=1.4)
        axes.plot(row["mean"], at, "o", color=blue, ms=5)
    axes.set_yticks(range(len(rows)), [_name(row["axes"], order) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(metric)


def _name(axes: dict[str, Any], order: Sequence[str]) -> str:
    """The method, and the other settings by the last part of their names."""
    words = [str(axes["method"])] if "method" in axes and "method" in order else []
    words += [f"{name.rpartition('.')[2]} {axes[name]}" for name in order if name != "method" and name in axes]
    return ", ".join(words)


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
