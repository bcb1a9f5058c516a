"""Figures of a run's samples: crops, points and matches are drawn where the batch says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from tests.visualize.conftest import Trained, figure_pixels, tile_pixels

from plrc.config import Config
from plrc.data.loader import Batch, ViewDataset
from plrc.data.manifest import images_from_manifest, read_manifest
from plrc.data.sampler import StepSampler
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.visualize.regions import region_colors, tinted_regions
from plrc.visualize.samples import run_samples, sample_figure

COLORS = {QUERY: "#0072b2", REFERENCE: "#009e73", MATCH: "#d55e00"}
TILES = {REFERENCE: 1, QUERY: 2, MATCH: 3}  # the image is tile 0


@pytest.fixture(scope="module")
def drawn(trained: Trained) -> tuple[Figure, Batch, Any]:
    config = Config.load(trained.run / "config.toml")
    images, train, _ = images_from_manifest(read_manifest(trained.run / "manifest.json"))
    dataset = ViewDataset(images, train, config)
    epoch, index = next(iter(StepSampler(len(train), 8, 1, config.seed, 0, 1)))[0]
    sample = dataset.load_sample(epoch, index)
    assert isinstance(sample, Batch)
    image = images.decode(int(train[index]), config.data, 256).permute(1, 2, 0).numpy()
    return sample_figure(sample, image, config), sample, image


def test_the_image_has_its_regions_and_the_outline_of_each_crop(drawn: tuple[Figure, Batch, Any]) -> None:
    figure, sample, image = drawn
    axes = figure.axes[0]
    boxes = {}
    for patch in axes.patches:
        assert isinstance(patch, Rectangle)
        boxes[patch.get_edgecolor()[:3]] = patch
    assert len(boxes) == 3
    names = [text.get_text().split()[0] for text in axes.texts]
    assert sorted(names) == ["A", "B", "C"]
    for view in (QUERY, REFERENCE, MATCH):
        scale_x, scale_y, left, top = sample.maps[view, 0].tolist()
        box = boxes[to_rgb(COLORS[view])]
        assert box.get_x() == pytest.approx(min(left, left + scale_x))
        assert (box.get_width(), box.get_y(), box.get_height()) == pytest.approx((abs(scale_x), top, scale_y))
        mirrored = any(text.get_text() == f"{'ACB'[view]} mirrored" for text in axes.texts)
        assert mirrored == (scale_x < 0)
    tile = tinted_regions(image, sample.regions[0])
    same = (tile_pixels(figure, 0) == tile).all(axis=2)
    assert same.mean() > 0.6  # the rest lies under outlines and names


def test_points_have_their_regions_colors_and_lie_in_them(drawn: tuple[Figure, Batch, Any]) -> None:
    figure, sample, _ = drawn
    ids = sample.regions[0].numpy()
    palette = region_colors(int(ids.max()) + 1) / 255
    seen = {}
    for view in (QUERY, REFERENCE):
        points = figure.axes[TILES[view]].collections[0]
        places = np.asarray(points.get_offsets())
        colors = points.get_facecolors()[:, :3]
        assert len(places) == len(colors) > 10
        scale_x, scale_y, left, top = sample.maps[view, 0].tolist()
        column = ((places[:, 0] * scale_x + left) * ids.shape[1]).astype(int)
        row = ((places[:, 1] * scale_y + top) * ids.shape[0]).astype(int)
        assert np.allclose(colors, palette[ids[row, column]])
        seen[view] = {tuple(color) for color in colors}
    assert seen[QUERY] == seen[REFERENCE]


def test_lines_join_the_same_physical_points_of_a_and_b(drawn: tuple[Figure, Batch, Any]) -> None:
    figure, sample, _ = drawn
    lines = [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]
    assert len(lines) == 14
    for line in lines:
        in_image = []
        for view, place in ((QUERY, line.xy1), (MATCH, line.xy2)):
            scale_x, scale_y, left, top = sample.maps[view, 0].tolist()
            in_image.append((place[0] * scale_x + left, place[1] * scale_y + top))
        assert in_image[0] == pytest.approx(in_image[1], abs=1e-5)
    assert figure_pixels(figure).shape == (536, 536, 3)


def test_the_samples_of_a_run(trained: Trained) -> None:
    config = Config.load(trained.run / "config.toml")
    samples = run_samples(trained.run, config, 3)
    assert len(samples.samples) == 3 and samples.has_match_view and samples.note == ""
    assert samples.regions == "grid 4 x 4"
    assert samples.batch is not None and len(samples.batch.axes) == 3 * 8  # A, C, B of eight images
    assert run_samples(trained.run, config, 0).samples == []
