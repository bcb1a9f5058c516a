"""Figures of what a run is trained on: regions, the crops of a sample, the points that are compared, a batch.

Shapes: V views (A, C and, where the run needs it, B), S pixels of a view's side, H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray
from torch import Tensor

from plrc.config import Config
from plrc.data.channels import shown_pixels
from plrc.data.loader import Batch, ViewDataset
from plrc.data.manifest import images_from_manifest, read_manifest
from plrc.data.photometric import augment_views
from plrc.data.points import contrast_points, match_points
from plrc.data.sampler import StepSampler
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.errors import DataError, PlrcError
from plrc.text import printable
from plrc.visualize.figures import default_style, show_image, tile_grid
from plrc.visualize.regions import TILE, region_colors, tinted_regions

_BATCH = 8  # images of the batch that are shown
_MATCHES = 14  # matched points of A and B
_POINTS = 48  # points of A and of C
_VIEW_NAMES = {QUERY: "A", REFERENCE: "C", MATCH: "B"}
_VIEW_COLORS = {QUERY: "#0072b2", REFERENCE: "#009e73", MATCH: "#d55e00"}  # distinct for color-blind readers
_VIEW_CORNERS = {QUERY: (0, 0), REFERENCE: (1, 0), MATCH: (0, 1)}  # where its name is: (right, bottom)
_VIEW_TILES = {REFERENCE: (0, 1), QUERY: (1, 0), MATCH: (1, 1)}  # row and column; the image is at (0, 0)
_BLACK_OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=1.8, foreground="black")]
_WHITE_OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=4, foreground="white")]


@dataclass(frozen=True)
class RunSamples:
    """Figures of the first samples of a run.

    Attributes:
        samples: (name of the image, figure) of each sample.
        batch: Figure of the first batch; None if there are no samples.
        regions: How the run makes its regions, such as "grid 4 x 4".
        has_match_view: Whether the run renders view B.
        note: Why there are no figures; may be empty.
    """

    samples: list[tuple[str, Figure]] = field(default_factory=list)
    batch: Figure | None = None
    regions: str = ""
    has_match_view: bool = False
    note: str = ""


def run_samples(run: Path, config: Config, count: int) -> RunSamples:
    """Draw the first `count` readable samples of a run and its first batch, in the order of the training.

    Where the run's images are no longer available, the result is a note that says so.
    """
    if count == 0:
        return RunSamples()
    try:
        images, train, _ = images_from_manifest(read_manifest(run / "manifest.json"))
        dataset = ViewDataset(images, train, config.with_values({"run.cache": ""}))
        optim = config.optim
        steps = StepSampler(len(train), optim.batch_size, optim.gradient_accumulation_steps, config.seed, 0, 1)
        samples: list[tuple[int, Batch]] = []
        for epoch, index in next(iter(steps)):
            sample = dataset.load_sample(epoch, index)
            if isinstance(sample, Batch):
                samples.append((int(train[index]), sample))
            if len(samples) == max(count, _BATCH):
                break
        if not samples:
            raise DataError("none of the images of its first batch can be read")
        figures = []
        for position, sample in samples[:count]:
            decoded = images.decode(position, config.data, 0 if config.views.tiles else TILE)
            image = shown_pixels(_tile(decoded, sample))
            figures.append((printable(images.names[position]), sample_figure(sample, image, config)))
    except PlrcError as error:
        return RunSamples(note=f"The regions and views of this run cannot be drawn here: {error}")
    batch = batch_figure([sample for _, sample in samples[:_BATCH]], config)
    return RunSamples(figures, batch, _describe_regions(config), config.objectives.needs_match_view)


def batch_figure(samples: Sequence[Batch], config: Config) -> Figure:
    """Draw the augmented views of samples of one image each: a column for each sample, a row for each view."""
    columns = [_augmented_views(sample, config) for sample in samples]
    side = min(TILE, 2 * TILE // len(columns))
    with default_style():
        figure, axes = tile_grid(len(columns[0]), len(columns), (side, side), gap=2)
        for column, views in enumerate(columns):
            for row, view in enumerate(views):
                show_image(axes[row, column], view)
    return figure


def sample_figure(sample: Batch, image: NDArray[np.uint8], config: Config) -> Figure:
    """Draw two rows of two tiles: the image with its regions and crops, and crop C; crop A and crop B.

    Args:
        sample: A batch of one image.
        image: The image itself or the tile of it, uint8 [H, W, 3].
        config: The run's configuration.
    """
    with default_style({"font.size": 11}):
        figure, axes = tile_grid(2, 2, (TILE, TILE))
        show_image(axes[0, 0], tinted_regions(image, sample.regions[0]), "nearest")
        view_axes = {}
        for view, pixels in enumerate(_augmented_views(sample, config)):
            tile = axes[_VIEW_TILES[view]]
            show_image(tile, pixels)
            _outline_view(axes[0, 0], sample.maps[view, 0].tolist(), view)
            _outline_view(tile, (1, 1, 0, 0), view)
            view_axes[view] = tile
        _draw_contrast_points(view_axes, sample)
        if MATCH in view_axes:
            _draw_matches(figure, view_axes, sample)
    return figure


def _tile(image: Tensor, sample: Batch) -> Tensor:
    """The tile of an image [C, H, W] that the sample was made from; the whole image without `views.tiles`."""
    height, width = image.shape[1:]
    share_x, share_y, left, top = sample.tiles[0].tolist()
    columns = slice(round(left * width), round((left + share_x) * width))
    rows = slice(round(top * height), round((top + share_y) * height))
    return image[:, rows, columns]


def _outline_view(axes: Axes, crop: Sequence[float], view: int) -> None:
    """Draw the outline of a view and its name, on a plate of its color in the view's own corner.

    Args:
        axes: A tile that shows the image or the view itself.
        crop: The map (sx, sy, ox, oy) from the view to what is shown.
        view: The view.
    """
    scale_x, scale_y, start_x, top = crop
    left = min(start_x, start_x + scale_x)
    color = _VIEW_COLORS[view]
    outline = Rectangle((left, top), abs(scale_x), scale_y, fill=False, edgecolor=color, linewidth=2.5)
    outline.set_path_effects(_WHITE_OUTLINE)
    axes.add_patch(outline)
    corner_x, corner_y = _VIEW_CORNERS[view]
    axes.annotate(
        _VIEW_NAMES[view] + (" mirrored" if scale_x < 0 else ""),
        (left + corner_x * abs(scale_x), top + corner_y * scale_y),
        xytext=(4 - 8 * corner_x, 8 * corner_y - 4),
        textcoords="offset points",
        horizontalalignment="right" if corner_x else "left",
        verticalalignment="bottom" if corner_y else "top",
        color="white",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 3},
        zorder=4,
    )


def _draw_contrast_points(view_axes: dict[int, Axes], sample: Batch) -> None:
    """Draw points of the regions that A and C share, in their regions' colors."""
    count = sample.regions.shape[1] * sample.regions.shape[2]
    maps = sample.maps
    points = contrast_points(sample.regions, count, maps[QUERY], maps[REFERENCE], sample.contrast_uniform, _POINTS)
    ids = points.query_regions[0].numpy()  # those of `key` are the same
    colors = region_colors(int(sample.regions.max()) + 1) / 255
    for view, places in ((QUERY, points.query[0]), (REFERENCE, points.key[0])):
        x, y = places.numpy()[ids >= 0].T
        view_axes[view].scatter(x, y, s=28, c=colors[ids[ids >= 0]], edgecolors="black", zorder=3)


