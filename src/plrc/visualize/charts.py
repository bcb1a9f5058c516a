"""Plots for pages: inline SVG whose colours are the page's CSS variables, so that it follows light and dark. Layer 5.

Colours are told apart by colour-blind readers (after Okabe and Ito), and never alone: markers or dashes go with them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = 7  # --c0 (neutral) to --c6 in pages/base.html
MARKERS = dict(zip("osD^vPX*h", "●■◆▲▼✚✖★⬢", strict=True))  # in plots -> in text
INK, LINE, SERIES = "#000001", "#000002", "#00001"  # stand for --soft, --line and --c0 ... until `svg` writes these
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "plrc", "font.size": 9, "text.parse_math": False, "axes.edgecolor": LINE,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": LINE,
    "axes.grid": True, "axes.grid.axis": "y", "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
MOST = 240  # points of a line; more cannot be seen, and make the page large


def svg(draw: Callable[[Axes], None], says: str, size: tuple[float, float] = (4.6, 2.9)) -> Markup:
    """An inline SVG in the page's colours, called `says` for those who cannot see it; without ids, which a page may not
    repeat."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r' id="[a-z]+[0-9]*_\d+"', "", text[text.index("<svg") :])
    text = text.replace(INK, "var(--soft)").replace(LINE, "var(--line)")
    text = re.sub(f"{SERIES}(\\d)", r"var(--c\1)", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(says)}"', 1))


def keys(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What tells a name from the others: colour (the first is neutral; they come again), marker, its sign in text."""
    names = list(names)
    colours = [i if i < COLOURS else 1 + (i - 1) % (COLOURS - 1) for i in range(len(names))]
    looks = zip(colours, cycle(MARKERS.items()), strict=False)
    found = [{"colour": colour, "marker": marker, "sign": sign} for colour, (marker, sign) in looks]
    return dict(zip(names, found, strict=True))


def style(key: dict[str, Any], dashed: bool = False) -> dict[str, Any]:
    """The look of a line of matplotlib, from one of `keys`."""
    return {"color": colour(key["colour"]), "marker": key["marker"], "linestyle": "--" if dashed else "-"}


def colour(number: int) -> str:
    """The page's colour --c0 to --c6, as `svg` knows it."""
    return f"{SERIES}{number}"


def steps_axis(axes: Axes, label: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(label)


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MOST points: the means of neighbours, so that a peak is lowered but none is lost between points."""
    if len(steps) <= MOST:
        return list(steps), list(values)
    bins = [np.array_split(np.asarray(each, dtype=np.float64), MOST) for each in (steps, values)]
    return [float(part.mean()) for part in bins[0]], [float(part.mean()) for part in bins[1]]
