"""Which crops of an image become its views, and how a crop becomes pixels.

Layer 1: imports config and geometry. Policy and transform are apart: `draw_views` turns random numbers into `View`
objects, which map image, points and their inverses alike; `render` and `View.map` are functions of a `View` alone.

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

_TRIES = 10  # draws of a crop's shape before the centred fallback, as in the usual random-resized-crop recipe


@dataclass(frozen=True)
class View:
    """A crop in whole pixels of the decoded image, mirrored left to right if `flip`."""

    left: int
    top: int
    width: int
    height: int
    image_width: int
    image_height: int
    flip: bool

    @property
    def box(self) -> geometry.Box:
        """The crop in the image frame, in shares of its width and height."""
        return (
            self.left / self.image_width,
            self.top / self.image_height,
            (self.left + self.width) / self.image_width,
            (self.top + self.height) / self.image_height,
        )

    @property
    def map(self) -> geometry.Map:
        """The map view -> image, see geometry."""
        return geometry.crop_map(self.box, self.flip)


def draw_views(rng: np.random.Generator, height: int, width: int, config: ViewConfig, match: bool) -> tuple[View, ...]:
    """The views (A, C) of an H x W image or, with `match`, (A, C, B); B is drawn last and changes neither A nor C.

    A and C are independent random-resized-crops. B comes from the same distribution, drawn until its overlap with A
    reaches `config.overlap`; after `config.overlap_tries` draws it is A's crop with a flip of its
    own. METHOD section 2.
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
    """Shorter side in pixels from which on even the smallest crop of an image has as many pixels as its view."""
    return math.ceil(config.size / math.sqrt(config.scale[0] * min(config.ratio[0], 1 / config.ratio[1])))


def render(image: Tensor, view: View, size: int) -> Tensor:
    """The pixels of `view`: uint8 [3, H, W] -> uint8 [3, S, S], antialiased bilinear.

    The crop is a view of the image's memory. An image stored as rows of RGB pixels (a permuted [H, W, 3], which is
    what decoders give) is resized twice as fast as one stored as three planes; the result is the same.
    """
    crop = image[None, :, view.top : view.top + view.height, view.left : view.left + view.width]
    pixels = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return pixels.flip(-1) if view.flip else pixels


def _crops(rng: np.random.Generator, count: int, height: int, width: int, config: ViewConfig) -> np.ndarray:
    """`count` random-resized-crops as whole numbers [count, 4]: left, top, width, height.

    Area uniform, aspect log-uniform; the first of ten draws that fits into the image counts, else the fallback.
    """
    draws = rng.random((count, 2 * _TRIES + 2))
    share = config.scale[0] + (config.scale[1] - config.scale[0]) * draws[:, :_TRIES]
    low, high = math.log(config.ratio[0]), math.log(config.ratio[1])
    root_aspect = np.exp(0.5 * (low + (high - low) * draws[:, _TRIES:-2]))
    side = np.sqrt(share * (height * width))
    widths, heights = np.rint(side * root_aspect), np.rint(side / root_aspect)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    row, first = np.arange(count), fits.argmax(axis=1)
    largest = _largest_centred(height, width, config)
    crops = np.empty((count, 4), dtype=np.int64)
    crops[:, 2], crops[:, 3] = widths[row, first], heights[row, first]
    crops[:, 0] = draws[:, -2] * (width - crops[:, 2] + 1)
    crops[:, 1] = draws[:, -1] * (height - crops[:, 3] + 1)
    crops[~fits[row, first]] = largest
    return crops


def _largest_centred(height: int, width: int, config: ViewConfig) -> tuple[int, int, int, int]:
    """The largest centred crop whose aspect is allowed: left, top, width, height (at least one pixel each)."""
    crop_width = max(1, min(width, round(height * config.ratio[1])))
    crop_height = max(1, min(height, round(width / config.ratio[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _overlaps(crop: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Common area / larger area of one crop [4] and others [count, 4], in whole pixels: [count]. METHOD section 2."""
    start, end = np.maximum(crop[:2], others[:, :2]), np.minimum(crop[:2] + crop[2:], others[:, :2] + others[:, 2:])
    both = np.clip(end - start, 0, None).prod(axis=1)
    larger = np.maximum(crop[2:].prod(), others[:, 2:].prod(axis=1))
    shares: np.ndarray = both / larger
    return shares
