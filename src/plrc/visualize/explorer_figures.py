"""The figures of an explorer's page as PNG files, for papers and slides."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from plrc.visualize.affinity import AffinityRow, Point, affinity_figure
from plrc.visualize.explorer import Explorer
from plrc.visualize.figures import default_style, fitted_tile, save_figure, show_image, tile_grid, write_caption
from plrc.visualize.samples import RunSamples

_TILE = 256  # pixels of the longer side of a tile of colors


def save_explorer_figures(folder: Path, explorer: Explorer, samples: RunSamples, points: Sequence[Point]) -> int:
    """Write the figures of each image, of each sample of the run, and of its first batch.

    Args:
        folder: Gets NAME.affinity.png and NAME.colors.png of each image, views-N.png, and batch.png.
        explorer: The images, networks and features; affinities are those that the page shows.
        samples: The samples of the run.
        points: The points whose affinities are drawn.

    Returns:
        How many files were written.
    """
    count = 0
    for name, figure in _named_figures(explorer, samples, points):
        save_figure(figure, folder / f"{name}.png")
        count += 1
    return count


def _named_figures(explorer: Explorer, samples: RunSamples, points: Sequence[Point]) -> Iterator[tuple[str, Figure]]:
    names: set[str] = set()
    for index, image in enumerate(explorer.images):
        name = _unique_name(image.name, names)
        names.add(name)
        yield f"{name}.affinity", _affinities(explorer, index, points)
        yield f"{name}.colors", _colors(explorer, index)
    for number, (_, figure) in enumerate(samples.samples, start=1):
        yield f"views-{number}", figure
    if samples.batch is not None:
        yield "batch", samples.batch


def _affinities(explorer: Explorer, index: int, points: Sequence[Point]) -> Figure:
    """Draw a row for each point, a column for each network."""
    image = explorer.images[index]
    rows = []
    for point in points:
        row, column = image.place_at(point, explorer.config.stride)
        affinities = {}
        for network, features in zip(explorer.networks, explorer.features, strict=True):
            affinities[network.title] = features.affinity(index, row, column)
        rows.append(AffinityRow(image.array(), point, affinities))
    return affinity_figure(rows)


def _colors(explorer: Explorer, index: int) -> Figure:
    """Draw the image, and the first three components of its features by each network."""
    image = explorer.images[index].array()
    with default_style():
        figure, axes = tile_grid(1, 1 + len(explorer.networks), fitted_tile(image, _TILE), caption_lines=1)
        show_image(axes[0, 0], image)
        write_caption(axes[0, 0], "image")
        for tile, network, features in zip(axes[0, 1:], explorer.networks, explorer.features, strict=True):
            show_image(tile, features.colors(index))
            write_caption(tile, network.title)
    return figure


def _unique_name(path: str, taken: Container[str]) -> str:
    """Join the parts of an image's path by dashes; a number is added if another image has that name."""
    base = "-".join(Path(path).with_suffix("").parts).replace("/", "").lstrip("-.") or "image"
    name = base
    number = 2
    while name in taken:
        name = f"{base}-{number}"
        number += 1
    return name
