"""Affinity figures: the numbers behind the heat, where things stand in the figure, colors that everybody can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from tests.visualize.conftest import figure_pixels, tile_pixels

from plrc.visualize.affinity import affinity_figure, affinity_map, affinity_rows
from plrc.visualize.figures import heat_colors, save_figure

IMAGE = np.full((48, 48, 3), (200, 40, 40), dtype=np.uint8)
TILE = 192
LOWEST, HIGHEST = heat_colors()[[0, 255]].astype(int)


def halves() -> torch.Tensor:
    """Features [2, 8, 8]: one direction in the left half, an orthogonal one in the right half."""
    features = torch.zeros(2, 8, 8)
    features[0, :, :4] = 3
    features[1, :, 4:] = 0.5
    return features


def figure_of(features: dict[str, torch.Tensor], points: Any, image: NDArray[np.uint8] = IMAGE) -> Figure:
    return affinity_figure(affinity_rows(image, features, points))


def captions(figure: Figure) -> list[list[str]]:
    """The lines below each tile."""
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


def test_affinity_is_the_cosine_to_the_bilinear_reading_at_the_point() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(5, 6, 7, generator=draw)
    at_cell = affinity_map(features, (2.5 / 7, 4.5 / 6))
    query = features[:, 4, 2]
    for y in range(6):
        for x in range(7):
            there = features[:, y, x]
            expected = (query @ there) / (query.norm() * there.norm())
            assert at_cell[y, x] == pytest.approx(float(expected), abs=1e-5)
    between = affinity_map(features, (3 / 7, 4.5 / 6))
    query = (features[:, 4, 2] + features[:, 4, 3]) / 2
    assert between[1, 1] == pytest.approx(float(torch.cosine_similarity(query, features[:, 1, 1], dim=0)), abs=1e-5)


def test_heat_is_high_where_features_agree() -> None:
    figure = figure_of({"halves": halves()}, [(0.1, 0.5), (0.9, 0.5)])
    for row, (near, far) in enumerate([(40, 150), (150, 40)]):
        heat = tile_pixels(figure, 2 * row + 1)
        assert np.abs(heat[20, near] - HIGHEST).max() <= 2
        assert np.abs(heat[20, far] - LOWEST).max() <= 2


def test_the_figure_has_a_row_for_each_point_and_a_column_for_each_network() -> None:
    small = figure_of({"a": halves()}, [(0.5, 0.5)])
    large = figure_of({"a": halves(), "b": halves(), "c": halves()}, [(0.5, 0.5)] * 2)
    assert [len(figure.axes) for figure in (small, large)] == [2 + 1, 8 + 1]  # the last one is the color key
    places = [axes.get_window_extent().bounds for axes in large.axes[:-1]]
    for index, (left, bottom, width, height) in enumerate(places):
        assert (width, height) == (pytest.approx(TILE), pytest.approx(TILE))
        assert left == pytest.approx(places[index % 4][0])
        assert bottom == pytest.approx(places[index // 4 * 4][1])
    assert places[0][1] > places[4][1] and places[0][0] < places[1][0] < places[2][0] < places[3][0]
    assert (tile_pixels(small, 0)[10, 10] == IMAGE[0, 0]).all()


def test_the_point_is_ringed_in_every_tile() -> None:
    figure = figure_of({"a": halves()}, [(0.25, 0.75)])
    for column in (0, 1):
        shown = tile_pixels(figure, column)
        ring = shown[144 - 11 : 144 + 12, 48 - 11 : 48 + 12]
        white = np.argwhere((ring == 255).all(axis=2))
        assert np.abs(white.mean(axis=0) - 11).max() <= 1  # its center is the point
        assert (ring == 0).all(axis=2).any()
        elsewhere = shown[:100].reshape(-1, 3)
        assert not (elsewhere == 255).all(axis=1).any()


def test_features_without_differences_show_one_color() -> None:
    heat = tile_pixels(figure_of({"flat": torch.full((3, 4, 4), 0.3)}, [(0.5, 0.5)]), 1)
    assert (heat[:80] == HIGHEST).all()


def test_captions_hold_the_span_of_each_tile() -> None:
    """Equal heat, unequal spans of cosine: only the captions may differ."""
    first = figure_of({"a": halves()}, [(0.1, 0.5)])
    second = figure_of({"a": halves() + 2}, [(0.1, 0.5)])
    assert np.abs(tile_pixels(first, 1) - tile_pixels(second, 1)).max() < 30
    assert captions(first)[:2] == [["image"], ["a", "cosine 0.00 to 1.00"]]
    low, high = affinity_map(halves() + 2, (0.1, 0.5)).aminmax()
    assert captions(second)[1] == ["a", f"cosine {low:.2f} to {high:.2f}"]
    assert captions(second) != captions(first)


def test_other_proportions_long_names_and_bfloat16() -> None:
    wide = np.zeros((50, 100, 3), dtype=np.uint8)
    names = ["a name that is far too long for one tile " * 3, "W" * 90]
    figure = figure_of({name: halves().bfloat16() for name in names}, [(0, 1)], wide)
    assert figure.axes[0].get_window_extent().bounds[2:] == (pytest.approx(192), pytest.approx(96))
    page = figure_pixels(figure)
    background = page[0, 0]
    right = round(figure.axes[1].get_window_extent().x1)
    assert (page[:150, right + 1 : right + 7] == background).all()  # the gap between captions stays free
    assert (page[:150, -7:] == background).all()  # and so does the margin
    name = captions(figure)[1][0]
    assert len(name) < 40 and name[0] == "…" and names[0].endswith(name[1:])


def test_several_images_are_stacked_above_a_key(tmp_path: Path) -> None:
    features = [{"a": halves()}, {"a": halves(), "b": halves()}]
    points = [[(0.1, 0.5)], [(0.2, 0.2), (0.8, 0.8)]]
    rows = [*affinity_rows(IMAGE, features[0], points[0]), *affinity_rows(IMAGE, features[1], points[1])]
    figure = affinity_figure(rows)
    save_figure(figure, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as page:
        assert (np.asarray(page.convert("RGB")) == figure_pixels(figure)).all()
    marked = [axes.lines[0].get_xydata().tolist()[0] for axes in figure.axes[:-1] if axes.lines]
    expected = [point for row in rows for point in [row.point] * (1 + len(row.affinities))]
    assert marked == [list(point) for point in expected]
    assert not figure.axes[2].images  # the first image has no network b
    key = figure.axes[-1]
    assert key.get_window_extent().y1 < min(axes.get_window_extent().y0 for axes in figure.axes[:-1])
    bar = tile_pixels(figure, -1)[4]
    assert np.abs(bar[0] - LOWEST).max() < 8
    assert np.abs(bar[-1] - HIGHEST).max() < 8


def luminance(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def test_colors_rise_evenly_in_lightness() -> None:
    lightness = 116 * np.cbrt(luminance(heat_colors() / 255)) - 16
    steps = np.diff(lightness.reshape(16, 16).mean(axis=1))
    assert (steps > 0).all()
    assert steps.max() < 1.5 * steps.min()
    assert lightness[0] < 15
    assert lightness[-1] > 88


def test_the_style_of_the_caller_neither_counts_nor_changes() -> None:
    """Names are text, also where they look like formulas or need letters that the font lacks."""
    names = {"$\\frac$ 名前 \udcff": halves()}
    plain = figure_pixels(figure_of(names, [(0.5, 0.5)]))
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "image.cmap": "gray", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert (figure_pixels(figure_of(names, [(0.5, 0.5)])) == plain).all()
        assert dict(matplotlib.rcParams) == before


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\], got float64 \[4, 4, 3\]"):
        affinity_rows(np.zeros((4, 4, 3)), {"a": halves()}, [(0.5, 0.5)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points must be shares of the image's sides, 0 to 1, got \(24, 24\)"):
        affinity_rows(IMAGE, {"a": halves()}, [(24, 24)])
    with pytest.raises(ValueError, match="features of at least one network and at least one point"):
        affinity_rows(IMAGE, {}, [(0.5, 0.5)])
