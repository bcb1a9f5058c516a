"""The page of a comparison: one HTML file that says what to use, and shows why.

Layer 5: imports files, and this folder's page and charts.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from plrc.files import write_text
from plrc.visualize import charts
from plrc.visualize.page import render


def write_comparison_page(comparison: dict[str, Any], path: str | Path) -> Path:
    """Write `comparison_page` to a file, which appears whole or not at all."""
    write_text(Path(path), comparison_page(comparison))
    return Path(path)


def comparison_page(comparison: dict[str, Any]) -> str:
    """The HTML of a comparison, from the content of its comparison.json."""
    lines, count = comparison["recommendation"], len(comparison["labels"])
    settings = json.dumps(comparison["settings"], indent=1, ensure_ascii=False)
    return render(
        "comparison.html", c=comparison, advice=lines[:count], caveats=lines[count:], plots=_plots(comparison),
        keys=charts.keys(comparison["inits"]), settings=settings,
    )  # fmt: skip


def _plots(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """Score against labels; for each number of labels, validation score against iterations."""
    metric, results = comparison["metric"], comparison["results"]
    plots = []
    if any(one["n"] for by in results.values() for one in by.values()):
        caption = f"{metric} of the test images against labels: mean, 95 % interval, and each seed"
        plots.append({"caption": caption, "svg": charts.svg(partial(_against_labels, comparison=comparison), caption)})
    for at in comparison["labels"]:
        if any(by[at["name"]]["curve"] for by in results.values()):
            caption = f"{metric} of the validation images against iterations, {at['text']}: mean over seeds"
            draw = partial(_curves, comparison=comparison, labels=at["name"])
            plots.append({"caption": caption, "svg": charts.svg(draw, caption)})
    return plots


def _against_labels(axes: Axes, comparison: dict[str, Any]) -> None:
    labels, metric = comparison["labels"], comparison["metric"]
    step = 0.5 / max(4, len(comparison["inits"]))  # beside each other, so that no interval hides another
    for i, (init, by) in enumerate(comparison["results"].items()):
        shift = (i - (len(comparison["inits"]) - 1) / 2) * step
        shown = [(x + shift, by[at["name"]]) for x, at in enumerate(labels) if by[at["name"]]["n"]]
        style = _style(comparison, init)
        axes.plot([x for x, _ in shown], [one["mean"] for _, one in shown], lw=1.5, ms=5, **style)
        for x, one in shown:
            seeds = [score for score in one["scores"][metric] if score is not None]
            axes.plot([x] * len(seeds), seeds, "_", color=style["color"], ms=5, alpha=0.6)
            if one["low"] is not None:
                axes.plot([x, x], [one["low"], one["high"]], color=style["color"], lw=1)
    axes.set_xticks(
        range(len(labels)), [at["text"].replace(" of the labels", "").replace(" (", "\n(") for at in labels]
    )
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylabel(metric)


def _curves(axes: Axes, comparison: dict[str, Any], labels: str) -> None:
    for init, by in comparison["results"].items():
        points = [point for point in by[labels]["curve"] if point["mean"] is not None]
        values = [point["mean"] for point in points]
        axes.plot([point["step"] for point in points], values, lw=1.5, ms=4, **_style(comparison, init))
    charts.steps_axis(axes, "iterations")
    axes.set_ylabel(comparison["metric"])


def _style(comparison: dict[str, Any], init: str) -> dict[str, Any]:
    return charts.style(charts.keys(comparison["inits"])[init], dashed=init == "random")