def _draw_matches(figure: Figure, view_axes: dict[int, Axes], sample: Batch) -> None:
    """Join the same physical points in A and B by lines."""
    matches = match_points(
        sample.maps[QUERY], sample.maps[MATCH], sample.match_uniform, sample.match_uniform.shape[1] // 2
    )
    valid = matches.valid[0].nonzero()[:_MATCHES, 0]
    for start, end in zip(matches.student[0, valid].tolist(), matches.teacher[0, valid].tolist(), strict=True):
        line = ConnectionPatch(
            start,
            end,
            coordsA=view_axes[QUERY].transData,
            coordsB=view_axes[MATCH].transData,
            color="white",
            linewidth=0.7,
            path_effects=_BLACK_OUTLINE,
        )
        figure.add_artist(line)
    for view, places in ((QUERY, matches.student), (MATCH, matches.teacher)):
        x, y = places[0, valid].numpy().T
        view_axes[view].scatter(x, y, s=14, c="white", edgecolors="black", zorder=3)


def _augmented_views(sample: Batch, config: Config) -> list[NDArray[np.uint8]]:
    """Return the views of one image as the network sees them: V arrays [S, S, 3]."""
    statistics = config.data.pixels
    views = augment_views(sample.images, sample.color_uniform, config.views, statistics)[:, 0]
    mean = torch.tensor(statistics.mean)[:, None, None]
    std = torch.tensor(statistics.std)[:, None, None]
    pixels: Tensor = ((views * std + mean) * 255).round().clamp(0, 255).byte()
    return [shown_pixels(view) for view in pixels]


def _describe_regions(config: Config) -> str:
    regions = config.regions
    description: str = regions.source
    if regions.source == "grid":
        description += f" {regions.grid} x {regions.grid}"
    elif regions.source in ("voronoi", "slic"):
        description += f" {regions.count}"
    if regions.noisy:
        description += ", with noise"
    return description
