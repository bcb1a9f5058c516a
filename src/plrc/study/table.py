"""The lines of a study as tables: means with intervals, paired differences, slopes, and curves while training.

Arguments that all functions share: `lines` of the study, `metric`, the name of the score that is shown, `baseline`, the
method that the others are compared with, `axis`, a setting that varies, and `rows` of `summary` or `curves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.compare.statistics import Interval, format_interval, interval, paired_differences, summarize_differences

Line = Mapping[str, Any]
"""A line of lines.jsonl."""

Group = tuple[tuple[str, Any], ...]
"""Sorted (axis, value) of runs that differ only in the seed."""


def summary(lines: Sequence[Line], metric: str, baseline: str) -> list[dict[str, Any]]:
    """Return one row for each group of runs that differ only in the seed.

    A row has `axes`, mean and interval of the metric over seeds, and `versus`: the paired difference to the runs of
    the baseline with the same axes or, if there are none, to those with no axis but the method.
    """
    scores = grouped(lines, metric)
    rows = []
    for group, by_seed in scores.items():
        row = {"axes": dict(group), **vars(interval(list(by_seed.values()))), "versus": None}
        rival = _rival(group, scores, baseline)
        seeds = sorted(by_seed.keys() & rival.keys())
        if seeds:
            differences = paired_differences([by_seed[seed] for seed in seeds], [rival[seed] for seed in seeds])
            row["versus"] = vars(summarize_differences(differences))
        rows.append(row)
    return rows


def _rival(group: Group, scores: dict[Group, dict[int, float]], baseline: str) -> dict[int, float]:
    """Return seed -> score of the baseline's runs that a group is compared with; empty if there are none."""
    same_axes = tuple(sorted((dict(group) | {"method": baseline}).items()))
    no_axes = (("method", baseline),)
    for candidate in (same_axes, no_axes):
        if candidate in scores and candidate != group:
            return scores[candidate]
    return {}


def grouped(lines: Sequence[Line], metric: str) -> dict[Group, dict[int, float]]:
    """Return group of runs -> seed -> score, without the runs that lack the score."""
    scores: dict[Group, dict[int, float]] = {}
    for line in lines:
        score = line["scores"].get(metric)
        if score is not None:
            scores.setdefault(_group(line), {})[int(line["axes"]["seed"])] = score
    return scores


def _group(line: Line) -> Group:
    pairs = []
    for axis, value in sorted(line["axes"].items()):
        if axis != "seed":
            pairs.append((axis, tuple(value) if isinstance(value, list) else value))
    return tuple(pairs)


def all_axes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every axis that a row has, in order of appearance."""
    return list(dict.fromkeys(axis for row in rows for axis in row["axes"]))


def numeric_axes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the axes whose values are numbers, at least two different ones."""
    numeric = []
    for axis in all_axes(rows):
        values = {row["axes"][axis] for row in rows if axis in row["axes"]}
        if len(values) > 1 and all(isinstance(value, (int, float)) for value in values):
            numeric.append(axis)
    return numeric


def slopes(lines: Sequence[Line], metric: str, axis: str) -> dict[str, Interval]:
    """Return method -> change of the metric per unit of a numeric axis, as mean and interval over seeds.

    The slope of each seed is that of the least-squares line. Seeds with fewer than two values of the axis are left out.
    """
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for line in lines:
        axes = line["axes"]
        score = line["scores"].get(metric)
        if axis in axes and score is not None:
            by_seed = points.setdefault(axes["method"], {})
            by_seed.setdefault(axes["seed"], []).append((float(axes[axis]), score))
    intervals = {}
    for method, by_seed in points.items():
        usable = [np.array(pairs) for pairs in by_seed.values() if len({x for x, _ in pairs}) > 1]
        if usable:
            intervals[method] = interval([slope(points_of_seed) for points_of_seed in usable])
    return intervals


def slope(points: NDArray[np.float64]) -> float:
    """Return the slope of the least-squares line through points (x, y) [n, 2]."""
    x, y = (points - points.mean(axis=0)).T
    return float(x @ y / (x @ x))


