"""Region ids: the grid, every kind of id map from a file, and one clear error for each file that cannot be used."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from plrc.config import Config, RegionConfig
from plrc.data.id_maps import RegionError, load_regions, save_regions
from plrc.data.orientation import turn
from plrc.data.regions import Regions, grid_regions
from plrc.data.sources import ImageList
from plrc.errors import ConfigError
from plrc.geometry import cell_centers, look_up

QUARTERS = np.kron(np.array([[0, 7], [300, 7]]), np.ones((40, 30), dtype=int))  # [80, 60]: ids 0 (unlabelled), 7, 300
COMPACT = torch.tensor([[-1, 0], [1, 0]], dtype=torch.int16).repeat_interleave(4, 0).repeat_interleave(4, 1)


def test_grid_numbers_its_cells_row_by_row() -> None:
    grid = grid_regions(4)
    assert grid.dtype == torch.int16
    assert torch.equal(grid.long(), torch.arange(16).reshape(4, 4))
    points = cell_centers(8, 8)
    expected = (points[:, 1] * 4).long() * 4 + (points[:, 0] * 4).long()
    assert torch.equal(look_up(grid[None], points[None])[0], expected)


def test_grid_refuses_more_cells_than_ids() -> None:
    assert grid_regions(181).max() == 181**2 - 1
    with pytest.raises(ConfigError, match="must be <= 181, got 182"):
        grid_regions(182)


def test_sixteen_bit_png(tmp_path: Path) -> None:
    Image.fromarray(QUARTERS.astype(np.uint16)).save(tmp_path / "a.png")
    ids = load_regions(tmp_path / "a.png", 8)
    assert ids.dtype == torch.int16
    assert torch.equal(ids, COMPACT)


def test_eight_bit_gray_palette_and_alpha_png_read_alike(tmp_path: Path) -> None:
    small = np.where(QUARTERS == 300, 9, QUARTERS).astype(np.uint8)
    gray = Image.fromarray(small)
    indexed = Image.fromarray(small, mode=None).convert("P")
    indexed.putdata(small.flatten().tolist())
    indexed.putpalette(list(np.random.default_rng(0).permutation(256).repeat(3)))
    transparent = Image.merge("LA", (gray, gray.point(lambda v: 255 - v)))
    for name, image, mode in (("gray", gray, "L"), ("indexed", indexed, "P"), ("transparent", transparent, "LA")):
        assert image.mode == mode
        image.save(tmp_path / f"{name}.png")
        assert torch.equal(load_regions(tmp_path / f"{name}.png", 8), COMPACT), name


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_each_color_of_an_rgb_png_is_a_region(tmp_path: Path, mode: str) -> None:
    colors = np.zeros((*QUARTERS.shape, 3), dtype=np.uint8)
    colors[QUARTERS == 7] = (0, 5, 200)
    colors[QUARTERS == 300] = (1, 5, 200)
    Image.fromarray(colors).convert(mode).save(tmp_path / "a.png")
    assert torch.equal(load_regions(tmp_path / "a.png", 8), COMPACT)


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.int32])
def test_numpy_files_mark_unlabelled_by_negative_ids(tmp_path: Path, dtype: type) -> None:
    ids = (QUARTERS - 1).astype(dtype)
    ids[:3] *= 5  # other negative ids are unlabelled too
    ids[:40, 30:] = 6
    np.save(tmp_path / "a.npy", ids)
    np.savez_compressed(tmp_path / "a.npz", regions=ids, other=np.zeros(3))
    for name in ("a.npy", "a.npz"):
        assert torch.equal(load_regions(tmp_path / name, 8), COMPACT)


def test_zero_is_a_region_in_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", QUARTERS)
    assert torch.equal(load_regions(tmp_path / "a.npy", 8), COMPACT + 1)


def test_reduction_reads_the_cell_centers(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 10_000, (37, 53))
    np.save(tmp_path / "a.npy", ids)
    small = load_regions(tmp_path / "a.npy", 16)
    expected = look_up(torch.from_numpy(ids)[None], cell_centers(16, 16)[None])[0].reshape(16, 16)
    names = {int(a): int(b) for a, b in zip(small.flatten(), expected.flatten(), strict=True)}
    assert torch.equal(torch.tensor([[names[int(v)] for v in row] for row in small]), expected)
    assert sorted(names) == list(range(len(names)))


def test_small_maps_are_enlarged(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[3, -1]]))
    assert load_regions(tmp_path / "a.npy", 4).tolist() == [[0, 0, -1, -1]] * 4


def test_an_unlabelled_map_is_unlabelled(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "a.png")
    assert (load_regions(tmp_path / "a.png", 4) == -1).all()


def test_more_regions_than_ids_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(200 * 200).reshape(200, 200))
    with pytest.raises(RegionError, match="40000 regions"):
        load_regions(tmp_path / "a.npy", 200)


class Planted:
    """A pickle that would leave a mark if it were loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    for save, name in ((np.save, "a.npy"), (np.savez, "a.npz")):
        save(tmp_path / name, np.array([[Planted(tmp_path / "mark")]], dtype=object))
        with pytest.raises(RegionError, match=name):
            load_regions(tmp_path / name, 4)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "array", [np.ones((4, 4)), np.ones((4, 4, 3), dtype=int), np.ones((0, 4), dtype=int), np.array(3)]
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(RegionError, match=r"whole numbers of shape \[height, width\]"):
        load_regions(tmp_path / "a.npy", 4)


