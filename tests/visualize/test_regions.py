"""Region preview: boundaries, tints and the dark unlabelled places are where the id map says."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from tests.visualize.conftest import figure_pixels, tile_pixels

from plrc.visualize.regions import region_sheet, tinted_regions

GRAY = np.full((40, 80, 3), 120, dtype=np.uint8)


def test_boundaries_tints_and_unlabelled_places() -> None:
    ids = torch.tensor([[0, 1], [0, -1]], dtype=torch.int16)
    tile = tinted_regions(GRAY, ids).astype(int)
    assert tile.shape == (128, 256, 3)
    white = (tile == 255).all(axis=2)
    assert white[:, 128].all()
    assert white[64, 128:].all()
    assert white.sum() == 128 + 127
    left = tile[:, :128].reshape(-1, 3)
    right = tile[:64, 129:].reshape(-1, 3)
    unlabelled = tile[65:, 129:].reshape(-1, 3)
    for part in (left, right, unlabelled):
        assert (part == part[0]).all()
    assert np.abs(left[0] - right[0]).max() > 60
    assert left[0].max() > 120 > left[0].min()
    assert len(set(unlabelled[0])) == 1
    assert unlabelled[0, 0] == 60


def test_a_map_without_regions() -> None:
    tile = tinted_regions(GRAY, torch.full((4, 4), -1, dtype=torch.int16))
    assert (tile == tile[0, 0]).all()
    assert tile[0, 0, 0] == 60


def test_a_sheet_holds_every_tile_to_the_pixel_and_a_caption_below_it() -> None:
    ids = torch.tensor([[0, 1, 2], [3, -1, 4]], dtype=torch.int16)
    tile = tinted_regions(GRAY, ids)
    names = ["a.jpg", "a/very/long/name" * 10 + ".jpg", "\udcff odd bytes.jpg"]
    figure = region_sheet([(name, tile) for name in names])
    sheet = figure_pixels(figure)
    assert sheet.shape == (2 * (256 + 14) + 3 * 8, 2 * 256 + 3 * 8, 3)
    # Before 3.11, matplotlib draws some edges within a picture a pixel away.
    wrong_share = 0.0 if matplotlib.__version_info__[:2] >= (3, 11) else 0.01
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        assert (tile_pixels(figure, index) != tile).any(axis=2).mean() <= wrong_share
        y = 8 + (256 + 14 + 8) * row
        x = 8 + (256 + 8) * column
        assert (sheet[y : y + 128, x : x + 256] != tile).any(axis=2).mean() <= wrong_share
        caption = sheet[y + 128 : y + 142, x : x + 256]
        assert caption.min() < 100
        assert (sheet[y + 128 : y + 142, x + 256 : x + 264] == sheet[0, 0]).all()
    assert (sheet[8 + 278 : 8 + 278 + 128, 8 + 264 : 8 + 264 + 256] == sheet[0, 0]).all()  # no fourth tile


def test_captions_of_low_and_high_tiles_are_alike() -> None:
    low = tinted_regions(GRAY, torch.zeros((2, 2), dtype=torch.int16))
    high = tinted_regions(np.full((64, 64, 3), 120, dtype=np.uint8), torch.zeros((2, 2), dtype=torch.int16))
    sheet = figure_pixels(region_sheet([("g.jpg", low), ("g.jpg", high)]))
    below_low = sheet[8 + 128 : 8 + 128 + 14, 8 : 8 + 100]
    below_high = sheet[8 + 256 : 8 + 256 + 14, 8 + 264 : 8 + 264 + 100]
    assert (below_low == below_high).all() and below_low.min() < 100
