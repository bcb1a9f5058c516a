"""Every source of regions on real images: ids, determinism, what the noise settings do, and one clear error each."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from plrc.config import Config, DataConfig, RegionConfig
from plrc.data.decode import decode
from plrc.data.id_maps import RegionError
from plrc.data.loader import DeviceLoader, ViewDataset
from plrc.data.masks import read_coco_masks
from plrc.data.regions import Regions, box_regions, grid_regions, voronoi_regions
from plrc.data.sampler import StepSampler
from plrc.data.sources import ImageList, find_images
from plrc.errors import DataError, MissingPackageError
from plrc.scenes import render_scene

SOURCES = ("grid", "voronoi", "boxes", "slic", "felzenszwalb", "maps", "coco")
NOISE = {"merge": 0.2, "split": 0.2, "jitter": 0.02, "reassign": 0.1}


@pytest.fixture(scope="session")
def id_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The objects of the scenes as PNG id maps."""
    folder = tmp_path_factory.mktemp("maps")
    for index in range(48):
        Image.fromarray(render_scene(3, index, 64).masks.astype(np.uint8)).save(folder / f"{index:06d}.png")
    return folder


def configured(scenes: Path, id_maps: Path, source: str, **settings: Any) -> Config:
    maps = {"maps": str(id_maps), "coco": str(scenes.parent / "annotations.json")}.get(source, "")
    regions = RegionConfig(**{"source": source, "maps": maps} | settings)
    return Config(data=DataConfig(source=str(scenes)), regions=regions)


def regions_of(config: Config) -> Regions:
    return Regions(config, find_images(config.data))


def check_ids(ids: torch.Tensor) -> None:
    known = ids.unique().tolist()
    assert ids.dtype == torch.int16
    assert known == list(range(known[0], known[0] + len(known)))
    assert known[0] in (-1, 0)


@pytest.mark.parametrize("noise", [{}, NOISE], ids=["plain", "noisy"])
@pytest.mark.parametrize("source", SOURCES)
def test_ids_are_contiguous_and_the_same_every_time(scenes: Path, id_maps: Path, source: str, noise: Any) -> None:
    config = configured(scenes, id_maps, source, **noise)
    first, second = regions_of(config), regions_of(config)
    for position in (0, 7, 31):
        ids = first(position)
        check_ids(ids)
        assert ids.shape == ((4, 4) if source == "grid" and not noise else (64, 64))
        assert torch.equal(second(position), ids)
        assert bool((ids == -1).any()) == (source in ("boxes", "maps", "coco"))


@pytest.mark.parametrize("source", ["slic", "felzenszwalb", "coco", "voronoi"])
def test_real_photos(real_data: Path, source: str) -> None:
    folder = real_data / "coco128"
    maps = str(folder / "annotations" / "instances_train2017.json")
    regions = RegionConfig(source=source, maps=maps if source == "coco" else "")  # type: ignore[arg-type]
    images = find_images(DataConfig(source=maps))
    made = Regions(Config(regions=regions), images)
    counts = []
    for position in images.evenly_spaced(12):
        check_ids(made(position))
        counts.append(int(made(position).max()) + 1)
    assert len(images) == 100
    if source != "coco":
        assert 8 <= np.mean(counts) <= 40


def test_every_random_and_noisy_map_is_another_one(scenes: Path, id_maps: Path) -> None:
    for config in (configured(scenes, id_maps, "voronoi"), configured(scenes, id_maps, "grid", reassign=0.1)):
        maps = [regions_of(config)(position) for position in (0, 1)]
        maps.append(regions_of(config.with_values({"seed": 1}))(0))
        assert not any(torch.equal(a, b) for a, b in ((maps[0], maps[1]), (maps[0], maps[2]), (maps[1], maps[2])))


