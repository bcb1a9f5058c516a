"""Figures of image tiles, laid out to the pixel: drawn by Matplotlib without pyplot, in Matplotlib's default style.

Coordinates inside a tile are shares of its sides: (0, 0) is the top left corner, (1, 1) the bottom right corner.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox, TransformedBbox
from numpy.typing import NDArray

from plrc.files import write_atomic
from plrc.text import printable

HEAT_MAP = "viridis"
"""The color map of affinities: its lightness rises evenly, and color-blind readers can read it."""
DPI = 100
INK = "#202226"
PAPER = "#fafaf8"
_CHARACTER = 6.5  # pixels: mean width of a character of a caption
_LINE = 14  # pixels: height of a line of a caption


@contextmanager
def default_style(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Set Matplotlib's default style, with all text taken literally; the caller's own style comes back afterwards.

    Args:
        settings: Names and values of rcParams that differ from the defaults.
    """
    style = {"font.size": 8, "text.parse_math": False, "text.color": INK, **(settings or {})}
    with warnings.catch_warnings(), matplotlib.style.context(["default", style]):
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


def tile_grid(
    rows: int, columns: int, tile: tuple[int, int], caption_lines: int = 0, footer: int = 0, gap: int = 8
) -> tuple[Figure, NDArray[Any]]:
    """Create a figure with a grid of empty tiles; call it inside `default_style`.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        tile: (width, height) of a tile in pixels.
        caption_lines: Lines of text below each tile; without captions, the background is transparent.
        footer: Pixels below the grid.
        gap: Pixels between and around the tiles.

    Returns:
        The figure, and its axes as an array [rows, columns].
    """
    caption = caption_lines * _LINE
    width = columns * (tile[0] + gap) + gap
    height = rows * (tile[1] + caption + gap) + gap + footer
    background = PAPER if caption_lines else "none"
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=background)
    layout = {
        "left": gap / width,
        "right": 1 - gap / width,
        "top": 1 - gap / height,
        "bottom": (gap + caption + footer) / height,
        "wspace": gap / tile[0],
        "hspace": (gap + caption) / tile[1],
    }
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=layout)
    for place in axes.flat:
        place.set_axis_off()
    return figure, axes


def show_image(axes: Axes, pixels: NDArray[Any], interpolation: str = "bicubic", **style: Any) -> None:
    """Show an image in the top left of a tile, as large as fits.

    Args:
        axes: The tile.
        pixels: [H, W, 3] uint8, or [H, W] values that `style` maps to colors.
        interpolation: How Matplotlib enlarges it; "nearest" leaves pixels as they are.
        style: Passed on to `Axes.imshow`.
    """
    axes.imshow(pixels, extent=(0, 1, 1, 0), aspect="auto", interpolation=interpolation, **style)
    axes.set(xlim=(0, 1), ylim=(1, 0), anchor="NW", box_aspect=pixels.shape[0] / pixels.shape[1])


def write_caption(axes: Axes, *lines: str) -> None:
    """Write lines below a tile, at most as wide as the tile; long lines lose their beginning."""
    most = int(axes.bbox.width / _CHARACTER)
    for number, line in enumerate(lines):
        line = printable(line)
        if len(line) > most:
            line = f"…{line[1 - most :]}"
        below = (0, -9.5 - number * 0.72 * _LINE)  # points
        text = axes.annotate(line, (0, 0), below, xycoords="axes fraction", textcoords="offset points")
        text.set_clip_box(TransformedBbox(Bbox([[0, -1], [1, 0]]), axes.transAxes))
        text.set_clip_on(True)


def mark_point(axes: Axes, point: tuple[float, float]) -> None:
    """Draw a white ring with a black outline around a point (x, y)."""
    outline = withStroke(linewidth=4, foreground="black")
    axes.plot(*point, "o", ms=11, mfc="none", mec="white", mew=2, path_effects=[outline])


def fitted_tile(pixels: NDArray[Any], longest: int) -> tuple[int, int]:
    """Return (width, height) of a tile for an image [H, W, ...] whose longer side becomes `longest` pixels."""
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def heat_colors() -> NDArray[np.uint8]:
    """Return the 256 colors of `HEAT_MAP`, lowest first: [256, 3]."""
    colors = matplotlib.colormaps[HEAT_MAP](np.arange(256), bytes=True)
    return np.ascontiguousarray(colors[:, :3])


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, whose ending is the format; the file appears whole or not at all."""
    path = Path(path)
    with default_style():
        write_atomic(path, partial(figure.savefig, format=path.suffix[1:].lower()))
