"""The curves of a race: scores against CPU minutes for each method, as rows and as a figure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from plrc.compare.statistics import interval
from plrc.errors import ConfigError
from plrc.study.plan import RANDOM
from plrc.visualize import charts

Line = dict[str, Any]
"""A finished run: key, method, seed, cpu_minutes, cpu_minutes_used, steps, images, scores, pretrain, scoring."""


def summarize(lines: list[Line]) -> list[dict[str, Any]]:
    """Return a row for each method, time and score.

    A row has the mean and its 95 % interval over the seeds of pre-training, each the mean over the seeds of the probe;
    with a single seed of pre-training, over the seeds of the probe (`over`).
    """
    groups: dict[tuple[str, float], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["cpu_minutes"]), []).append(line)
    rows = []
    for (method, minutes), group in groups.items():
        for name in group[0]["scores"]:
            by_seed = [line["scores"][name] for line in group]
            values = [_mean(probed) for probed in by_seed]
            over = "seeds"
            if len(values) == 1:
                values = by_seed[0]
                over = "probe seeds"
            row = {
                "method": method,
                "cpu_minutes": minutes,
                "cpu_minutes_used": _mean([line["cpu_minutes_used"] for line in group]),
                "images": _mean([line["images"] for line in group]),
                "score": name,
                **asdict(interval(values)),
                "over": over,
            }
            rows.append(row)
    return rows


def draw_curves(rows: list[dict[str, Any]], score: str, file: Path) -> None:
    """Draw a score against the CPU minutes used, a line for each method; random weights are a level line.

    Raises:
        ConfigError: No run has the score.
    """
    of_score = [row for row in rows if row["score"] == score]
    if not of_score:
        raise ConfigError(f"no finished run has the score {score}, so there is nothing to draw")
    styles = charts.series_styles(dict.fromkeys(row["method"] for row in of_score))

    def draw(axes: Axes) -> None:
        for method, style in styles.items():
            own = [row for row in of_score if row["method"] == method]
            own.sort(key=lambda row: row["cpu_minutes"])
            points = [(row["cpu_minutes_used"], row["mean"], row["low"], row["high"]) for row in own]
            minutes, mean, low, high = np.array(points, dtype=float).T  # low and high are nan without an interval
            color = charts.page_color(style.color)
            if method == RANDOM:
                axes.axhline(mean[0], color=color, linestyle=":", label=method)
                continue
            axes.plot(minutes, mean, label=method, markersize=4, **style.line())
            axes.fill_between(minutes, low, high, color=color, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        times = sorted({row["cpu_minutes"] for row in of_score if row["method"] != RANDOM})
        axes.set_xticks(times, labels=[f"{minutes:g}" for minutes in times])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("CPU minutes")
        axes.set_ylabel(score)

    file.parent.mkdir(parents=True, exist_ok=True)
    charts.save(draw, file)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
