"""Which crops of an image become its views, and how a crop becomes pixels.

Policy and transform are separate: `draw_views` turns random numbers into `View` objects; `render` and `View.map` are
functions of a `View` alone, so that pixels, points and their inverses follow the same crop.

Shapes: H x W the decoded image in pixels, S the side of a rendered view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from plrc import geometry
from plrc.config import ViewConfig

QUERY, REFERENCE, MATCH = 0, 1, 2
"""Positions of A, C and B in the tuple of views (METHOD section 2)."""

_TRIES = 10  # draws of a crop's shape before the centered fallback, as in the usual random-resized-crop recipe


@dataclass(frozen=True)
class View:
    """A crop of an image.

    Attributes:
        left: First column, in pixels of the decoded image.
        top: First row.
        width: Columns.
        height: Rows.
        image_width: Columns of the image.
        image_height: Rows of the image.
        flip: Whether the view is mirrored left to right.
    """

    left: int
    top: int
    width: int
    height: int
    image_width: int
    image_height: int
    flip: bool

    @property
    def box(self) -> geometry.Box:
        """The crop in the image frame, as shares of the image's width and height."""
        return (
            self.left / self.image_width,
            self.top / self.image_height,
            (self.left + self.width) / self.image_width,
            (self.top + self.height) / self.image_height,
        )

    @property
    def map(self) -> geometry.Map:
        """The map from the view to the image; see `geometry`."""
        return geometry.crop_map(self.box, self.flip)


def draw_views(rng: np.random.Generator, height: int, width: int, config: ViewConfig, match: bool) -> tuple[View, ...]:
    """Draw the views of an image. METHOD section 2.

    A and C are independent random-resized-crops. B comes from the same distribution, drawn until its overlap with A
    reaches `config.overlap`; after `config.overlap_tries` draws it is A's crop with a flip of its own. B is drawn last
    and changes neither A nor C.

    Args:
        rng: Source of the random numbers.
        height: Rows of the image.
        width: Columns of the image.
        config: The settings of views.
        match: Whether B is drawn.

    Returns:
        (A, C) or, with `match`, (A, C, B).
    """
    pair = _crops(rng, 2, height, width, config)
    flips = rng.random(3) < config.flip_prob
    chosen = [pair[0], pair[1]]
    if match:
        candidates = _crops(rng, config.overlap_tries, height, width, config)
        enough = _overlaps(pair[0], candidates) >= config.overlap
        chosen.append(candidates[enough.argmax()] if enough.any() else pair[0])
    views = []
    for crop, flip in zip(chosen, flips.tolist(), strict=False):
        left, top, crop_width, crop_height = crop.tolist()
        views.append(View(left, top, crop_width, crop_height, width, height, flip))
    return tuple(views)


def shorter_side(config: ViewConfig) -> int:
    """Return the shorter side in pixels at which the smallest crop of an image has as many pixels as its view.

    0 means full size: tiles are cut from images as they are.
    """
    if config.tiles:
        return 0
    return math.ceil(config.size / math.sqrt(config.scale[0] * min(config.ratio[0], 1 / config.ratio[1])))


def render(image: Tensor, view: View, size: int) -> Tensor:
    """Crop and resize an image, antialiased bilinear.

    Args:
        image: uint8 [C, H, W]. One stored as rows of pixels (a permuted [H, W, C], as decoders give it) is resized
            faster than one stored as planes, with the same result.
        view: The crop.
        size: S.

    Returns:
        uint8 [C, S, S].
    """
    crop = image[None, :, view.top : view.top + view.height, view.left : view.left + view.width]
    pixels = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return pixels.flip(-1) if view.flip else pixels


def _crops(rng: np.random.Generator, count: int, height: int, width: int, config: ViewConfig) -> np.ndarray:
    """Draw random-resized-crops as whole numbers [count, 4]: left, top, width, height.

    The area is uniform and the aspect ratio log-uniform. The first of ten draws that fits into the image is used, or
    the largest centered crop.
    """
    draws = rng.random((count, 2 * _TRIES + 2))
    share = config.scale[0] + (config.scale[1] - config.scale[0]) * draws[:, :_TRIES]
    low = math.log(config.ratio[0])
    high = math.log(config.ratio[1])
    root_aspect = np.exp(0.5 * (low + (high - low) * draws[:, _TRIES:-2]))
    side = np.sqrt(share * (height * width))
    widths = np.rint(side * root_aspect)
    heights = np.rint(side / root_aspect)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    row = np.arange(count)
    first = fits.argmax(axis=1)
    crops = np.empty((count, 4), dtype=np.int64)
    crops[:, 2] = widths[row, first]
    crops[:, 3] = heights[row, first]
    crops[:, 0] = draws[:, -2] * (width - crops[:, 2] + 1)
    crops[:, 1] = draws[:, -1] * (height - crops[:, 3] + 1)
    crops[~fits[row, first]] = _largest_centered(height, width, config)
    return crops


def _largest_centered(height: int, width: int, config: ViewConfig) -> tuple[int, int, int, int]:
    """The largest centered crop of an allowed aspect ratio: left, top, width, height (at least one pixel each)."""
    crop_width = max(1, min(width, round(height * config.ratio[1])))
    crop_height = max(1, min(height, round(width / config.ratio[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _overlaps(crop: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Common area / larger area of one crop [4] and others [count, 4], in whole pixels: [count]. METHOD section 2."""
    start = np.maximum(crop[:2], others[:, :2])
    end = np.minimum(crop[:2] + crop[2:], others[:, :2] + others[:, 2:])
    both = np.clip(end - start, 0, None).prod(axis=1)
    larger = np.maximum(crop[2:].prod(), others[:, 2:].prod(axis=1))
    shares: np.ndarray = both / larger
    return shares
