"""Crops: the drawing rules over many seeds, and a coordinate image that every view must give back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.boxes import area, overlap
from torch import Tensor
from torch.nn import functional as F

from plrc import geometry
from plrc.config import ViewConfig
from plrc.data.views import MATCH, QUERY, REFERENCE, View, draw_views, render, shorter_side

CONFIG = ViewConfig(size=64)


def draw(seed: int, height: int, width: int, config: ViewConfig = CONFIG, match: bool = True) -> tuple[View, ...]:
    return draw_views(np.random.default_rng(seed), height, width, config, match)


def coordinate_image(height: int, width: int) -> Tensor:
    """uint8 [3, H, W]: red is 255 x, green is 255 y, blue is 255 (1 - x), at pixel centers."""
    points = geometry.cell_centers(height, width).reshape(height, width, 2)
    channels = torch.stack([points[..., 0], points[..., 1], 1 - points[..., 0]], dim=-1)
    return (channels * 255).round().to(torch.uint8).permute(2, 0, 1)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32))
def test_crops_lie_in_the_image_whatever_its_size(height: int, width: int, seed: int) -> None:
    for view in draw(seed, height, width):
        assert view.width >= 1
        assert view.height >= 1
        assert 0 <= view.left <= width - view.width
        assert 0 <= view.top <= height - view.height
        assert (view.image_height, view.image_width) == (height, width)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (1, 2), (2, 1)])
def test_tiny_and_thin_images_give_full_views(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    for seed in range(20):
        for view in draw(seed, *size):
            assert render(image, view, 32).shape == (3, 32, 32)


def test_fallback_is_the_largest_centered_crop_of_an_allowed_aspect() -> None:
    wide, tall = draw(0, 3, 500)[QUERY], draw(0, 500, 3)[QUERY]
    assert (wide.left, wide.top, wide.width, wide.height) == (248, 0, 4, 3)
    assert (tall.left, tall.top, tall.width, tall.height) == (0, 248, 3, 4)
    huge = ViewConfig(ratio=(20.0, 20.0))
    assert draw(0, 1, 1, huge)[QUERY].box == (0, 0, 1, 1)


def test_area_and_aspect_follow_their_distributions() -> None:
    views = [draw(seed, 480, 640)[REFERENCE] for seed in range(1500)]
    areas = np.array([area(v.box) for v in views])
    aspects = np.log([v.width / v.height for v in views])
    assert 0.195 < areas.min() < 0.22
    assert areas.max() <= 1
    assert abs(aspects).max() < np.log(4 / 3) + 0.01
    # area is uniform where every aspect fits into the image (below 480 * 3 / 4 * 480 / (480 * 640) = 0.56)
    small = areas[areas < 0.55]
    counts, _ = np.histogram(small, bins=5, range=(0.2, 0.55))
    assert counts.min() > 0.75 * counts.mean()
    assert abs(np.mean([v.flip for v in views]) - 0.5) < 0.05
    lefts = np.array([v.left / (640 - v.width) for v in views if v.width < 640])
    assert abs(lefts.mean() - 0.5) < 0.03


@pytest.mark.parametrize("least", [0.0, 0.3, 0.5, 0.8])
def test_match_view_overlaps_the_query_as_asked(least: float) -> None:
    config = dataclasses.replace(CONFIG, overlap=least)
    for seed in range(300):
        views = draw(seed, 333, 500, config)
        assert overlap(views[QUERY].box, views[MATCH].box) >= least - 1e-9


def test_match_view_differs_from_the_query_where_a_draw_succeeds() -> None:
    same = sum(views[QUERY].box == views[MATCH].box for views in (draw(seed, 480, 640) for seed in range(200)))
    assert same < 10


def test_match_view_falls_back_to_the_query_crop_with_its_own_flip() -> None:
    config = dataclasses.replace(CONFIG, overlap=1.0, overlap_tries=1)
    pairs = [draw(seed, 480, 640, config) for seed in range(60)]
    assert all(views[QUERY].box == views[MATCH].box for views in pairs)
    assert {(views[QUERY].flip, views[MATCH].flip) for views in pairs} == {(a, b) for a in (0, 1) for b in (0, 1)}


def test_query_and_reference_do_not_depend_on_the_match() -> None:
    for seed in range(50):
        assert draw(seed, 200, 300, match=False) == draw(seed, 200, 300, match=True)[:2]


def test_flip_probability_is_obeyed() -> None:
    for flip in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, flip_prob=flip)
        assert all(view.flip == bool(flip) for seed in range(20) for view in draw(seed, 100, 100, config))


@pytest.mark.parametrize("stride", [1, 8, 16])
def test_coordinates_come_back_from_every_view(stride: int) -> None:
    image, size = coordinate_image(240, 320), 64
    points = torch.rand(1, 200, 2, generator=torch.Generator().manual_seed(0))
    points = points * (1 - stride / size) + 0.5 * stride / size  # between the outermost centers features are linear
    for seed in range(8):
        for view in draw(seed, 240, 320):
            features = F.avg_pool2d(render(image, view, size)[None].float() / 255, stride)
            read = geometry.sample(features, points)[0, :, :2]
            expected = geometry.to_image(points, torch.tensor([view.map]))[0]
            error = (read - expected) * 255
            assert error.abs().max() < 1.5, view  # image, crop and view are each rounded to whole levels
            assert error.mean(0).abs().max() < 0.3, view  # a shift by half a view pixel would be 1 to 2 levels


def test_two_views_show_the_same_physical_point_alike() -> None:
    image = coordinate_image(300, 200)
    for seed in range(10):
        a, _, b = draw(seed, 300, 200)
        maps = torch.tensor([a.map, b.map])
        in_a = torch.rand(1, 300, 2, generator=torch.Generator().manual_seed(seed))
        in_b = geometry.to_view(geometry.to_image(in_a, maps[:1]), maps[1:])
        inner = ((in_a - 0.5).abs().amax(-1) < 0.49) & ((in_b - 0.5).abs().amax(-1) < 0.49)
        read = [geometry.sample(render(image, v, 64)[None], p)[inner] / 255 for v, p in ((a, in_a), (b, in_b))]
        assert inner.sum() > 30
        assert (read[0] - read[1]).abs().max() < 3 / 255


def test_an_uncropped_view_is_the_image_and_its_mirror() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    view = View(0, 0, 32, 32, 32, 32, flip=False)
    assert torch.equal(render(image, view, 32), image)
    assert torch.equal(render(image, dataclasses.replace(view, flip=True), 32), image.flip(-1))


def test_rendering_does_not_depend_on_the_memory_layout_and_leaves_the_image_alone() -> None:
    planes = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    pixels = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    before = planes.clone()
    for view in draw(5, 90, 120):
        assert torch.equal(render(planes, view, 32), render(pixels, view, 32))
    assert torch.equal(planes, before)


def test_resizing_is_antialiased() -> None:
    stripes = torch.zeros(3, 128, 128, dtype=torch.uint8)
    stripes[:, :, ::2] = 255  # the finest pattern there is must become even gray, not stripes or moire
    small = render(stripes, View(0, 0, 128, 128, 128, 128, flip=False), 30).float()
    assert (small[..., 1:-1] - 127.5).abs().max() < 6


@pytest.mark.parametrize("config", [CONFIG, ViewConfig(size=96, scale=(0.08, 1.0), ratio=(0.5, 3.0))])
def test_no_crop_of_an_image_with_that_shorter_side_is_smaller_than_its_view(config: ViewConfig) -> None:
    side = shorter_side(config)
    crops = [view for seed in range(300) for view in draw(seed, side, 2 * side, config)]
    crops += [view for seed in range(300) for view in draw(seed, side, side, config)]
    smallest = min(min(view.width, view.height) for view in crops)
    assert config.size - 1 <= smallest <= 1.3 * config.size
