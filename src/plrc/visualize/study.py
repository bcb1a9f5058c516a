"""A study as a page, and its first plot as a picture: means with 95 % intervals, along a numeric axis if it has one.

Layer 5: imports config and files, and this folder's page and charts. Takes what `study.content` and `study.summary`
give, which are plain dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from plrc.errors import PlrcError
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
    plots = [
        {"caption": one.caption, "svg": charts.svg(one.draw, one.caption, one.size), "keys": charts.keys(one.names)}
        for one in _drawings(content)
    ]
    return render("study.html", s=content, named=named, plots=plots)


@dataclass(frozen=True)
class Drawing:
    """A plot before it is drawn. names: of its lines, in order; size: in inches."""

    caption: str
    draw: Callable[[Axes], None]
    names: Iterable[str] = ()
    size: tuple[float, float] = (4.6, 2.9)


def _drawings(content: dict[str, Any]) -> list[Drawing]:
    """One for each numeric axis, or one that lists all rows where there is none; and grouping while training."""
    rows, metric = content["rows"], content["metric"]
    found = []
    for axis in content["numeric"]:
        kinds = _kinds(rows, axis, content["axes"])
        draw = partial(_lines, kinds=kinds, axis=axis, metric=metric)
        found.append(Drawing(f"{metric} against {axis}: mean and 95 % interval over seeds", draw, kinds))
    if rows and not found:
        draw = partial(_bars, rows=rows, order=content["axes"], metric=metric)
        caption = f"{metric}: mean and 95 % interval over seeds"
        found.append(Drawing(caption, draw, size=(6.4, 0.7 + 0.28 * len(rows))))
    teachers = {
        _name(row["axes"], content["axes"]): row for row in content["curves"] if row["network"] == "teacher"
    }  # fmt: skip
    if teachers:
        caption = "grouping AUC of the teacher, matched for distance: mean over seeds; dashed: the regions given"
        found.append(Drawing(caption, partial(_grouping, teachers=teachers), teachers))
    return found


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
            means = [row["mean"] for row in placed]
            axes.plot([row["axes"][axis] for row in placed], means, lw=1.5, ms=5, label=name, **look)
        for row in rows:
            if axis not in row["axes"]:
                axes.axhline(row["mean"], color=look["color"], lw=1.2, ls="--", label="" if placed else name)
            elif row["low"] is not None:
                axes.plot([row["axes"][axis]] * 2, [row["low"], row["high"]], color=look["color"], lw=1)
    axes.set_xlabel(axis)
    axes.set_ylabel(metric)


def _bars(axes: Axes, rows: Sequence[dict[str, Any]], order: Sequence[str], metric: str) -> None:
    blue = charts.color(1)
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


def save_study(path: Path, content: dict[str, Any]) -> None:
    """Write the page's first plot as a picture; the path's ending says how. Raises PlrcError for another ending, or
    where there is no row."""
    if path.suffix not in ENDINGS:
        raise PlrcError(f"{path} is no picture that can be written; end it in {', '.join(ENDINGS)}")
    if not content["rows"]:
        raise PlrcError(f"no run has the score {content['metric']} yet, so there is nothing to draw")
    first = _drawings(content)[0]
    charts.save(first.draw, path, first.size)