@pytest.mark.parametrize("source", ["voronoi", "slic"])
def test_regions_do_not_depend_on_the_other_images_or_the_views(scenes: Path, id_maps: Path, source: str) -> None:
    config = configured(scenes, id_maps, source, jitter=0.02)
    whole = find_images(config.data)
    few = ImageList(whole.root, whole.names[20:22], whole.layout)
    other = config.with_values({"views.size": 448, "objectives.distill_weight": 0.0})
    assert torch.equal(Regions(config, whole)(21), Regions(other, few)(1))


@pytest.mark.parametrize("source", ["slic", "boxes"])
def test_regions_do_not_depend_on_epoch_or_workers(scenes: Path, id_maps: Path, source: str) -> None:
    config = configured(scenes, id_maps, source, reassign=0.1).with_values({"views.size": 32})
    images = find_images(config.data)
    made = Regions(config, images)
    for workers in (0, 2):
        dataset = ViewDataset(images, np.arange(len(images)), config)
        sampler = StepSampler(len(images), 24, 1, seed=0, start=0, stop=4)
        batches = list(DeviceLoader(dataset, sampler, workers, torch.device("cpu")))
        for keys, batch in zip(sampler, batches, strict=True):
            assert torch.equal(batch.regions, torch.stack([made(index) for _, index in keys]))


def test_noise_reaches_the_grid_at_the_size_of_a_map(scenes: Path, id_maps: Path) -> None:
    plain = regions_of(configured(scenes, id_maps, "grid", grid=5))(0)
    assert torch.equal(plain, grid_regions(5))
    noisy = regions_of(configured(scenes, id_maps, "grid", grid=5, map_size=50, reassign=0.2))(0)
    large = plain.repeat_interleave(10, 0).repeat_interleave(10, 1)
    assert float((noisy != large).float().mean()) == pytest.approx(0.2 * (1 - 1 / 25), abs=0.03)


def test_the_share_of_reassigned_cells_of_a_map(scenes: Path, id_maps: Path) -> None:
    changed = []
    for position in range(24):
        before = regions_of(configured(scenes, id_maps, "voronoi"))(position)
        after = regions_of(configured(scenes, id_maps, "voronoi", reassign=0.4))(position)
        changed.append(float((before != after).float().mean()))
    assert np.mean(changed) == pytest.approx(0.4 * (1 - 1 / 16), abs=0.01)


def test_voronoi_cells_are_nearest_sites() -> None:
    ids = voronoi_regions(9, 20, np.random.default_rng(4))
    sites = np.random.default_rng(4).random((9, 2))
    for row, column in np.ndindex(20, 20):
        place = (np.array([row, column]) + 0.5) / 20
        assert ids[row, column] == min(range(9), key=lambda i: ((sites[i] - place) ** 2).sum())


