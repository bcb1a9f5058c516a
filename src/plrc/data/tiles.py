"""The part of a large image, at its own scale, that stands for the image: `views.tiles`.

A tile is cut before anything else happens: views, regions and a frozen teacher know only the tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plrc import rng
from plrc.config import RegionConfig
from plrc.geometry import Map, cell_centers, crop_map, look_up, to_image

WHOLE: Map = (1.0, 1.0, 0.0, 0.0)
"""The map of an image that is used whole."""


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        image: Its pixels, uint8 [C, H, W].
        map: The map from the tile to the image; see `geometry`.
    """

    image: Tensor
    map: Map


def draw_tile(image: Tensor, side: int, seed: int, epoch: int, index: int) -> Tile:
    """Cut a random tile out of an image.

    Args:
        image: uint8 [C, H, W].
        side: Rows and columns of the tile; an image with fewer rows or columns keeps those that it has. 0: no tile is
            cut.
        seed: Seed of the run.
        epoch: Number of the epoch.
        index: Index of the image.

    Returns:
        The tile. All places are equally likely.
    """
    height, width = image.shape[1:]
    rows = min(side, height)
    columns = min(side, width)
    if side == 0 or (rows, columns) == (height, width):
        return Tile(image, WHOLE)
    left_draw, top_draw = rng.generator(seed, "tiles", epoch, index).random(2)
    left = int(left_draw * (width - columns + 1))
    top = int(top_draw * (height - rows + 1))
    box = (left / width, top / height, (left + columns) / width, (top + rows) / height)
    return Tile(image[:, top : top + rows, left : left + columns], crop_map(box, flip=False))


def cut_regions(ids: Tensor, tile: Map, config: RegionConfig) -> Tensor:
    """Return the regions of a tile.

    Grids, random cells and random boxes divide the tile as they would divide an image. Segments and id maps show the
    content of the image, so that the part that belongs to the tile is cut out.

    Args:
        ids: Region ids of the image, int16 [h, w].
        tile: The map from the tile to the image.
        config: The settings of regions.

    Returns:
        int16 [h, w].
    """
    if tile == WHOLE or config.source in ("grid", "voronoi", "boxes"):
        return ids
    height, width = ids.shape
    places = to_image(cell_centers(height, width)[None], torch.tensor([tile]))
    return look_up(ids[None], places).to(ids.dtype).reshape(height, width)
