"""Pictures of what a run is fed with: regions, the three crops of a sample, points that are compared, a batch.

Layer 5: imports data and below. Reads the run's own images through its own data pipeline.

Shapes: V views (A, C and, where the run needs it, B), S pixels a side, T x T a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from plrc.config import Config
from plrc.data.loader import Batch, ViewDataset
from plrc.data.manifest import images_from_manifest, read_manifest
from plrc.data.photometric import MEAN, STD, augment
from plrc.data.points import ContrastPoints, contrast_points, match_points
from plrc.data.sampler import StepSampler
from plrc.data.sources import ImageList
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.errors import PlrcError
from plrc.text import printable
from plrc.visualize.regions import region_colours, region_tile

_TILE, _GAP = 256, 8
_BATCH = 8  # images of a batch that are shown
_LINES, _DOTS = 14, 48  # matched points of A and B; points of A and of C
_NAMES = {QUERY: "A", REFERENCE: "C", MATCH: "B"}
_COLOURS = {QUERY: (0, 114, 178), REFERENCE: (0, 158, 115), MATCH: (213, 94, 0)}  # told apart by color-blind readers
_FINE = 2  # lines are drawn at this multiple of the picture's size, then made smaller


@dataclass(frozen=True)
class Samples:
    """Pictures by their images' names, and one of a batch. note: why there are none; match: whether there is a B."""

    pictures: list[tuple[str, Image.Image]] = field(default_factory=list)
    batch: Image.Image | None = None
    regions: str = ""
    match: bool = False
    note: str = ""


def run_samples(run: Path, config: Config, count: int) -> Samples:
    """The first `count` readable samples of a run, and its first batch, in the order in which the run meets them.

    Where the run's images are not to be had any more, `Samples.note` says so. With `count` 0 there is nothing.
    """
    if not count:
        return Samples()
    try:
        images, train, _ = images_from_manifest(read_manifest(run / "manifest.json"))
        data = ViewDataset(images, train, config.with_values({"run.cache": ""}))
        size, accumulate = config.optim.batch_size, config.optim.gradient_accumulation_steps
        keys = next(iter(StepSampler(len(train), size, accumulate, config.seed, 0, 1)))
        read = ((int(train[index]), data.load_sample(epoch, index)) for epoch, index in keys)
        found = [(position, one) for position, one in read if isinstance(one, Batch)]
        if not found:
            raise PlrcError("none of the images of its first batch can be read")
        pictures = [
            (printable(images.names[position]), _picture(one, _image(images, position, config), config))
            for position, one in found[:count]
        ]
    except PlrcError as error:
        return Samples(note=f"Regions and views of this run cannot be drawn here: {error}")
    shown = batch_picture([one for _, one in found[:_BATCH]], config)
    return Samples(pictures, shown, _regions(config), config.objectives.match_view)


def batch_picture(samples: Sequence[Batch], config: Config) -> Image.Image:
    """Augmented views of samples of one image each: one column a sample, one row a view."""
    columns = [_augmented(sample, config) for sample in samples]
    side = 2 * _TILE // len(columns) if len(columns) > 2 else _TILE
    rows = len(columns[0])
    page = Image.new("RGBA", (len(columns) * (side + 2) - 2, rows * (side + 2) - 2))
    for x, views in enumerate(columns):
        for y, view in enumerate(views):
            tile = Image.fromarray(view).resize((side, side), Image.Resampling.BICUBIC)
            page.paste(tile, (x * (side + 2), y * (side + 2)))
    return page