def test_random_boxes_are_boxes_with_the_small_ones_on_top() -> None:
    covered = []
    for seed in range(30):
        ids = box_regions(6, 64, np.random.default_rng(seed))
        covered.append((ids >= 0).mean())
        areas = []
        for i in np.unique(ids[ids >= 0]):
            rows, columns = np.nonzero(ids == i)
            window = ids[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            areas.append((window.size, i))
            assert (window >= 0).all()  # what is missing of a box lies under another one
            assert 0.05 <= window.shape[0] / 64 <= 0.52
    assert 0.2 < np.mean(covered) < 0.6


def test_superpixels_follow_the_colors(tmp_path: Path) -> None:
    """A blue disc on sand: the regions hardly mix the two."""
    picture = Image.new("RGB", (200, 120), (200, 180, 140))
    ImageDraw.Draw(picture).ellipse((40, 20, 120, 100), fill=(30, 60, 160))
    picture.save(tmp_path / "a.jpg", quality=95)
    disc = np.asarray(picture.resize((64, 64), Image.Resampling.NEAREST))[..., 2] > 150
    for source in ("slic", "felzenszwalb"):
        config = Config(data=DataConfig(source=str(tmp_path)), regions=RegionConfig(source=source))
        ids = regions_of(config)(0).numpy()
        mixed = sum(min(np.sum(disc & (ids == i)), np.sum(~disc & (ids == i))) for i in range(ids.max() + 1))
        assert mixed / ids.size < 0.03, source


def test_slic_gives_about_as_many_regions_as_asked_for(scenes: Path, id_maps: Path) -> None:
    for count in (8, 32, 128):
        regions = regions_of(configured(scenes, id_maps, "slic", count=count))
        mean_count = np.mean([int(regions(position).max()) + 1 for position in range(8)])
        assert mean_count == pytest.approx(count, rel=0.35)


def test_a_larger_scale_gives_fewer_segments(scenes: Path, id_maps: Path) -> None:
    counts = []
    for scale in (30.0, 200.0, 2000.0):
        regions = regions_of(configured(scenes, id_maps, "felzenszwalb", scale=scale))
        counts.append(sum(int(regions(position).max()) + 1 for position in range(8)))
    assert counts[0] > 1.5 * counts[1] > 3 * counts[2]


@pytest.mark.parametrize("source", ["slic", "felzenszwalb"])
def test_without_scikit_image(scenes: Path, id_maps: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    sentence = r"^superpixels need scikit-image; install with: pip install scikit-image$"
    with pytest.raises(MissingPackageError, match=sentence):
        regions_of(configured(scenes, id_maps, source))


def test_an_unreadable_image_is_replaced_and_named(scenes: Path, tmp_path: Path) -> None:
    for path in sorted(scenes.iterdir())[:4]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000001.jpg").write_bytes(b"broken")
    config = Config(data=DataConfig(source=str(tmp_path)), regions=RegionConfig(source="slic"))
    dataset = ViewDataset(find_images(config.data), np.arange(4), config.with_values({"views.size": 32}))
    batch = dataset[0, 1]
    assert [name for name, _ in batch.failures] == ["000001.jpg"]
    assert torch.equal(batch.regions[0], dataset.regions(2))


# COCO files


def box(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco(path: Path, images: list[str], *objects: dict[str, Any]) -> Path:
    entries = [{"id": i, "file_name": name, "height": 40, "width": 80} for i, name in enumerate(images)]
    path.write_text(json.dumps({"images": entries, "annotations": [{"image_id": 0, **o} for o in objects]}))
    return path


def listed(*names: str) -> ImageList:
    return ImageList("/data/photos", names, "folder")


def test_small_masks_lie_on_large_ones_and_all_on_crowds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "plrc")
    run_lengths = {"size": [40, 80], "counts": [40 * 60, 40 * 20]}  # the columns from 60 on
    annotations = [
        {"segmentation": box(20, 0, 10, 20)},
        {"segmentation": box(0, 0, 40, 40)},
        {"segmentation": run_lengths, "iscrowd": 1},
        {"segmentation": box(70, 0, 10, 40)},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": []},
        {},
    ]
    path = coco(tmp_path / "a.json", ["a.jpg"], *annotations)
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg")
    images = ImageList(str(tmp_path), ("a.jpg",), "folder")
    objects = read_coco_masks(path, images).objects("a.jpg", 8)
    assert objects.tolist() == [[2, 2, 1, 2, 0, 0, -1, 4]] * 4 + [[2, 2, 2, 2, 0, 0, -1, 4]] * 4
    config = Config(regions=RegionConfig(source="coco", maps=str(path), map_size=8))
    ids = Regions(config, images)(0)
    assert ids.tolist() == [[1, 1, 0, 1, -1, -1, -1, 2]] * 4 + [[1, 1, 1, 1, -1, -1, -1, 2]] * 4
    lines = {record.getMessage().removeprefix(f"{path}: ") for record in caplog.records}
    assert lines == {
        "crowds, whose pixels belong to no region, left out: 1 (a.json annotation 2)",
        "objects without a mask, dropped: 2 (a.json annotation 5, a.json annotation 6)",
    }


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_masks_of_the_stored_pixels_are_turned_with_the_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:20, :20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    path = coco(tmp_path / "a.json", ["a.png"], {"segmentation": box(0, 0, 20, 20)})
    images = ImageList(str(tmp_path), ("a.png",), "folder")
    objects = read_coco_masks(path, images).objects("a.png", 8)
    if orientation == 3:  # both sizes are the same: the masks are those of the image as shown
        assert objects[:4, :2].all()
    else:
        shown = F.interpolate(decode(tmp_path / "a.png")[None, :1].float(), (8, 8))[0, 0]
        assert ((shown > 128).numpy() == (objects > 0)).all()
    assert objects.sum() == 8


def test_masks_of_another_shape_than_the_image_are_refused(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", ["a.jpg"], {"segmentation": box(0, 0, 20, 20)})
    Image.new("RGB", (50, 50)).save(tmp_path / "a.jpg")
    images = ImageList(str(tmp_path), ("a.jpg",), "folder")
    with pytest.raises(RegionError, match=r"states 80 x 40 pixels for a\.jpg, the image has 50 x 50"):
        read_coco_masks(path, images).objects("a.jpg", 8)
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg")
    assert read_coco_masks(path, images).objects("a.jpg", 8).sum() == 8


def test_masks_are_those_of_the_scene(scenes: Path, id_maps: Path) -> None:
    by_coco, by_map = (regions_of(configured(scenes, id_maps, source)) for source in ("coco", "maps"))
    assert all(torch.equal(by_coco(position), by_map(position)) for position in range(48))


def test_an_entry_belongs_to_the_image_with_whose_path_it_ends(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", ["photos/a.jpg", "./b/a.jpg", "a.jpg", "c.jpg"], {"segmentation": box(0, 0, 9, 9)})
    masks = read_coco_masks(path, listed("a.jpg", "b/a.jpg", "deep/er/a.jpg", "dc.jpg"))
    has_masks = {name: json.loads(entry)[2] != [] for name, entry in masks.entries.items()}
    assert has_masks == {"a.jpg": True, "b/a.jpg": False, "deep/er/a.jpg": False}
    with pytest.raises(RegionError, match=r"a\.json does not list image dc\.jpg; add it there, or leave it out"):
        masks.objects("dc.jpg", 8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory); name a COCO file"),
        ("nonsense", "is not readable JSON"),
        ("[]", "is not a COCO file of instances"),
        ('{"images": []}', 'is not a COCO file of instances: it has no list "annotations"'),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "segmentation": [[1, 2]]}]}',
            "lists the image a.jpg without height and width, which its masks need",
        ),
        ('{"images": [], "annotations": [{"image_id": 1, "segmentation": [[1, 2]], "iscrowd": 1}]}', "has no masks"),
        (
            '{"images":[{"id":1,"file_name":"a"}],"annotations":[{"image_id":1,"segmentation":[1],"iscrowd":1}]}',
            "has masks of crowds only (1 annotations with iscrowd 1), and a crowd is no object; name a COCO file",
        ),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}', "has no masks"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} .*{re.escape(sentence)}"):
        Regions(Config(regions=RegionConfig(source="coco", maps=str(path))), listed("a.jpg"))


def test_a_file_of_other_images(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", ["a.jpg"], {"segmentation": box(0, 0, 9, 9)})
    with pytest.raises(DataError, match=r"lists none of the 2 images, such as b\.jpg; name its images"):
        read_coco_masks(path, listed("b.jpg", "c.jpg"))
    with pytest.raises(DataError, match=r"lists a\.jpg once, but test/a\.jpg and train/a\.jpg both fit"):
        read_coco_masks(path, listed("test/a.jpg", "train/a.jpg"))


def test_masks_without_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = coco(tmp_path / "a.json", ["a.jpg"], {"segmentation": box(0, 0, 9, 9)})
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(
        MissingPackageError, match=r"^masks need faster-coco-eval; install with: pip install faster-coco-eval$"
    ):
        read_coco_masks(path, listed("a.jpg"))
