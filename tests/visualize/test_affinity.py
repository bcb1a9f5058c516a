"""Affinity pictures: the numbers behind the heat, where things stand on the page, colors that everybody can read."""

import numpy as np
import pytest
import torch
from PIL import Image

from plrc.errors import PlrcError
from plrc.visualize.affinity import affinity, affinity_picture, colour_table, save_affinities

IMAGE = np.full((48, 48, 3), (200, 40, 40), dtype=np.uint8)


def halves():
    """Features [2, 8, 8]: one direction in the left half, an orthogonal one in the right half."""
    features = torch.zeros(2, 8, 8)
    features[0, :, :4] = 3
    features[1, :, 4:] = 0.5
    return features


def tile(page, row, column, size=192):
    """Pixels of a tile, by the page's layout: margin 16, gap 10, titles 24, captions 20."""
    x, y = 16 + column * (size + 10), 40 + row * (size + 30)
    return np.asarray(page)[y : y + size, x : x + size]


def test_affinity_is_the_cosine_to_the_bilinear_reading_at_the_point():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(5, 6, 7, generator=draw)
    at_cell = affinity(features, (2.5 / 7, 4.5 / 6))
    query = features[:, 4, 2]
    for y in range(6):
        for x in range(7):
            there = features[:, y, x]
            expected = (query @ there) / (query.norm() * there.norm())
            assert at_cell[y, x] == pytest.approx(float(expected), abs=1e-5)
    between = affinity(features, (3 / 7, 4.5 / 6))
    query = (features[:, 4, 2] + features[:, 4, 3]) / 2
    assert between[1, 1] == pytest.approx(float(torch.cosine_similarity(query, features[:, 1, 1], dim=0)), abs=1e-5)


def test_heat_is_high_where_features_agree():
    page = affinity_picture(IMAGE, {"halves": halves()}, [(0.1, 0.5), (0.9, 0.5)])
    low, high = colour_table()[0], colour_table()[255]
    for row, (near, far) in enumerate([(40, 150), (150, 40)]):
        heat = tile(page, row, 1)
        assert (heat[20, near] == high).all()
        assert (heat[20, far] == low).all()


def test_the_page_has_a_row_a_point_and_a_column_a_name():
    one = affinity_picture(IMAGE, {"a": halves()}, [(0.5, 0.5)])
    more = affinity_picture(IMAGE, {"a": halves(), "b": halves(), "c": halves()}, [(0.5, 0.5)] * 2)
    assert one.size == (2 * 16 + 2 * 192 + 10, 16 + 24 + 192 + 20 + 16)
    assert more.size == (one.width + 2 * 202, one.height + 222)
    assert (tile(one, 0, 0)[10, 10] == IMAGE[0, 0]).all()


def test_the_point_is_ringed_in_every_tile():
    page = affinity_picture(IMAGE, {"a": halves()}, [(0.25, 0.75)])
    for column in (0, 1):
        shown = tile(page, 0, column)
        ring = shown[144 - 9 : 144 + 10, 48 - 9 : 48 + 10].reshape(-1, 3)
        assert (ring == 255).all(axis=1).any()
        assert (ring == 0).all(axis=1).any()
        elsewhere = shown[:100].reshape(-1, 3)
        assert not (elsewhere == 255).all(axis=1).any()


def test_features_without_differences_show_one_colour():
    page = affinity_picture(IMAGE, {"flat": torch.full((3, 4, 4), 0.3)}, [(0.5, 0.5)])
    assert (tile(page, 0, 1)[:80] == colour_table()[255]).all()


def test_captions_hold_the_span_of_each_tile():
    """Equal heat, unequal spans of cosine: only the captions may differ."""
    strong = halves()
    weak = halves() + 2
    first, second = (affinity_picture(IMAGE, {"a": f}, [(0.1, 0.5)]) for f in (strong, weak))
    assert np.abs(tile(first, 0, 1).astype(int) - tile(second, 0, 1)).max() < 30
    caption = slice(40 + 192, 40 + 212)
    assert (np.asarray(first)[caption] != np.asarray(second)[caption]).any()


def test_other_proportions_long_names_and_bfloat16():
    wide = np.zeros((50, 100, 3), dtype=np.uint8)
    page = affinity_picture(wide, {"a name that is far too long for one tile " * 3: halves().bfloat16()}, [(0, 1)])
    assert page.size == (2 * 16 + 2 * 192 + 10, 16 + 24 + 96 + 20 + 16)
    assert (np.asarray(page)[:36, -15:] == np.asarray(page)[0, 0]).all()  # the margin stays free


def test_several_images_are_stacked_above_a_key(tmp_path):
    features = [{"a": halves()}, {"a": halves(), "b": halves()}]
    save_affinities(tmp_path / "page.png", [IMAGE, IMAGE], features, [[(0.1, 0.5)], [(0.2, 0.2), (0.8, 0.8)]])
    page = np.asarray(Image.open(tmp_path / "page.png"))
    parts = [affinity_picture(IMAGE, features[0], [(0.1, 0.5)])]
    parts.append(affinity_picture(IMAGE, features[1], [(0.2, 0.2), (0.8, 0.8)]))
    assert page.shape[1] == parts[1].width
    assert (page[: parts[0].height, : parts[0].width] == np.asarray(parts[0])).all()
    below = parts[0].height + parts[1].height
    assert (page[parts[0].height : below] == np.asarray(parts[1])).all()
    bar = page[below + 8, 16 : 16 + 96].astype(int)
    assert np.abs(bar[0] - colour_table()[0]).max() < 8
    assert np.abs(bar[-1] - colour_table()[255]).max() < 8


def luminance(colors):
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_colours_rise_evenly_in_lightness():
    """CIE lightness, another measure than the one that the table is built from."""
    lightness = 116 * np.cbrt(luminance(colour_table() / 255)) - 16
    steps = np.diff(lightness.reshape(16, 16).mean(axis=1))
    assert (steps > 0).all()
    assert steps.max() < 1.5 * steps.min()
    assert lightness[0] < 15
    assert lightness[-1] > 88


def test_mistakes_are_told(tmp_path):
    with pytest.raises(PlrcError, match=r"the image is float64 \[4, 4, 3\]; give uint8"):
        affinity_picture(np.zeros((4, 4, 3)), {"a": halves()}, [(0.5, 0.5)])
    with pytest.raises(PlrcError, match="lies outside the image"):
        affinity_picture(IMAGE, {"a": halves()}, [(24, 24)])
    with pytest.raises(PlrcError, match="at least one set of features and one point"):
        affinity_picture(IMAGE, {}, [(0.5, 0.5)])
    with pytest.raises(PlrcError, match="2 images, 1 features and 1 lists of points"):
        save_affinities(tmp_path / "x.png", [IMAGE, IMAGE], [{"a": halves()}], [[(0.5, 0.5)]])