def _picture(sample: Batch, image: NDArray[np.uint8], config: Config) -> Image.Image:
    """Two by two tiles: the image with regions and crops, crop C; crop A, crop B."""
    views = _augmented(sample, config)
    colors = region_colours(int(sample.regions.max()) + 1)
    step = _TILE + _GAP
    corners = {REFERENCE: (step, 0), QUERY: (0, step), MATCH: (step, step)}
    page = Image.new("RGBA", (2 * _TILE + _GAP, 2 * _TILE + _GAP))
    whole = region_tile(image, sample.regions[0])
    page.paste(whole, (0, 0))
    for number, view in enumerate(views):
        page.paste(Image.fromarray(view).resize((_TILE, _TILE), Image.Resampling.BICUBIC), corners[number])
    page = page.resize((page.width * _FINE, page.height * _FINE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(page)
    for number in range(len(views)):
        _crop(draw, sample.maps[number, 0].tolist(), whole.size, number)
        _plate(draw, corners[number], number)
    points = _shared(sample)
    for number, places in ((QUERY, points.query), (REFERENCE, points.key)):
        for (x, y), i in zip(places[0].tolist(), points.query_regions[0].tolist(), strict=True):
            if i >= 0:  # the region of both
                _dot(draw, _at(corners[number], x, y), colors[i], 3)
    if len(views) > MATCH:
        matches = match_points(sample.maps[QUERY], sample.maps[MATCH], sample.match, sample.match.shape[1] // 2)
        valid = matches.valid[0].nonzero()[:_LINES, 0]
        pairs = zip(matches.student[0, valid].tolist(), matches.teacher[0, valid].tolist(), strict=True)
        for (x, y), (u, v) in pairs:
            start, end = _at(corners[QUERY], x, y), _at(corners[MATCH], u, v)
            draw.line((*start, *end), fill=(0, 0, 0, 255), width=2 * _FINE)
            draw.line((*start, *end), fill=(255, 255, 255, 255), width=_FINE)
            for place in (start, end):
                _dot(draw, place, (255, 255, 255), 2)
    return page.resize((page.width // _FINE, page.height // _FINE), Image.Resampling.LANCZOS)


def _shared(sample: Batch) -> ContrastPoints:
    count = sample.regions.shape[1] * sample.regions.shape[2]
    return contrast_points(sample.regions, count, sample.maps[QUERY], sample.maps[REFERENCE], sample.contrast, _DOTS)


def _crop(draw: ImageDraw.ImageDraw, crop: list[float], size: tuple[int, int], number: int) -> None:
    """The outline of a view on the image, with its letter, and a word where it is mirrored."""
    sx, sy, ox, oy = crop
    x0, x1 = sorted((ox, ox + sx))
    box = (x0 * size[0] * _FINE, oy * size[1] * _FINE, x1 * size[0] * _FINE - 1, (oy + sy) * size[1] * _FINE - 1)
    draw.rectangle(box, outline=(255, 255, 255), width=4 * _FINE)
    draw.rectangle(box, outline=_COLOURS[number], width=3 * _FINE)
    left, top = (number != REFERENCE), (number != MATCH)  # each letter has a corner of its own
    corner = (box[0] if left else box[2], box[1] if top else box[3])
    _letter(draw, corner, number, _NAMES[number] + (" mirrored" if sx < 0 else ""), left, top)


def _plate(draw: ImageDraw.ImageDraw, corner: tuple[int, int], number: int) -> None:
    x, y = corner[0] * _FINE, corner[1] * _FINE
    side = _TILE * _FINE - 1
    draw.rectangle((x, y, x + side, y + side), outline=_COLOURS[number], width=3 * _FINE)
    _letter(draw, (x, y), number, _NAMES[number])


def _letter(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], number: int, text: str, left: bool = True, top: bool = True
) -> None:
    """A name on a plate of the view's color, inside a left or right, upper or lower corner."""
    font = ImageFont.load_default(15 * _FINE)
    width, height = draw.textlength(text, font) + 8 * _FINE, 20 * _FINE
    x, y = corner[0] - (0 if left else width), corner[1] - (0 if top else height)
    draw.rectangle((x, y, x + width, y + height), fill=_COLOURS[number])
    draw.text((x + 4 * _FINE, y + _FINE), text, fill=(255, 255, 255), font=font)


def _dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], color: tuple[int, int, int], radius: int) -> None:
    for r, fill in ((radius + 1, (0, 0, 0)), (radius, color)):
        draw.ellipse((at[0] - r * _FINE, at[1] - r * _FINE, at[0] + r * _FINE, at[1] + r * _FINE), fill=fill)


def _at(corner: tuple[int, int], x: float, y: float) -> tuple[float, float]:
    return (corner[0] + x * _TILE) * _FINE, (corner[1] + y * _TILE) * _FINE


def _augmented(sample: Batch, config: Config) -> list[NDArray[np.uint8]]:
    """The views of one image as the network sees them, as pixels [S, S, 3]."""
    views = augment(sample.images[:, 0], sample.color[:, 0], config.views)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    pixels: Tensor = ((views * std + mean) * 255).round().clamp(0, 255).byte()
    return [np.ascontiguousarray(view.permute(1, 2, 0).numpy()) for view in pixels]


def _image(images: ImageList, position: int, config: Config) -> NDArray[np.uint8]:
    return images.decode(position, config.data, _TILE).permute(1, 2, 0).numpy()


def _regions(config: Config) -> str:
    """How the run makes its regions, in words."""
    regions = config.regions
    amount = {"grid": f"{regions.grid} x {regions.grid}", "voronoi": str(regions.count), "slic": str(regions.count)}
    source = " ".join([regions.source, amount.get(regions.source, "")]).strip()
    return f"{source}, with noise" if regions.noisy else source
