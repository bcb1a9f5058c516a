"""The page of a comparison: one HTML file that says what to use, and shows why. Needs the extra `report`.

Layer 5: imports config and files. The page asks for nothing from outside, fits a phone, and follows the reader's choice
of light or dark: plots are inline SVG whose colours are the page's CSS variables.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plrc.files import write_text
from plrc.visualize.templates import environment

COLOURS = 7  # --c0 (random) to --c6 in pages/base.html, told apart by colour-blind readers (after Okabe and Ito)
MARKERS = dict(zip("osD^vPX*h", "●■◆▲▼✚✖★⬢", strict=True))  # in plots -> in text
INK, LINE, SERIES = "#000001", "#000002", "#00001"  # stand for --soft, --line and --c0 ... until `_svg` writes these
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "plrc", "font.size": 9, "text.parse_math": False, "axes.edgecolor": LINE,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": LINE,
    "axes.grid": True, "axes.grid.axis": "y", "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def write_comparison_page(comparison: dict[str, Any], path: str | Path) -> Path:
    """Write `comparison_page` to a file, which appears whole or not at all."""
    write_text(Path(path), comparison_page(comparison))
    return Path(path)


def comparison_page(comparison: dict[str, Any]) -> str:
    """The HTML of a comparison, from the content of its comparison.json."""
    lines, count = comparison["recommendation"], len(comparison["labels"])
    return environment().get_template("comparison.html").render(
        c=comparison, advice=lines[:count], caveats=lines[count:], plots=_plots(comparison),
        keys=_keys(comparison), settings=json.dumps(comparison["settings"], indent=1, ensure_ascii=False),
    )  # fmt: skip


def _plots(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """Score against labels; for each number of labels, validation score against iterations."""
    metric, results = comparison["metric"], comparison["results"]
    plots = []
    if any(one["n"] for by in results.values() for one in by.values()):
        caption = f"{metric} of the test images against labels: mean, 95 % interval, and each seed"
        plots.append({"caption": caption, "svg": _svg(partial(_against_labels, comparison=comparison))})
    for at in comparison["labels"]:
        if any(by[at["name"]]["curve"] for by in results.values()):
            caption = f"{metric} of the validation images against iterations, {at['text']}: mean over seeds"
            plots.append({"caption": caption, "svg": _svg(partial(_curves, comparison=comparison, labels=at["name"]))})
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
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("iterations")
    axes.set_ylabel(comparison["metric"])


def _svg(draw: Callable[[Axes], None]) -> Markup:
    """An inline SVG in the page's colours; without ids, which a page may not repeat."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r' id="[a-z]+[0-9]*_\d+"', "", text[text.index("<svg") :])
    text = text.replace(INK, "var(--soft)").replace(LINE, "var(--line)")
    return Markup(re.sub(f"{SERIES}(\\d)", r"var(--c\1)", text))


def _keys(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What tells an init from the others: colour (they come again beyond the last), marker, and its sign in text."""
    colours = [i if i < COLOURS else 1 + (i - 1) % (COLOURS - 1) for i in range(len(comparison["inits"]))]
    looks = zip(colours, cycle(MARKERS.items()), strict=False)
    found = [{"colour": colour, "marker": marker, "sign": sign} for colour, (marker, sign) in looks]
    return dict(zip(comparison["inits"], found, strict=True))


def _style(comparison: dict[str, Any], init: str) -> dict[str, Any]:
    key = _keys(comparison)[init]
    line = "--" if init == "random" else "-"
    return {"color": f"{SERIES}{key['colour']}", "marker": key["marker"], "linestyle": line}
