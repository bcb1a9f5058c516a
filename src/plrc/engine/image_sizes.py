"""How large the views show the images: small objects of large images vanish in them."""

from __future__ import annotations

import math

import numpy as np

from plrc.config import Config, ViewConfig
from plrc.data.sources import ImageList, sample_headers

SMALL = 8.0
"""Side in pixels: a smaller object is a point or two of the feature maps."""

_REMARKED_SCALE = 0.25  # smallest enlargement without a remark


def view_scale(views: ViewConfig, height: int, width: int) -> float:
    """Return how much an image is enlarged in a view whose crop has the median area.

    Args:
        views: The settings of the views.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    if views.tiles:
        height = min(height, views.tiles)
        width = min(width, views.tiles)
    median_area = sum(views.scale) / 2 * height * width
    return views.size / math.sqrt(median_area)


def native_tiles(views: ViewConfig) -> int:
    """Return the `views.tiles` whose crop of the median area is shown at its own size."""
    return round(views.size / math.sqrt(sum(views.scale) / 2))


def describe_view_scale(config: Config, images: ImageList) -> list[str]:
    """Return a remark on `views.tiles`, and one if the views show typical images much smaller than they are.

    Args:
        config: The settings of a run.
        images: Its images, of which a few headers are read; those of shards are not looked at.
    """
    sizes = [(header.height, header.width) for header in sample_headers(images, config.data.channels)]
    if not sizes:
        return []
    remarks: list[str] = []
    tiles = config.views.tiles
    if tiles:
        whole = sum(height <= tiles and width <= tiles for height, width in sizes)
        remarks.append(
            f"views are cut from tiles of {tiles} x {tiles} px; {whole} of {len(sizes)} images that were looked at are "
            "not larger and are used whole"
        )
    scale = float(np.median([view_scale(config.views, height, width) for height, width in sizes]))
    if scale > _REMARKED_SCALE:
        return remarks
    height, width = np.median(sizes, axis=0).astype(int)
    sentence = (
        f"views of {config.views.size} px show the images ({width} x {height} px, the median of {len(sizes)}) at "
        f"{scale:.2g} of their size: an object with a side below {SMALL / scale:.0f} px has less than {SMALL:g} px in "
        f"a view; for smaller objects, set views.tiles ({native_tiles(config.views)} shows objects at their own size) "
        "or raise views.size"
    )
    return [*remarks, sentence]
