"""Every picture of an explorer's page as a PNG file, for papers and slides.

Layer 5. Affinities and colors are drawn from the page's own features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from plrc.files import write_atomic
from plrc.visualize.affinity import Point, heat_picture
from plrc.visualize.explorer import Explorer
from plrc.visualize.samples import Samples

_SIDE = 256  # longer side of a picture of colors, in pixels


def save_explorer_figures(folder: Path, explorer: Explorer, samples: Samples, points: Sequence[Point]) -> int:
    """Write NAME.affinity.png and NAME.colors.png of each image, views-N.png of the samples, and batch.png.

    A row of NAME.affinity.png is one of the points, a column a network; so are the columns of NAME.colors.png, after
    the image. Returns how many files were written.
    """
    written: dict[str, Image.Image] = {}
    for i, picture in enumerate(explorer.images):
        name = _file(picture.name, written)
        h, w = explorer.codes[0].codes[i].shape[:2]
        places = [(min(int(y * h), h - 1), min(int(x * w), w - 1)) for x, y in points]
        named = zip(explorer.networks, explorer.codes, strict=True)
        heat = {source.title: [codes.affinity(i, *place) for place in places] for source, codes in named}
        image = np.ascontiguousarray(picture.pixels.permute(1, 2, 0).numpy())
        written[f"{name}.affinity.png"] = heat_picture(image, heat, points)
        written[f"{name}.colors.png"] = _colours(explorer, i)
    for i, (_, drawn) in enumerate(samples.pictures, start=1):
        written[f"views-{i}.png"] = drawn
    if samples.batch:
        written["batch.png"] = samples.batch
    for name, drawn in written.items():
        write_atomic(folder / name, partial(drawn.save, format="PNG"))
    return len(written)


def _colours(explorer: Explorer, image: int) -> Image.Image:
    """The image, and its first three components by each network."""
    height, width = explorer.images[image].pixels.shape[1:]
    size = max(width * _SIDE // max(height, width), 1), max(height * _SIDE // max(height, width), 1)
    shown = [explorer.images[image].pixels.permute(1, 2, 0).numpy(), *(c.colors(image) for c in explorer.codes)]
    page = Image.new("RGB", (len(shown) * (size[0] + 8) - 8, size[1]), (255, 255, 255))
    for x, pixels in enumerate(shown):
        drawn = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)
        page.paste(drawn, (x * (size[0] + 8), 0))
    return page


def _file(name: str, taken: dict[str, Image.Image]) -> str:
    """A file name of an image: its path's parts joined by dashes, with a number where another one has that name."""
    base = "-".join(Path(name).with_suffix("").parts).replace("/", "").lstrip("-.") or "image"
    found, number = base, 2
    while f"{found}.affinity.png" in taken:
        found, number = f"{base}-{number}", number + 1
    return found
