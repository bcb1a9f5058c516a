"""Affinity pictures: which places of an image have features like those of a marked point.

Layer 5; tensors in, Pillow images out; draws nothing from any model or data set itself.

Shapes: H x W the image, C channels, h x w the features' lattice, T x S the pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from plrc.errors import PlrcError
from plrc.geometry import sample

Point = tuple[float, float]

_TILE = 192  # pixels of a tile's longer side
_MARGIN, _GAP = 16, 10
_HEAD, _LINE = 24, 20  # heights of the column titles and of a caption
_PAPER, _INK, _FAINT = (250, 250, 248), (32, 34, 38), (104, 108, 114)
_KEY = 96  # width of the color key
_LEGEND = "cosine to the marked point"
_LEGEND_RANGE = "each tile from its own lowest to its own highest value (written below it)"


@torch.no_grad()
def affinity(features: Tensor, point: Point) -> Tensor:
    """Cosine of the feature at `point` (x, y in [0, 1]) with the feature at every position: [C, h, w] -> [h, w]."""
    features = features.detach().float().cpu()
    query = sample(features[None], torch.tensor([[point]], dtype=torch.float32))[0, 0]
    return torch.einsum("c,chw->hw", F.normalize(query, dim=0), F.normalize(features, dim=0))


def affinity_picture(image: NDArray[np.uint8], features: Mapping[str, Tensor], points: Sequence[Point]) -> Image.Image:
    """One row a query point: the image [H, W, 3] with the point marked, then a heat map for each of the named features.

    features: name -> [C, h, w]. points: (x, y) as shares of the image's sides. Heat is the cosine affinity, drawn by
    `heat_picture`. Every tile spans its own lowest to highest cosine, and both numbers stand below it: a map that looks
    sharp over a span of 0.98 to 1.00 says that the features hardly differ. Colours run from dark blue to light
    yellow with evenly rising lightness, readable for color-blind readers and in grey.
    Raises PlrcError for no points, no features, a point outside the image, or an image that is not uint8 RGB.
    """
    _check(image, features, points)
    return heat_picture(image, {name: [affinity(maps, p) for p in points] for name, maps in features.items()}, points)


def heat_picture(
    image: NDArray[np.uint8], heat: Mapping[str, Sequence[Tensor]], points: Sequence[Point]
) -> Image.Image:
    """`affinity_picture` from the affinities themselves: name -> one map [h, w] a point, upsampled bilinearly."""
    size = _tile_size(image)
    columns, rows = 1 + len(heat), len(points)
    width = 2 * _MARGIN + columns * size[0] + (columns - 1) * _GAP
    height = _MARGIN + _HEAD + rows * (size[1] + _LINE + _GAP) - _GAP + _MARGIN
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(["image", *heat]):
        _text(draw, (_MARGIN + column * (size[0] + _GAP), _MARGIN), title, 15, _INK, size[0])
    shown = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    for row, point in enumerate(points):
        y = _MARGIN + _HEAD + row * (size[1] + _LINE + _GAP)
        page.paste(_marked(shown, point), (_MARGIN, y))
        for column, maps in enumerate(heat.values(), start=1):
            x = _MARGIN + column * (size[0] + _GAP)
            values = maps[row]
            page.paste(_marked(_heat(values, size), point), (x, y))
            span = f"cosine {float(values.min()):.2f} to {float(values.max()):.2f}"
            _text(draw, (x, y + size[1] + 3), span, 12, _FAINT, size[0])
    return page


def save_affinities(
    path: str | Path,
    images: Sequence[NDArray[np.uint8]],
    features: Sequence[Mapping[str, Tensor]],
    points: Sequence[Sequence[Point]],
) -> None:
    """Write the pictures of several images, one below the other, with a color key, as PNG (or by the path's ending).

    images, features and points have one entry an image; see `affinity_picture`.
    """
    if not len(images) == len(features) == len(points) > 0:
        counts = f"{len(images)} images, {len(features)} features and {len(points)} lists of points"
        raise PlrcError(f"{counts} were given; give one of each per image")
    pictures = [affinity_picture(*entry) for entry in zip(images, features, points, strict=True)]
    pictures.append(_key(max(picture.width for picture in pictures)))
    page = Image.new("RGB", (pictures[-1].width, sum(picture.height for picture in pictures)), _PAPER)
    y = 0
    for picture in pictures:
        page.paste(picture, (0, y))
        y += picture.height
    page.save(path)


@lru_cache(maxsize=1)
def colour_table() -> NDArray[np.uint8]:
    """256 colors [256, 3]: a curve through OKLab (Ottosson 2020) from dark blue to light yellow.

    Lightness rises evenly; hue changes along blue to yellow, the axis that red-green color-blind readers see.
    """
    t = np.linspace(0, 1, 256)
    lightness, bulge = 0.20 + 0.74 * t, np.sin(np.pi * t)
    a, b = -0.01 - 0.05 * bulge, -0.10 + 0.25 * t - 0.02 * bulge
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(np.stack([long, medium, short], axis=1) @ to_rgb.T, 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * coded), dtype=np.uint8)


def _heat(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """Values [h, w] -> colors of a tile, lowest to highest; a tile of one value is drawn as the highest."""
    large = F.interpolate(values[None, None], (size[1], size[0]), mode="bilinear", align_corners=False)[0, 0]
    low, high = values.min(), values.max()
    share = (large - low) / (high - low) if high - low > 1e-5 else torch.ones_like(large)
    return Image.fromarray(colour_table()[(share * 255).round().long().clamp(0, 255).numpy()])


def _marked(tile: Image.Image, point: Point) -> Image.Image:
    """The tile with a ring around the point, visible on any ground."""
    marked = tile.copy()
    draw = ImageDraw.Draw(marked)
    x, y = point[0] * tile.width, point[1] * tile.height
    for radius, line, color in ((8, 4, (0, 0, 0)), (7, 2, (255, 255, 255))):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=line)
    return marked


def _key(width: int) -> Image.Image:
    """The color key that explains the heat, as wide as the page."""
    page = Image.new("RGB", (width, 2 * _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    bar = Image.fromarray(np.tile(colour_table()[None], (12, 1, 1))).resize((_KEY, 12), Image.Resampling.NEAREST)
    page.paste(bar, (_MARGIN, 2))
    x = _MARGIN + _KEY + _GAP
    _text(draw, (x, 0), f"low to high: {_LEGEND};", 12, _FAINT, width - x - _MARGIN)
    _text(draw, (_MARGIN, _LINE), _LEGEND_RANGE, 12, _FAINT, width - 2 * _MARGIN)
    return page


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int
) -> None:
    """One line, in smaller letters where it would be wider than `width`, shortened where that is not enough."""
    font = ImageFont.load_default(size)
    while draw.textlength(text, font) > width and size > 9:
        size -= 1
        font = ImageFont.load_default(size)
    while draw.textlength(text, font) > width and len(text) > 1:
        text = text[:-2] + "…"
    draw.text(at, text, fill=color, font=font)


def _tile_size(image: NDArray[np.uint8]) -> tuple[int, int]:
    """(width, height) of a tile that keeps the image's proportions."""
    height, width = image.shape[:2]
    scale = _TILE / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _check(image: NDArray[np.uint8], features: Mapping[str, Tensor], points: Sequence[Point]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PlrcError(f"the image is {image.dtype} {list(image.shape)}; give uint8 [H, W, 3]")
    if not features or not points:
        raise PlrcError("an affinity picture needs at least one set of features and one point")
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise PlrcError(f"the point ({x}, {y}) lies outside the image; give x and y as shares of its sides, 0 to 1")
