"""The page of a comparison of initial weights: what to use, and the results behind it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from plrc.visualize import charts
from plrc.visualize.page import render


def comparison_page(comparison: dict[str, Any]) -> str:
    """Return the HTML of a comparison, from the content of its comparison.json."""
    recommendation = comparison["recommendation"]
    advice_count = len(comparison["labels"])  # a sentence for each number of labels; the rest are caveats
    return render(
        "comparison.html",
        c=comparison,
        advice=recommendation[:advice_count],
        caveats=recommendation[advice_count:],
        plots=_plots(comparison),
        styles=charts.series_styles(comparison["inits"]),
        settings=json.dumps(comparison["settings"], indent=1, ensure_ascii=False),
    )


def _plots(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """Draw test score against labels and, for each number of labels, validation score against training steps."""
    metric = comparison["metric"]
    results = [result for by_labels in comparison["results"].values() for result in by_labels.values()]
    plots = []
    if any(result["n"] for result in results):
        caption = f"{metric} of the test images against labels: mean, 95 % interval, and each seed"
        plots.append({"caption": caption, "svg": charts.svg(partial(_against_labels, comparison=comparison), caption)})
    for labels in comparison["labels"]:
        if any(by_labels[labels["name"]]["curve"] for by_labels in comparison["results"].values()):
            caption = f"{metric} of the validation images against training steps, {labels['text']}: mean over seeds"
            draw = partial(_curves, comparison=comparison, labels=labels["name"])
            plots.append({"caption": caption, "svg": charts.svg(draw, caption)})
    return plots


def _against_labels(axes: Axes, comparison: dict[str, Any]) -> None:
    labels = comparison["labels"]
    metric = comparison["metric"]
    inits = len(comparison["inits"])
    spacing = 0.5 / max(4, inits)  # side by side, so that no interval hides another
    for index, (init, by_labels) in enumerate(comparison["results"].items()):
        style = _style(comparison, init)
        shift = (index - (inits - 1) / 2) * spacing
        places = []
        means = []
        for number, row in enumerate(labels):
            result = by_labels[row["name"]]
            if not result["n"]:
                continue
            place = number + shift
            places.append(place)
            means.append(result["mean"])
            seeds = [score for score in result["scores"][metric] if score is not None]
            axes.plot([place] * len(seeds), seeds, "_", color=style["color"], ms=5, alpha=0.6)
            if result["low"] is not None:
                axes.plot([place, place], [result["low"], result["high"]], color=style["color"], lw=1)
        axes.plot(places, means, lw=1.5, ms=5, **style)
    names = [row["text"].replace(" of the labels", "").replace(" (", "\n(") for row in labels]
    axes.set_xticks(range(len(labels)), names)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylabel(metric)


def _curves(axes: Axes, comparison: dict[str, Any], labels: str) -> None:
    for init, by_labels in comparison["results"].items():
        points = [point for point in by_labels[labels]["curve"] if point["mean"] is not None]
        steps = [point["step"] for point in points]
        means = [point["mean"] for point in points]
        axes.plot(steps, means, lw=1.5, ms=4, **_style(comparison, init))
    charts.label_steps(axes, "training steps")
    axes.set_ylabel(comparison["metric"])


def _style(comparison: dict[str, Any], init: str) -> dict[str, Any]:
    return charts.series_styles(comparison["inits"])[init].line(dashed=init == "random")