def curves(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the grouping AUC while training: one row for each group of runs and network (`student`, `teacher`).

    A row has `axes`, `network`, `steps` (step -> mean and interval over seeds), and `regions`: the AUC of the regions
    that the runs were given. Steps of less than half of the runs are left out: at these, single runs were stopped.
    """
    rows = []
    for group, by_name in _curve_values(lines).items():
        by_step = by_name.pop("regions", {})
        regions = vars(interval(by_step[max(by_step)])) if by_step else None
        for name, by_step in by_name.items():
            num_runs = max(len(values) for values in by_step.values())
            steps = {}
            for step, values in sorted(by_step.items()):
                if 2 * len(values) >= num_runs:
                    steps[step] = vars(interval(values))
            rows.append({"axes": dict(group), "network": name, "steps": steps, "regions": regions})
    return rows


def _curve_values(lines: Sequence[Line]) -> dict[Group, dict[str, dict[int, list[float]]]]:
    """Return group of runs -> name of the curve -> step -> AUC of each run."""
    curves_of_groups: dict[Group, dict[str, dict[int, list[float]]]] = {}
    for line in lines:
        for point in line.get("curve", ()):
            by_name = curves_of_groups.setdefault(_group(line), {})
            for name, value in point.items():
                if name != "step" and value is not None:
                    by_name.setdefault(name, {}).setdefault(int(point["step"]), []).append(value)
    return curves_of_groups


def table(lines: Sequence[Line], metric: str, baseline: str) -> str:
    """Return `summary`, the slopes along each numeric axis, and `curves`, as Markdown."""
    rows = summary(lines, metric, baseline)
    axes = all_axes(rows)
    digits = num_digits(metric)
    body = []
    for row in rows:
        versus = ["", ""]
        if row["versus"]:
            versus = [format_interval(row["versus"], "+", digits), row["versus"]["verdict"]]
        body.append([*_axis_values(row, axes), str(row["n"]), format_interval(row, digits=digits), *versus])
    text = _markdown([*axes, "runs", metric, f"minus {baseline}", "verdict"], body)
    for axis in numeric_axes(rows):
        for method, mean in slopes(lines, metric, axis).items():
            text.append(f"slope of {method} along {axis}: {format_interval(vars(mean), '+', digits)}, {mean.n} seeds")
    return "\n".join(text + _curves_table(lines))


def _curves_table(lines: Sequence[Line]) -> list[str]:
    """Return `curves` as lines of Markdown after an empty line; no line if there are no curves."""
    rows = curves(lines)
    if not rows:
        return []
    axes = all_axes(rows)
    digits = num_digits("auc")
    steps = sorted({step for row in rows for step in row["steps"]})
    body = []
    for row in rows:
        values = [*(row["steps"].get(step) for step in steps), row["regions"]]
        texts = [format_interval(value, digits=digits) if value else "" for value in values]
        body.append([*_axis_values(row, axes), row["network"], *texts])
    head = [*axes, "grouping AUC of", *(f"step {step}" for step in steps), "regions given"]
    return ["", *_markdown(head, body)]


def _axis_values(row: Mapping[str, Any], axes: Sequence[str]) -> list[str]:
    return [str(row["axes"].get(axis, "")) for axis in axes]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(entries) + " |" for entries in (head, ["---"] * len(head), *body)]


def num_digits(metric: str) -> int:
    """Return the digits after the point of a score: one for percent, three for areas under curves."""
    return 3 if metric.startswith("auc") else 1


def content(title: str, lines: Sequence[Line], metric: str, baseline: str, runs: int, text: str) -> dict[str, Any]:
    """Return what the page of a study shows, as plain dicts and lists.

    Args:
        title: Title of the study.
        runs: Total number of runs of the study.
        text: Text of the study file.
    """
    rows = summary(lines, metric, baseline)
    axes = numeric_axes(rows)
    slope_rows = []
    for axis in axes:
        for method, mean in slopes(lines, metric, axis).items():
            slope_rows.append({"axis": axis, "method": method, **vars(mean)})
    return {
        "title": title,
        "metric": metric,
        "digits": num_digits(metric),
        "baseline": baseline,
        "runs": runs,
        "text": text,
        "axes": all_axes(rows),
        "numeric": axes,
        "rows": rows,
        "lines": list(lines),
        "curves": curves(lines),
        "slopes": slope_rows,
    }
