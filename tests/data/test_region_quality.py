"""The measures of regions: equal to loops over pixels, and falling as the quality knobs turn."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plrc.config import Config, DataConfig, RegionConfig
from plrc.data.region_quality import QualityReport, mean_best_iou, measure_quality, same_object_share
from plrc.data.sources import ImageList, find_images
from plrc.errors import DataError
from plrc.scenes import render_scene


def slow_best_iou(regions: np.ndarray, objects: np.ndarray) -> float:
    known = [tuple(place) for place in np.argwhere(objects >= 0)]
    best = []
    for thing in {int(objects[p]) for p in known} - {0}:
        on = {p for p in known if objects[p] == thing}
        shares = [0.0]
        for region in {int(regions[p]) for p in known} - {-1}:
            inside = {p for p in known if regions[p] == region}
            shares.append(len(on & inside) / len(on | inside))
        best.append(max(shares))
    return sum(best) / len(best) if best else math.nan


def slow_same_object(regions: np.ndarray, objects: np.ndarray) -> float:
    places = [tuple(p) for p in np.argwhere((objects >= 0) & (regions >= 0))]
    pairs = [(int(objects[p]), int(objects[q])) for p, q in combinations(places, 2) if regions[p] == regions[q]]
    counted = [a == b for a, b in pairs if a or b]
    return sum(counted) / len(counted) if counted else math.nan


@pytest.mark.parametrize("seed", range(12))
def test_both_measures_equal_slow_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions = rng.integers(-1, rng.integers(1, 6), (7, 9))
    objects = rng.integers(-1, rng.integers(1, 5), (7, 9))
    assert mean_best_iou(regions, objects) == pytest.approx(slow_best_iou(regions, objects), nan_ok=True)
    assert same_object_share(regions, objects) == pytest.approx(slow_same_object(regions, objects), nan_ok=True)


def test_perfect_and_useless_regions() -> None:
    objects = np.kron(np.array([[0, 1], [2, 0]]), np.ones((5, 5), dtype=int))
    assert mean_best_iou(objects - 1, objects) == 1
    assert same_object_share(objects - 1, objects) == 1
    one = np.zeros((10, 10), dtype=int)
    assert mean_best_iou(one, objects) == pytest.approx(0.25)
    assert same_object_share(one, objects) == pytest.approx(
        2 * math.comb(25, 2) / (math.comb(100, 2) - math.comb(50, 2))
    )
    assert mean_best_iou(one - 1, objects) == 0
    assert math.isnan(same_object_share(one - 1, objects))
    assert math.isnan(mean_best_iou(one, one))
    assert math.isnan(same_object_share(one, one))


def test_maps_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        mean_best_iou(np.zeros((4, 4), dtype=int), np.zeros((4, 5), dtype=int))


def quality(scenes: Path, truth: Path | None = None, **regions: object) -> QualityReport:
    config = Config(data=DataConfig(source=str(scenes)), regions=RegionConfig(**regions))  # type: ignore[arg-type]
    images = find_images(config.data)
    return measure_quality(
        config, images, str(truth or scenes.parent / "annotations.json"), images.evenly_spaced(24), lambda *_: None
    )


@pytest.mark.parametrize("source", ["coco", "slic"])
@pytest.mark.parametrize(
    ("knob", "shares"),
    [
        ("merge", (0.2, 0.5, 0.9)),
        ("split", (0.3, 0.6, 1.0)),
        ("jitter", (0.02, 0.05, 0.1)),
        ("reassign", (0.1, 0.3, 0.6)),
    ],
)
def test_quality_falls_as_a_knob_turns(scenes: Path, source: str, knob: str, shares: tuple[float, ...]) -> None:
    maps = {"maps": str(scenes.parent / "annotations.json")} if source == "coco" else {}
    reports = [quality(scenes, source=source, **maps, **{knob: share}) for share in (0.0, *shares)]
    best = [report.best_iou for report in reports]
    same = [report.same_object for report in reports]
    assert best == sorted(best, reverse=True)
    assert best[-1] < 0.85 * best[0]
    if knob != "split":  # halves of a pure region are pure
        assert same == sorted(same, reverse=True)
        assert same[-1] < 0.85 * same[0]


def test_better_sources_measure_better(scenes: Path) -> None:
    truth = quality(scenes, source="coco", maps=str(scenes.parent / "annotations.json"))
    slic, voronoi = quality(scenes, source="slic"), quality(scenes, source="voronoi")
    assert (truth.best_iou, truth.same_object) == (1, 1)  # scenes of 64 pixels, maps of 64 cells
    assert truth.best_iou > slic.best_iou + 0.2 > voronoi.best_iou + 0.2
    assert truth.same_object > slic.same_object + 0.2 > voronoi.same_object + 0.2
    assert voronoi.regions == 16


def test_truth_may_be_a_folder_of_id_maps(scenes: Path, tmp_path: Path) -> None:
    """Every second image is measured; images without objects, without a map or with a broken map are left out."""
    for index in range(48):
        Image.fromarray(render_scene(3, index, 64).masks.astype(np.uint8)).save(tmp_path / f"{index:06d}.png")
    by_map, by_coco = quality(scenes, tmp_path), quality(scenes)
    assert by_map == by_coco
    Image.fromarray(np.zeros((64, 64), dtype=np.uint8)).save(tmp_path / "000002.png")
    (tmp_path / "000004.png").write_bytes(b"broken")
    for index in range(22, 48):
        (tmp_path / f"{index:06d}.png").unlink()
    fewer = quality(scenes, tmp_path)
    assert (fewer.images, fewer.empty) == (9, 1)
    assert fewer.unknown == tuple(f"{index:06d}.jpg" for index in range(22, 48, 2))
    assert [name for name, _ in fewer.unusable] == ["000004.jpg"]
    lines = fewer.table().splitlines()
    assert lines[0].split() == "images 9, and 1 without objects, which do not count".split()
    assert "images that the truth does not know: 13 (000022.jpg, 000024.jpg, 000026.jpg, ...)" in lines[-2]
    assert "000004.jpg: cannot read the id map" in lines[-1]


def test_nothing_to_measure_is_one_sentence(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"none of the 24 images has objects in {tmp_path}")):
        quality(scenes, tmp_path)
    with pytest.raises(DataError, match=r"absent\.json cannot be read"):
        quality(scenes, tmp_path / "absent.json")


def test_crowds_count_as_unlabelled(tmp_path: Path) -> None:
    """The left half is an object, the upper right quarter a crowd: what regions do there is not measured."""
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    square = lambda x, y, w, h: [[x, y, x + w, y, x + w, y + h, x, y + h]]  # noqa: E731
    table = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "categories": [],
        "annotations": [
            {"image_id": 1, "segmentation": square(0, 0, 32, 64)},
            {"image_id": 1, "segmentation": square(32, 0, 32, 32), "iscrowd": 1},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(table))
    np.save(tmp_path / "a.npy", np.array([[0, 0], [0, 1]]))
    config = Config(regions=RegionConfig(source="maps", maps=str(tmp_path / "maps"), map_size=4))
    (tmp_path / "maps").mkdir()
    (tmp_path / "a.npy").rename(tmp_path / "maps" / "a.npy")
    images = ImageList(str(tmp_path), ("a.png",), "folder")
    report = measure_quality(config, images, str(tmp_path / "truth.json"), [0])
    assert (report.best_iou, report.same_object) == (1, 1)


def test_real_photos(real_data: Path) -> None:
    folder = real_data / "coco128"
    truth = folder / "annotations" / "instances_train2017.json"
    reports = {s: quality(folder / "train2017", truth, source=s) for s in ("voronoi", "slic", "felzenszwalb")}
    assert reports["slic"].best_iou > reports["voronoi"].best_iou
    assert reports["felzenszwalb"].best_iou > reports["voronoi"].best_iou
    assert reports["slic"].same_object > reports["voronoi"].same_object
    assert all(q.images + q.empty + len(q.unknown) == 24 for q in reports.values())
