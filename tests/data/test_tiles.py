"""Tiles of large images: where they are cut, that everything else keeps its place, and a run with them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.engine.runs import after_steps, assert_same, final
from torch import Tensor

import plrc
from plrc.config import Config, DataConfig, RegionConfig, ViewConfig
from plrc.data.loader import Batch, ViewDataset
from plrc.data.sources import find_images
from plrc.data.tiles import WHOLE, draw_tile
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.geometry import cell_centers, look_up, to_image
from plrc.model import build_backbone
from plrc.visualize.samples import run_samples

Tiny = Callable[..., Config]
SIDE = 96


def ramps(height: int, width: int) -> Tensor:
    """uint8 [3, H, W]: red grows from left to right, green from top to bottom."""
    points = cell_centers(height, width).reshape(height, width, 2)
    return torch.stack([points[..., 0] * 255, points[..., 1] * 255, torch.zeros(height, width)]).round().byte()


def save(pixels: Tensor, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def sample_of(folder: Path, epoch: int = 0, regions: RegionConfig | None = None, **views: Any) -> Batch:
    config = Config(
        data=DataConfig(source=str(folder)),
        views=ViewConfig(**{"size": 32, "tiles": SIDE} | views),
        regions=regions or RegionConfig(),
    )
    sample = ViewDataset(find_images(config.data), np.arange(1), config).load_sample(epoch, 0)
    assert isinstance(sample, Batch)
    return sample


def test_a_tile_has_the_pixels_of_its_place_and_every_place_is_reached() -> None:
    image = ramps(130, 100)
    corners = set()
    for epoch in range(300):
        tile = draw_tile(image, SIDE, seed=0, epoch=epoch, index=5)
        assert tile.image.shape == (3, SIDE, SIDE)
        share_x, share_y, left, top = tile.map
        assert (share_x, share_y) == pytest.approx((SIDE / 100, SIDE / 130))
        row, column = round(top * 130), round(left * 100)
        assert torch.equal(tile.image, image[:, row : row + SIDE, column : column + SIDE])
        corners.add((row, column))
    assert {column for _, column in corners} == set(range(5))
    assert {row for row, _ in corners} == set(range(35))


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((50, 60), 64, (50, 60)), ((50, 60), 0, (50, 60)), ((50, 200), 64, (50, 64)), ((200, 50), 64, (64, 50))],
)
def test_a_smaller_image_keeps_what_it_has(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    tile = draw_tile(ramps(*size), side, seed=0, epoch=0, index=0)
    assert tile.image.shape[1:] == expected
    assert (tile.map == WHOLE) == (expected == size)


@pytest.mark.parametrize("epoch", range(5))
def test_views_show_the_places_of_the_image_that_their_maps_name(tmp_path: Path, epoch: int) -> None:
    save(ramps(400, 600), tmp_path / "images" / "a.png")
    sample = sample_of(tmp_path / "images", epoch)
    centers = cell_centers(32, 32)[None]
    for view in (QUERY, REFERENCE, MATCH):
        points = to_image(to_image(centers, sample.maps[view]), sample.tiles)[0].reshape(32, 32, 2)
        shown = sample.images[view, 0, :2].permute(1, 2, 0) / 255
        inner = slice(2, -2)  # antialiasing repeats the pixels at the border
        torch.testing.assert_close(shown[inner, inner], points[inner, inner], atol=0.006, rtol=0)


def test_objects_keep_their_size_and_a_large_jpeg_is_decoded_as_it_is(tmp_path: Path) -> None:
    """Stripes of two pixels vanish in a view of the whole image and survive in a view of a tile."""
    stripes = torch.zeros(3, 1024, 1024, dtype=torch.uint8)
    stripes[:, :, ::4] = 255
    stripes[:, :, 1::4] = 255
    (tmp_path / "images").mkdir()
    Image.fromarray(stripes.permute(1, 2, 0).numpy()).save(tmp_path / "images" / "a.jpg", quality=95)
    settings: dict[str, Any] = {"size": 64, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    tile = sample_of(tmp_path / "images", tiles=64, **settings)
    whole = sample_of(tmp_path / "images", tiles=0, **settings)
    assert tile.images[QUERY].float().std() > 100
    assert whole.images[QUERY].float().std() < 10


def test_id_maps_are_cut_like_the_image_and_grids_divide_the_tile(tmp_path: Path) -> None:
    save(ramps(400, 600), tmp_path / "images" / "a.png")
    ids = np.zeros((400, 600), dtype=np.uint8)
    ids[:200, :300], ids[:200, 300:], ids[200:, :300], ids[200:, 300:] = 1, 2, 3, 4
    (tmp_path / "maps").mkdir()
    Image.fromarray(ids).save(tmp_path / "maps" / "a.png")
    stored = RegionConfig(source="maps", maps=str(tmp_path / "maps"))
    seen = set()
    for epoch in range(20):
        sample = sample_of(tmp_path / "images", epoch, regions=stored)
        points = cell_centers(16, 16)[None]
        in_image = to_image(points, sample.tiles)[0]
        expected = (in_image[:, 0] >= 0.5).long() + 2 * (in_image[:, 1] >= 0.5).long()
        read = look_up(sample.regions, points)[0]
        assert (read == expected).float().mean() >= 0.9  # cells of the map at the boundary of two regions
        seen |= set(read.tolist())
        grid = sample_of(tmp_path / "images", epoch)
        assert torch.equal(grid.regions[0], torch.arange(16, dtype=torch.int16).reshape(4, 4))
        assert torch.equal(grid.tiles, sample.tiles)
    assert seen == {0, 1, 2, 3}


@pytest.fixture
def large_images(tmp_path: Path) -> Path:
    for number in range(12):
        torch.manual_seed(number)
        noise = torch.randint(0, 256, (3, 150, 200), dtype=torch.uint8)
        save(ramps(150, 200) // 2 + noise // 2, tmp_path / "large" / f"{number}.png")
    return tmp_path / "large"


def test_a_run_with_tiles_stops_and_continues_as_if_it_had_not(tiny: Tiny, large_images: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data__source": str(large_images), "data__held_out": 2, "views__tiles": 64}
    whole = plrc.pretrain(tiny(**settings, optim__steps=4, run__out=str(tmp_path / "whole")))
    config = tiny(**settings, optim__steps=4, run__out=str(tmp_path / "parts"))
    with after_steps(2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert not plrc.pretrain(config).finished
    parts = plrc.pretrain(config.with_values({"run.resume": True}))
    assert parts.finished
    assert_same(final(whole.path)["student"], final(parts.path)["student"])
    assert len(run_samples(whole.path, Config.load(whole.path / "config.toml"), 2).samples) == 2


def test_a_frozen_teacher_sees_the_tile_and_has_no_cache(
    tiny: Tiny, large_images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(build_backbone("resnet18").net.state_dict(), tmp_path / "teacher.safetensors")
    config = tiny(
        data__source=str(large_images),
        views__tiles=64,
        teacher__kind="frozen",
        teacher__backbone="resnet18",
        teacher__init=str(tmp_path / "teacher.safetensors"),
        teacher__size=64,
        teacher__components=8,
        optim__steps=1,
    )
    with caplog.at_level(logging.INFO):
        run = plrc.pretrain(config)
    assert "the teacher's features are computed in every step: views.tiles takes another tile each time" in caplog.text
    assert run.finished and not (run.path / "teacher").exists()


def test_small_objects_are_announced_with_the_tiles_that_would_show_them(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        save(ramps(600, 800), tmp_path / "huge" / f"{number}.png")
    settings: dict[str, Any] = {"data__source": str(tmp_path / "huge"), "views__scale": (0.2, 1.0), "optim__steps": 1}
    sentence = (
        "views of 32 px show the images (800 x 600 px, the median of 12) at 0.06 of their size: an object with a side "
        "below 134 px has less than 8 px in a view; for smaller objects, set views.tiles (41 shows objects at their "
        "own size) or raise views.size"
    )
    with caplog.at_level(logging.INFO):
        plrc.pretrain(tiny(**settings))
    assert sentence in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        plrc.pretrain(tiny(**settings, views__tiles=41, run__out=str(tmp_path / "tiles")))
    assert "of their size" not in caplog.text
    assert "views are cut from tiles of 41 x 41 px; 0 of 12 images that were looked at are not larger" in caplog.text
