"""Pictures of regions: an image with its regions tinted and their boundaries drawn, and a sheet of many.

Layer 5: imports data and below. Writes the pictures that it is asked for.

Shapes: H x W the image, h x w its id map, T x S the pixels of a tile.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from plrc.config import Config
from plrc.data.id_maps import RegionError, map_path
from plrc.data.image_files import DecodeError
from plrc.data.regions import Regions
from plrc.data.sources import ImageList
from plrc.errors import PlrcError
from plrc.files import write_atomic
from plrc.geometry import lattice, look_up
from plrc.text import printable

_TILE = 256  # pixels of a tile's longer side
_GAP, _LINE = 8, 14  # between tiles; height of a caption
_PAPER, _INK, _EDGE = (250, 250, 248), (32, 34, 38), (255, 255, 255)
_TINT = 0.35  # share of the region's color
_TURN = (math.sqrt(5) - 1) / 2  # of the colour circle, from one region to the next


def save_preview(
    config: Config, images: ImageList, positions: Sequence[int], out: Path, progress: Callable[[int, int], None]
) -> str:
    """Draw the regions that the settings make for the images at `positions`; progress(done, total).

    out: a .png or .jpg for all of them, or a folder for NAME.regions.png of each. Returns what to tell the user. Raises
    PlrcError for another ending, and where no image can be drawn.
    """
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", "": ""}.get("" if out.is_dir() else out.suffix.lower())
    if kind is None:
        raise PlrcError(f"--out is {out}; let it end in .png or .jpg, or name a folder without an ending")
    regions = Regions(config, images)
    tiles: list[tuple[str, Image.Image]] = []
    unusable: list[tuple[str, str]] = []
    for done, position in enumerate(positions, start=1):
        name = images.names[position]
        try:
            ids = regions(position)
            image = images.decode(position, config.data, _TILE)
        except (RegionError, DecodeError) as error:
            unusable.append((name, error.reason))
        else:
            tiles.append((name, region_tile(image.permute(1, 2, 0).numpy(), ids)))
        progress(done, len(positions))
    if not tiles:
        raise PlrcError(f"none of the {len(positions)} images can be drawn; the first, {': '.join(unusable[0])}")
    if kind:
        write_atomic(out, partial(region_sheet(tiles).save, format=kind))
    else:
        for name, tile in tiles:
            write_atomic(map_path(out, name).with_suffix(".regions.png"), partial(tile.save, format="PNG"))
    return "\n".join([f"{len(tiles)} images drawn: {out}", *(f"left out {name}: {why}" for name, why in unusable)])


def region_tile(image: NDArray[np.uint8], regions: Tensor) -> Image.Image:
    """The image [H, W, 3] at most 256 pixels large, tinted by the ids [h, w], with white boundaries; unlabelled places
    (-1) are dark and grey."""
    height, width = image.shape[:2]
    scale = _TILE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    shown = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    ids = look_up(regions[None], lattice(size[1], size[0])[None])[0].reshape(size[1], size[0]).numpy()
    table = np.array([*region_colours(int(ids.max()) + 1), (0, 0, 0)], dtype=np.float32)  # the last is that of -1
    unlabelled = (ids < 0)[..., None]
    ground = np.where(unlabelled, shown.mean(axis=2, keepdims=True) / 2, shown)
    drawn = np.where(unlabelled, ground, (1 - _TINT) * ground + _TINT * table[ids])
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    drawn[edge] = _EDGE
    return Image.fromarray(drawn.astype(np.uint8))


def region_colours(count: int) -> list[tuple[int, int, int]]:
    """A color a region, far apart for neighbouring ids."""
    shares = (colorsys.hsv_to_rgb(i * _TURN % 1, 1, 1) for i in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in shares]


def region_sheet(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Tiles (at least one) with captions in rows, about as wide as high."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    step = _TILE + _GAP, _TILE + _GAP + _LINE
    page = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for i, (caption, tile) in enumerate(tiles):
        x, y = _GAP + i % columns * step[0], _GAP + i // columns * step[1]
        page.paste(tile, (x, y))
        caption = printable(caption)
        while draw.textlength(caption) > _TILE and len(caption) > 1:
            caption = "…" + caption[2:]
        draw.text((x, y + tile.height + 1), caption, fill=_INK)
    return page
