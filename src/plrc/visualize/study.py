"""The page of a study, and its first chart as a file: means and intervals, against a numeric axis if there is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from plrc.errors import ConfigError, DataError
from plrc.visualize import charts
from plrc.visualize.page import render

ENDINGS = (".png", ".svg", ".pdf")

Row = dict[str, Any]
"""A row of `study.content`: its axes, and the mean and interval of its score."""


@dataclass(frozen=True)
class Chart:
    """A chart of a study before it is drawn.

    Attributes:
        caption: What it shows.
        draw: Draws it.
        names: The names of its lines, in order.
        size: Width and height in inches.
    """

    caption: str
    draw: charts.Draw
    names: Iterable[str] = ()
    size: tuple[float, float] = (4.6, 2.9)


def study_page(content: dict[str, Any]) -> str:
    """Return the HTML of a study, from what `study.content` returns."""
    named_rows = [(_name(row["axes"], content["axes"]), row) for row in content["rows"]]
    plots = []
    for chart in _charts(content):
        drawn = charts.svg(chart.draw, chart.caption, chart.size)
        plots.append({"caption": chart.caption, "svg": drawn, "styles": charts.series_styles(chart.names)})
    return render("study.html", s=content, named_rows=named_rows, plots=plots)


def save_study(path: Path, content: dict[str, Any]) -> None:
    """Write the page's first chart as a picture.

    Args:
        path: The file to write; its ending is the format.
        content: What `study.content` returns.

    Raises:
        ConfigError: The path has another ending than those of `ENDINGS`.
        DataError: No run has the study's score yet.
    """
    if path.suffix not in ENDINGS:
        raise ConfigError(f"the chart must end in {', '.join(ENDINGS)}, got {path}")
    if not content["rows"]:
        raise DataError(f"no run has the score {content['metric']} yet, so there is nothing to draw")
    chart = _charts(content)[0]
    charts.save(chart.draw, path, chart.size)


def _charts(content: dict[str, Any]) -> list[Chart]:
    """List a chart for each numeric axis, or one of all rows if there is no such axis; then grouping over training."""
    rows = content["rows"]
    metric = content["metric"]
    listed = []
    for axis in content["numeric"]:
        kinds = _kinds(rows, axis, content["axes"])
        caption = f"{metric} against {axis}: mean and 95 % interval over seeds"
        listed.append(Chart(caption, partial(_draw_lines, kinds=kinds, axis=axis, metric=metric), kinds))
    if rows and not listed:
        caption = f"{metric}: mean and 95 % interval over seeds"
        draw = partial(_draw_rows, rows=rows, order=content["axes"], metric=metric)
        listed.append(Chart(caption, draw, size=(6.4, 0.7 + 0.28 * len(rows))))
    teachers = {}
    for row in content["curves"]:
        if row["network"] == "teacher":
            teachers[_name(row["axes"], content["axes"])] = row
    if teachers:
        caption = "grouping AUC of the teacher, matched for distance: mean over seeds; dashed: the regions themselves"
        listed.append(Chart(caption, partial(_draw_grouping, teachers=teachers), teachers))
    return listed


def _kinds(rows: Sequence[Row], axis: str, order: Sequence[str]) -> dict[str, list[Row]]:
    """Collect the rows that differ only along an axis, by name; rows without the axis come first."""
    other_axes = [name for name in order if name != axis]
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(_name(row["axes"], other_axes), []).append(row)
    without_axis = {}
    along_axis = {}
    for name, members in kinds.items():
        if axis not in members[0]["axes"]:
            without_axis[name] = members
        elif len(members) > 1:
            along_axis[name] = members
    return without_axis | along_axis


def _draw_lines(axes: Axes, kinds: dict[str, list[Row]], axis: str, metric: str) -> None:
    styles = charts.series_styles(kinds)
    for name, rows in kinds.items():
        style = styles[name].line()
        placed = sorted((row for row in rows if axis in row["axes"]), key=lambda row: row["axes"][axis])
        if placed:
            places = [row["axes"][axis] for row in placed]
            means = [row["mean"] for row in placed]
            axes.plot(places, means, lw=1.5, ms=5, label=name, **style)
        for row in rows:
            if axis not in row["axes"]:
                axes.axhline(row["mean"], color=style["color"], lw=1.2, ls="--", label="" if placed else name)
            elif row["low"] is not None:
                axes.plot([row["axes"][axis]] * 2, [row["low"], row["high"]], color=style["color"], lw=1)
    axes.set_xlabel(axis)
    axes.set_ylabel(metric)


def _draw_rows(axes: Axes, rows: Sequence[Row], order: Sequence[str], metric: str) -> None:
    color = charts.page_color(1)
    for height, row in enumerate(rows):
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [height, height], color=color, lw=1.4)
        axes.plot(row["mean"], height, "o", color=color, ms=5)
    axes.set_yticks(range(len(rows)), [_name(row["axes"], order) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(metric)


def _draw_grouping(axes: Axes, teachers: dict[str, Row]) -> None:
    styles = charts.series_styles(teachers)
    for name, row in teachers.items():
        style = styles[name].line()
        means = [measured["mean"] for measured in row["steps"].values()]
        axes.plot(list(row["steps"]), means, lw=1.5, ms=5, **style)
        if row["regions"]:
            axes.axhline(row["regions"]["mean"], color=style["color"], lw=1, ls="--")
    charts.label_steps(axes, "steps")
    axes.set_ylabel("AUC")


def _name(axes: dict[str, Any], order: Sequence[str]) -> str:
    """Name a row by its method, and by its other settings under the last parts of their names."""
    words = [str(axes["method"])] if "method" in axes and "method" in order else []
    others = [axis for axis in order if axis != "method" and axis in axes]
    words += [f"{axis.rpartition('.')[2]} {axes[axis]}" for axis in others]
    return ", ".join(words)
