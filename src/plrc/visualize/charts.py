"""Charts as inline SVG, whose colors are the page's CSS variables so that it follows light and dark, and as files.

Lines differ in color (distinct for color-blind readers, after Okabe and Ito) and in their markers or dashes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plrc.files import write_atomic
from plrc.visualize.figures import default_style

Draw = Callable[[Axes], None]
"""Draws a chart on empty axes."""

LIGHT_TEXT = "#5d646d"
LIGHT_LINE = "#dedbd3"
LIGHT_SERIES = ("#5d646d", "#0072b2", "#d55e00", "#008560", "#b5578a", "#a87400", "#2d8fc4")
"""--soft, --line, and --c0 (neutral) to --c6 of pages/base.html in its light form."""
MARKERS = dict(zip("osD^vPX*h", "●■◆▲▼✚✖★⬢", strict=True))
"""Markers of Matplotlib -> their signs in text."""
MAX_POINTS = 240
"""Points of a line; more cannot be seen, and would make the page large."""
TEXT_PLACEHOLDER = "#000001"
LINE_PLACEHOLDER = "#000002"
SERIES_PLACEHOLDER = "#00001"  # a digit follows


@dataclass(frozen=True)
class SeriesStyle:
    """How a line differs from others.

    Attributes:
        color: Number of the page's color, 0 (neutral) to 6.
        marker: Marker of Matplotlib.
        sign: The same marker in text.
    """

    color: int
    marker: str
    sign: str

    def line(self, dashed: bool = False) -> dict[str, Any]:
        """Return the arguments of `Axes.plot` for this style."""
        return {"color": page_color(self.color), "marker": self.marker, "linestyle": "--" if dashed else "-"}


def series_styles(names: Iterable[str]) -> dict[str, SeriesStyle]:
    """Choose a style for each name: the first is neutral; if there are many names, colors and markers repeat."""
    styles = {}
    markers = cycle(MARKERS.items())
    for index, name in enumerate(names):
        last = len(LIGHT_SERIES) - 1
        color = index if index <= last else 1 + (index - 1) % last
        styles[name] = SeriesStyle(color, *next(markers))
    return styles


def page_color(number: int) -> str:
    """Return the page's color --c0 to --c6 under its name in Matplotlib."""
    return f"C{number}"


def svg(draw: Draw, description: str, size: tuple[float, float] = (4.6, 2.9)) -> Markup:
    """Draw a chart as inline SVG in the page's colors.

    Args:
        draw: Draws on the axes.
        description: Text for readers who cannot see the chart.
        size: Width and height in inches; the page scales it.

    Returns:
        SVG without ids, which a page must not repeat.
    """
    series = [f"{SERIES_PLACEHOLDER}{number}" for number in range(len(LIGHT_SERIES))]
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    file = io.StringIO()
    with default_style(_settings(TEXT_PLACEHOLDER, LINE_PLACEHOLDER, series)):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[a-z]+[0-9]*_\d+"', "", text)
    text = text.replace(TEXT_PLACEHOLDER, "var(--soft)").replace(LINE_PLACEHOLDER, "var(--line)")
    text = re.sub(f"{SERIES_PLACEHOLDER}(\\d)", r"var(--c\1)", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def save(draw: Draw, path: Path, size: tuple[float, float] = (5.5, 3.4)) -> None:
    """Draw a chart to a file in the colors of a light page, with a legend if its lines have labels.

    Args:
        draw: Draws on the axes.
        path: The file; its ending is the format.
        size: Width and height in inches.
    """
    with default_style(_settings(LIGHT_TEXT, LIGHT_LINE, LIGHT_SERIES)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
        write_atomic(path, partial(figure.savefig, format=path.suffix[1:].lower(), dpi=200))


def _settings(text: str, line: str, series: Sequence[str]) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "plrc",
        "font.size": 9,
        "text.color": text,
        "axes.labelcolor": text,
        "xtick.color": text,
        "ytick.color": text,
        "axes.edgecolor": line,
        "grid.color": line,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=series),
    }


def label_steps(axes: Axes, label: str) -> None:
    """Label the horizontal axis, which counts steps."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(label)


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Reduce a line to at most `MAX_POINTS` points, each of them the mean of its neighbors.

    A peak is lowered by that, but never lost between two points.
    """
    if len(steps) <= MAX_POINTS:
        return list(steps), list(values)
    return _bin_means(steps), _bin_means(values)


def _bin_means(values: Sequence[float]) -> list[float]:
    bins = np.array_split(np.asarray(values, dtype=np.float64), MAX_POINTS)
    return [float(part.mean()) for part in bins]
