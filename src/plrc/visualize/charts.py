"""Plots for pages: inline SVG whose colors are the page's CSS variables, so that it follows light and dark; and the
same in files. Layer 5.

Colours are told apart by color-blind readers (after Okabe and Ito), and never alone: markers or dashes go with them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plrc.files import write_atomic

# --soft, --line, and --c0 (neutral) to --c6 of pages/base.html, where it is light
LIGHT = "#5d646d", "#dedbd3", ("#5d646d", "#0072b2", "#d55e00", "#008560", "#b5578a", "#a87400", "#2d8fc4")
COLOURS = len(LIGHT[2])
MARKERS = dict(zip("osD^vPX*h", "●■◆▲▼✚✖★⬢", strict=True))  # in plots -> in text
INK, LINE, SERIES = "#000001", "#000002", "#00001"  # stand for these until `svg` writes them
MOST = 240  # points of a line; more cannot be seen, and make the page large


def svg(draw: Callable[[Axes], None], says: str, size: tuple[float, float] = (4.6, 2.9)) -> Markup:
    """An inline SVG in the page's colors, called `says` for those who cannot see it; without ids, which a page may not
    repeat."""
    file = io.StringIO()
    with matplotlib.rc_context(_look(INK, LINE, [f"{SERIES}{number}" for number in range(COLOURS)])):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r' id="[a-z]+[0-9]*_\d+"', "", text[text.index("<svg") :])
    text = text.replace(INK, "var(--soft)").replace(LINE, "var(--line)")
    text = re.sub(f"{SERIES}(\\d)", r"var(--c\1)", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(says)}"', 1))


def save(draw: Callable[[Axes], None], path: Path, size: tuple[float, float] = (5.5, 3.4)) -> None:
    """The same in a file, for papers: in the colors of a light page, with a legend where lines are labelled. The
    path's ending names the format."""
    with matplotlib.rc_context(_look(*LIGHT)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
        write_atomic(path, partial(figure.savefig, format=path.suffix[1:].lower(), dpi=200))


def _look(ink: str, line: str, series: Sequence[str]) -> Any:
    return {
        "svg.fonttype": "none", "svg.hashsalt": "plrc", "font.size": 9, "text.parse_math": False, "grid.color": line,
        "axes.edgecolor": line, "axes.labelcolor": ink, "text.color": ink, "xtick.color": ink, "ytick.color": ink,
        "axes.grid": True, "axes.grid.axis": "y", "axes.spines.top": False, "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=series),
    }  # fmt: skip


def keys(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What tells a name from the others: color (the first is neutral; they come again), marker, its sign in text."""
    names = list(names)
    colors = [i if i < COLOURS else 1 + (i - 1) % (COLOURS - 1) for i in range(len(names))]
    looks = zip(colors, cycle(MARKERS.items()), strict=False)
    found = [{"color": color, "marker": marker, "sign": sign} for color, (marker, sign) in looks]
    return dict(zip(names, found, strict=True))


def style(key: dict[str, Any], dashed: bool = False) -> dict[str, Any]:
    """The look of a line of matplotlib, from one of `keys`."""
    return {"color": color(key["color"]), "marker": key["marker"], "linestyle": "--" if dashed else "-"}


def color(number: int) -> str:
    """The page's color --c0 to --c6."""
    return f"C{number}"


def steps_axis(axes: Axes, label: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(label)


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MOST points: the means of neighbours, so that a peak is lowered but none is lost between points."""
    if len(steps) <= MOST:
        return list(steps), list(values)
    bins = [np.array_split(np.asarray(each, dtype=np.float64), MOST) for each in (steps, values)]
    return [float(part.mean()) for part in bins[0]], [float(part.mean()) for part in bins[1]]
