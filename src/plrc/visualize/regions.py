"""Region preview: images with their regions in color and their boundaries drawn.

Shapes: H x W pixels of an image, h x w its id map, T x S pixels of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from plrc.config import Config
from plrc.data.channels import shown_pixels
from plrc.data.id_maps import RegionError, map_path
from plrc.data.image_errors import DecodeError
from plrc.data.regions import Regions
from plrc.data.sources import ImageList
from plrc.errors import ConfigError, DataError
from plrc.files import write_atomic
from plrc.geometry import cell_centers, look_up
from plrc.progress import OnProgress, ignore_progress
from plrc.visualize.figures import default_style, fitted_tile, save_figure, show_image, tile_grid, write_caption

TILE = 256
"""Pixels of the longer side of a tinted image."""
_TINT = 0.35  # share of the region's color
_HUE_STEP = (math.sqrt(5) - 1) / 2  # from a region to the next, as a share of the color circle


@dataclass(frozen=True)
class PreviewReport:
    """The result of a preview.

    Attributes:
        out: The file or folder that was written.
        drawn: Number of images that were drawn.
        left_out: (name, reason) of the other images.
    """

    out: Path
    drawn: int
    left_out: list[tuple[str, str]]

    def table(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{self.drawn} images drawn: {self.out}"]
        lines += [f"left out {name}: {reason}" for name, reason in self.left_out]
        return "\n".join(lines)


def save_preview(
    config: Config,
    images: ImageList,
    positions: Sequence[int],
    out: Path,
    on_progress: OnProgress = ignore_progress,
) -> PreviewReport:
    """Draw the regions that the settings make for some images.

    Args:
        config: The settings `data`, `regions` and `seed`.
        images: All images.
        positions: Which of them to draw.
        out: A .png or .jpg for one sheet of all of them, or a folder for NAME.regions.png of each.
        on_progress: Called after each image.

    Raises:
        ConfigError: `out` has another ending.
        DataError: No image can be drawn.
    """
    one_file = not out.is_dir() and out.suffix != ""
    if one_file and out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--out is {out}; let it end in .png or .jpg, or name a folder without an ending")
    regions = Regions(config, images)
    tiles: list[tuple[str, NDArray[np.uint8]]] = []
    left_out: list[tuple[str, str]] = []
    for done, position in enumerate(positions, start=1):
        name = images.names[position]
        try:
            ids = regions(position)
            image = images.decode(position, config.data, TILE)
        except (RegionError, DecodeError) as error:
            left_out.append((name, error.reason))
        else:
            tiles.append((name, tinted_regions(shown_pixels(image), ids)))
        on_progress(done, len(positions))
    if not tiles:
        raise DataError(f"none of the {len(positions)} images can be drawn; the first, {': '.join(left_out[0])}")
    if one_file:
        save_figure(region_sheet(tiles), out)
    else:
        for name, tile in tiles:
            path = map_path(out, name).with_suffix(".regions.png")
            write_atomic(path, partial(Image.fromarray(tile).save, format="PNG"))
    return PreviewReport(out, len(tiles), left_out)


def tinted_regions(image: NDArray[np.uint8], regions: Tensor) -> NDArray[np.uint8]:
    """Tint an image by its regions and draw their boundaries, one white pixel wide.

    Args:
        image: uint8 [H, W, 3].
        regions: Ids [h, w]; places without a region (-1) become dark and gray.

    Returns:
        uint8 [T, S, 3], whose longer side is `TILE`.
    """
    width, height = fitted_tile(image, TILE)
    enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(enlarged, dtype=np.float32)
    ids = look_up(regions[None], cell_centers(height, width)[None])[0].reshape(height, width).numpy()
    colors = region_colors(int(ids.max()) + 1)
    unlabelled = ids < 0
    tinted = pixels.copy()
    tinted[~unlabelled] = (1 - _TINT) * pixels[~unlabelled] + _TINT * colors[ids[~unlabelled]]
    tinted[unlabelled] = pixels[unlabelled].mean(axis=1, keepdims=True) / 2
    boundary = np.zeros(ids.shape, dtype=bool)
    boundary[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    boundary[1:] |= ids[1:] != ids[:-1]
    tinted[boundary] = 255
    return tinted.astype(np.uint8)


def region_colors(count: int) -> NDArray[np.uint8]:
    """Return a saturated color for each of `count` regions, far apart for neighboring ids: [count, 3]."""
    hsv = np.ones((count, 3))
    hsv[:, 0] = np.arange(count) * _HUE_STEP % 1
    return np.asarray(np.rint(255 * hsv_to_rgb(hsv)), dtype=np.uint8)


def region_sheet(tiles: Sequence[tuple[str, NDArray[np.uint8]]]) -> Figure:
    """Draw named tiles [T, S, 3] (at least one) with their names below, in about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    with default_style():
        figure, axes = tile_grid(rows, columns, (TILE, TILE), caption_lines=1)
        for (name, tile), place in zip(tiles, axes.flat, strict=False):
            show_image(place, tile, "nearest")
            write_caption(place, name)
    return figure
