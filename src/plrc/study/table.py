"""What the lines of a study say, and nothing else than the lines: means, intervals, paired differences, slopes.

Layer 6: imports plan, and the statistics of transfer. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.compare.statistics import Interval, difference, interval, paired, shown

Group = tuple[tuple[str, Any], ...]
"""Everything about a run but its seed: (axis, value), sorted."""


def summary(lines: Sequence[dict[str, Any]], metric: str, baseline: str) -> list[dict[str, Any]]:
    """One row for each kind of run: its axes, mean and interval of `metric` over seeds, and the paired difference to
    the runs of the method `baseline` in the same place of the grid or, where there are none, with no other axis set."""
    scores = grouped(lines, metric)
    rows = []
    for group, by_seed in scores.items():
        axes = dict(group)
        places = tuple(sorted((axes | {"method": baseline}).items())), (("method", baseline),)
        rival = next((scores[place] for place in places if place in scores and place != group), None)
        versus = None
        if rival:
            seeds = sorted(by_seed.keys() & rival.keys())
            values = paired([by_seed[s] for s in seeds], [rival[s] for s in seeds])
            versus = vars(difference(values)) if values else None
        rows.append({"axes": axes, **vars(interval(list(by_seed.values()))), "versus": versus})
    return rows


def grouped(lines: Sequence[dict[str, Any]], metric: str) -> dict[Group, dict[int, float]]:
    """Kind of run -> seed -> score; runs without a number are left out."""
    found: dict[Group, dict[int, float]] = {}
    for line in lines:
        score = line["scores"].get(metric)
        if score is not None:
            axes: dict[str, Any] = {axis: tuple(v) if isinstance(v, list) else v for axis, v in line["axes"].items()}
            seed = int(axes.pop("seed"))
            found.setdefault(tuple(sorted(axes.items())), {})[seed] = score
    return found


def all_axes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every axis that some row has, in the order in which they come."""
    return list(dict.fromkeys(axis for row in rows for axis in row["axes"]))


def numeric_axes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Axes with at least two different numbers."""
    values: dict[str, set[Any]] = {}
    for row in rows:
        for axis, value in row["axes"].items():
            values.setdefault(axis, set()).add(value)
    numbers = {a: v for a, v in values.items() if all(isinstance(x, (int, float)) for x in v)}
    return [axis for axis, found in numbers.items() if len(found) > 1]


def slopes(lines: Sequence[dict[str, Any]], metric: str, axis: str) -> dict[str, Interval]:
    """Method -> how much `metric` changes for each unit of a numeric axis: least squares in each seed, then the mean
    and interval over seeds. Only seeds that have at least two values of the axis."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for line in lines:
        axes, score = line["axes"], line["scores"].get(metric)
        if axis in axes and score is not None:
            points.setdefault(axes["method"], {}).setdefault(axes["seed"], []).append((float(axes[axis]), score))
    found = {}
    for method, by_seed in points.items():
        each = [slope(np.array(pairs)) for pairs in by_seed.values() if len({x for x, _ in pairs}) > 1]
        if each:
            found[method] = interval(each)
    return found


def slope(points: NDArray[np.float64]) -> float:
    """Of the least-squares line through points [n, 2]."""
    x, y = (points - points.mean(axis=0)).T
    return float(x @ y / (x @ x))


def table(lines: Sequence[dict[str, Any]], metric: str, baseline: str) -> str:
    """`summary` for a terminal or a document (Markdown), and the slopes along each numeric axis."""
    rows = summary(lines, metric, baseline)
    axes = all_axes(rows)
    head = [*axes, "runs", metric, f"minus {baseline}", "verdict"]
    body = [
        [
            *(str(row["axes"].get(axis, "")) for axis in axes), str(row["n"]), _precise(row, metric),
            _precise(row["versus"], metric, "+") if row["versus"] else "",
            row["versus"]["verdict"] if row["versus"] else "",
        ]
        for row in rows
    ]  # fmt: skip
    lines_ = _markdown(head, body)
    for axis in numeric_axes(rows):
        for method, found in slopes(lines, metric, axis).items():
            lines_.append(f"slope of {method} along {axis}: {_precise(vars(found), metric, '+')}, {found.n} seeds")
    return "\n".join([*lines_, *_curves(lines)])


def curves(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Grouping while training: one row for each kind of run and network (`student`, `teacher`): axes, and by step the
    mean and interval of the AUC over seeds (`steps`); `regions`: that of the regions which the runs were given. Steps
    that only a few runs have, because those were stopped and saved there, are left out."""
    found: dict[Group, dict[str, dict[int, list[float]]]] = {}
    for line in lines:
        group = tuple(sorted((axis, value) for axis, value in line["axes"].items() if axis != "seed"))
        for point in line.get("curve", ()):
            for name, value in point.items():
                if name != "step" and value is not None:
                    found.setdefault(group, {}).setdefault(name, {}).setdefault(int(point["step"]), []).append(value)
    rows = []
    for group, by_name in found.items():
        given = by_name.pop("regions", {})
        regions = vars(interval(given[max(given)])) if given else None
        for name, by_step in by_name.items():
            most = max(map(len, by_step.values()))
            kept = {step: values for step, values in sorted(by_step.items()) if 2 * len(values) >= most}
            steps = {step: vars(interval(values)) for step, values in kept.items()}
            rows.append({"axes": dict(group), "network": name, "steps": steps, "regions": regions})
    return rows


def _curves(lines: Sequence[dict[str, Any]]) -> list[str]:
    """`curves` as a Markdown table, after an empty line; nothing where there are none."""
    rows = curves(lines)
    if not rows:
        return []
    axes = all_axes(rows)
    steps = sorted({step for row in rows for step in row["steps"]})
    head = [*axes, "grouping AUC of", *(f"step {step}" for step in steps), "regions given"]
    body = [
        [
            *(str(row["axes"].get(axis, "")) for axis in axes), row["network"],
            *(_precise(row["steps"][step], "auc") if step in row["steps"] else "" for step in steps),
            _precise(row["regions"], "auc") if row["regions"] else "",
        ]
        for row in rows
    ]  # fmt: skip
    return ["", *_markdown(head, body)]


def content(
    title: str, lines: Sequence[dict[str, Any]], metric: str, baseline: str, runs: int, text: str
) -> dict[str, Any]:
    """What the page of a study shows, plain dicts: `summary` and `slopes` with the lines that they come from. `runs`:
    how many there will be; `text`: the study file."""
    rows = summary(lines, metric, baseline)
    return {
        "title": title, "metric": metric, "digits": digits(metric), "baseline": baseline, "runs": runs, "text": text,
        "axes": all_axes(rows), "numeric": numeric_axes(rows),
        "rows": rows, "lines": list(lines), "curves": curves(lines),
        "slopes": [
            {"axis": axis, "method": method, **vars(found)}
            for axis in numeric_axes(rows)
            for method, found in slopes(lines, metric, axis).items()
        ],
    }  # fmt: skip


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]


def digits(metric: str) -> int:
    """Percent are shown with one digit after the point; areas under curves, which are shares, with three."""
    return 3 if metric.startswith("auc") else 1


def _precise(found: dict[str, Any], metric: str, sign: str = "") -> str:
    if digits(metric) == 1:
        return shown(found, sign)
    ends = "" if found["low"] is None else f" [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"
    return f"{found['mean']:{sign}.3f}{ends}"
