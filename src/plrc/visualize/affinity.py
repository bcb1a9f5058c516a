"""Affinity figures: which places of an image have features like those of a marked point.

Shapes: H x W pixels of an image, C channels, h x w places of the feature grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from plrc.geometry import sample
from plrc.visualize.figures import (
    HEAT_MAP,
    default_style,
    fitted_tile,
    mark_point,
    show_image,
    tile_grid,
    write_caption,
)

Point = tuple[float, float]
"""(x, y) as shares of an image's width and height."""

_TILE = 192  # pixels of a tile's longer side
_FOOTER = 40  # pixels for the color key
_FLAT = 1e-5  # affinities that differ by less are shown as equal


@dataclass(frozen=True)
class AffinityRow:
    """A row of an affinity figure.

    Attributes:
        image: uint8 [H, W, 3].
        point: The marked point.
        affinities: Name of a network -> cosines [h, w] of all places with the point.
    """

    image: NDArray[np.uint8]
    point: Point
    affinities: Mapping[str, Tensor]


@torch.no_grad()
def affinity_map(features: Tensor, point: Point) -> Tensor:
    """Compute the cosine of the feature at a point with the feature at every place.

    Args:
        features: [C, h, w], of any length.
        point: (x, y) in [0, 1]; the feature there is read bilinearly.

    Returns:
        Cosines [h, w].

    Examples:
        >>> affinity_map(torch.ones(8, 4, 6), (0.5, 0.5)).shape
        torch.Size([4, 6])
    """
    features = features.detach().float().cpu()
    query = sample(features[None], torch.tensor([[point]], dtype=torch.float32))[0, 0]
    return torch.einsum("c,chw->hw", F.normalize(query, dim=0), F.normalize(features, dim=0))


def affinity_rows(
    image: NDArray[np.uint8], features: Mapping[str, Tensor], points: Sequence[Point]
) -> list[AffinityRow]:
    """Compute the rows of an affinity figure, one for each point.

    Args:
        image: uint8 [H, W, 3].
        features: Name of a network -> [C, h, w].
        points: The points to mark.

    Raises:
        ValueError: The image is not uint8 RGB, a point lies outside of it, or there are no features or points.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if not features or not points:
        raise ValueError("an affinity figure needs features of at least one network and at least one point")
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"points must be shares of the image's sides, 0 to 1, got ({x}, {y})")
    rows = []
    for point in points:
        affinities = {name: affinity_map(grid, point) for name, grid in features.items()}
        rows.append(AffinityRow(image, point, affinities))
    return rows


def affinity_figure(rows: Sequence[AffinityRow]) -> Figure:
    """Draw a row of tiles for each marked point: the image, then a heat map for each network.

    Each heat map runs from its own lowest to its own highest cosine, which are written below it: a map that looks sharp
    although it spans 0.98 to 1.00 shows features that hardly differ.

    Examples:
        >>> image = np.zeros((64, 64, 3), np.uint8)
        >>> rows = affinity_rows(image, {"random": torch.rand(8, 16, 16)}, [(0.5, 0.5)])
        >>> save_figure(affinity_figure(rows), "affinity.png")
    """
    columns = 1 + max(len(row.affinities) for row in rows)
    sizes = np.array([fitted_tile(row.image, _TILE) for row in rows])
    width, height = sizes.max(axis=0).tolist()
    with default_style():
        figure, axes = tile_grid(len(rows), columns, (width, height), caption_lines=2, footer=_FOOTER)
        for row, tiles in zip(rows, axes, strict=True):
            show_image(tiles[0], row.image)
            mark_point(tiles[0], row.point)
            write_caption(tiles[0], "image")
            for tile, (name, cosines) in zip(tiles[1:], row.affinities.items(), strict=False):
                low = float(cosines.min())
                high = float(cosines.max())
                shown_low = low if high - low > _FLAT else high - 1
                values = cosines.numpy()
                show_image(tile, values, "bilinear", cmap=HEAT_MAP, vmin=shown_low, vmax=high)
                tile.set_box_aspect(row.image.shape[0] / row.image.shape[1])
                mark_point(tile, row.point)
                write_caption(tile, name, f"cosine {low:.2f} to {high:.2f}")
        _draw_key(figure, axes[-1, 0].get_position().x0)
    return figure


def _draw_key(figure: Figure, left: float) -> None:
    """Draw the color key below the tiles."""
    width, height = figure.bbox.size
    key = figure.add_axes((left, 20 / height, 120 / width, 10 / height))
    key.imshow(np.arange(256)[None], cmap=HEAT_MAP, aspect="auto")
    key.set_axis_off()
    text = "low to high cosine with the marked point,\neach map from its own lowest to its own highest value"
    key.text(1.06, 0.5, text, transform=key.transAxes, verticalalignment="center")