@pytest.mark.parametrize("ending", [".png", ".npz", ".npy"])
def test_broken_files_end_in_one_sentence(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    good = np.random.default_rng(0).integers(0, 255, (64, 64))
    if ending == ".png":
        Image.fromarray(good.astype(np.uint8)).save(path)
    else:
        (np.save if ending == ".npy" else np.savez_compressed)(path, good)
    whole = path.read_bytes()
    for broken in (b"", b"not an image", whole[: len(whole) // 2], whole[:40]):
        path.write_bytes(broken)
        with pytest.raises(RegionError, match="cannot read the id map"):
            load_regions(path, 4)


def test_an_empty_npz_and_other_endings_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz")
    with pytest.raises(RegionError, match="no array"):
        load_regions(tmp_path / "a.npz", 4)
    with pytest.raises(RegionError, match="its ending must be one of"):
        load_regions(tmp_path / "a.tif", 4)


def listed(root: Path, *names: str) -> ImageList:
    return ImageList(str(root), names, "folder")


def test_maps_are_found_beside_their_images_names(tmp_path: Path) -> None:
    config = Config(regions=RegionConfig(source="maps", maps=str(tmp_path), map_size=8))
    (tmp_path / "b").mkdir()
    Image.fromarray(QUARTERS.astype(np.uint16)).save(tmp_path / "b" / "c.1.png")
    np.savez(tmp_path / "d.npz", QUARTERS - 1)
    np.save(tmp_path / "e.npy", QUARTERS - 1)
    names = ("b/c.1.jpg", "d.jpeg", "e.tiff", "b/missing.jpg", "/elsewhere/f.jpg")
    regions = Regions(config, listed(tmp_path, *names))
    for position in range(3):
        assert torch.equal(regions(position), COMPACT)
    with pytest.raises(RegionError, match=re.escape(f"write {tmp_path / 'b' / 'missing.png'} (or .npz, .npy)")):
        regions(3)
    with pytest.raises(RegionError, match="lies outside the source's folder"):
        regions(4)


def maps_of(folder: Path) -> Regions:
    return Regions(Config(regions=RegionConfig(source="maps", maps=str(folder), map_size=8)), listed(folder, "a.jpg"))


def save_turned(path: Path, orientation: int) -> None:
    """A photo of 120 x 90 stored pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.zeros((90, 120, 3), dtype=np.uint8)).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("ending", [".png", ".npy"])
def test_maps_of_the_stored_pixels_are_turned_with_the_image(tmp_path: Path, orientation: int, ending: str) -> None:
    save_turned(tmp_path / "a.jpg", orientation)
    stored = np.kron(np.array([[0, 7], [300, 9]]), np.ones((45, 60), dtype=int))
    shown = turn(stored, orientation)
    assert shown.shape == (120, 90)
    results = []
    for ids in (stored, shown):
        if ending == ".png":
            Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "a.png")
        else:
            np.save(tmp_path / "a.npy", ids - 1)
        results.append(maps_of(tmp_path)(0))
    assert torch.equal(results[0], results[1])
    assert len(results[0].unique()) == 4


def test_a_square_map_fits_every_image_and_another_shape_is_refused(tmp_path: Path) -> None:
    save_turned(tmp_path / "a.jpg", 6)
    save_regions(tmp_path / "a.png", COMPACT)
    assert torch.equal(maps_of(tmp_path)(0), COMPACT)
    Image.fromarray(np.ones((60, 120), dtype=np.uint8)).save(tmp_path / "a.png")
    sentence = "a.png has 120 x 60 pixels, the image has 90 x 120; write the map in the shape of the image, or as a sq"
    with pytest.raises(RegionError, match=sentence):
        maps_of(tmp_path)(0)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    config = Config(regions=RegionConfig(source="maps", maps=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match=r"regions\.maps is .*absent, which is not a folder; name the one with"):
        Regions(config, listed(tmp_path, "a.jpg"))


def test_the_grid_needs_no_files() -> None:
    regions = Regions(Config(regions=RegionConfig(grid=3)), listed(Path("absent"), "any.jpg"))
    assert torch.equal(regions(0), grid_regions(3))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    ids = torch.arange(-1, 181**2 - 1).reshape(181, 181).flip(0).to(torch.int16)
    save_regions(tmp_path / "a" / "b.png", ids)
    assert torch.equal(load_regions(tmp_path / "a" / "b.png", 181), ids)


def test_real_masks(real_data: Path) -> None:
    path = next((real_data / "coco128" / "semantic" / "train2017").glob("*.png"))
    ids = load_regions(path, 64)
    full = np.asarray(Image.open(path))
    assert ids.shape == (64, 64)
    assert ids.max() < len(np.unique(full))
    assert abs(float((ids == -1).float().mean()) - (full == 0).mean()) < 0.05
