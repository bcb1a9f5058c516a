"""Id maps in advance: resumable after any end, never of two settings, and the same regions when trained on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plrc.config import Config, DataConfig, RegionConfig
from plrc.data.id_maps import load_regions
from plrc.data.region_precompute import PrecomputeReport, precompute_regions
from plrc.data.regions import Regions
from plrc.data.sources import find_images
from plrc.engine.checkpoint import newest_checkpoint
from plrc.engine.pretrain import pretrain
from plrc.errors import DataError


def configured(photos: Path, **regions: Any) -> Config:
    return Config(data=DataConfig(source=str(photos)), regions=RegionConfig(**{"source": "slic"} | regions))


def write(config: Config, out: Path, workers: int = 0) -> PrecomputeReport:
    return precompute_regions(config, find_images(config.data), out, workers)


def maps_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def check_same(config: Config, out: Path) -> None:
    """The maps are the regions that are made while training."""
    images = find_images(config.data)
    made = Regions(config, images)
    for position, name in enumerate(images.names):
        read = load_regions((out / name).with_suffix(".png"), config.regions.map_size)
        assert torch.equal(read, made(position)), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [{"source": "felzenszwalb", "jitter": 0.02}, {"source": "boxes"}])
def test_maps_are_the_regions_of_the_source(scenes: Path, tmp_path: Path, workers: int, settings: Any) -> None:
    config = configured(scenes, **settings)
    calls: list[tuple[int, int]] = []

    def on_progress(done: int, total: int, line: str = "") -> None:
        calls.append((done, total))

    report = precompute_regions(config, find_images(config.data), tmp_path / "maps", workers, on_progress)
    assert report == PrecomputeReport(48, 0, ())
    assert calls == [(done, 48) for done in range(1, 49)]
    check_same(config, tmp_path / "maps")


def test_training_on_them_is_training_on_the_source(tiny: Callable[..., Config], tmp_path: Path) -> None:
    first = tiny(run__out=str(tmp_path / "slic"), regions__source="slic", regions__map_size=32)
    write(first, tmp_path / "maps")
    maps = {"source": "maps", "maps": str(tmp_path / "maps"), "map_size": 32}
    runs = [first, tiny(run__out=str(tmp_path / "read"), **{f"regions__{k}": v for k, v in maps.items()})]
    runs.append(tiny(run__out=str(tmp_path / "grid")))
    weights = []
    for config in runs:
        checkpoint = newest_checkpoint(pretrain(config).path)
        assert checkpoint is not None
        weights.append(torch.load(checkpoint, weights_only=True)["student"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_what_exists_is_skipped(scenes: Path, tmp_path: Path) -> None:
    config, out = configured(scenes), tmp_path / "maps"
    write(config, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    gone = sorted(before)[5:8]
    for path in gone:
        path.unlink()
    again = write(config, out)
    assert again == PrecomputeReport(3, 45, ())
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] != before[path]} == set(gone)
    done = write(config, out)
    assert done == PrecomputeReport(0, 48, ())
    assert "48 id maps were there, 0 to do" in done.table()


@pytest.fixture(scope="module")
def many(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 images in nested folders."""
    root = tmp_path_factory.mktemp("many")
    for copy in range(4):
        shutil.copytree(scenes, root / f"{copy % 3}" / f"{copy}")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_precomputation_is_resumed(many: Path, tmp_path: Path, end: signal.Signals) -> None:
    out = tmp_path / "maps"
    arguments = ["--data", many, "--regions.source", "slic", "--out", out, "--workers", "2"]
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may ignore it
        "from plrc.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "regions", "precompute", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(maps_in(out)) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, end)  # the loader processes too: they ignore SIGINT, SIGKILL ends them in the middle
    messages = process.communicate(timeout=60)[1]
    if end == signal.SIGINT:
        assert (process.returncode, messages) == (130, "plrc: interrupted\n")
    present = len(maps_in(out))
    assert 10 <= present < 192
    config = configured(many)
    assert write(config, out) == PrecomputeReport(192 - present, present, ())
    check_same(config, out)


def test_unreadable_images_are_named_and_the_rest_is_made(scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(scenes, photos)
    (photos / "000003.jpg").write_bytes(b"broken")
    report = write(configured(photos), tmp_path / "maps")
    assert (report.written, report.present, [name for name, _ in report.unusable]) == (47, 0, ["000003.jpg"])
    assert re.search(r"^unusable +000003\.jpg: not an image", report.table(), re.MULTILINE)
    assert write(configured(photos), tmp_path / "maps").written == 0
    for path in photos.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of the 48 images can be used; the first, 000000\.jpg: not an image"):
        write(configured(photos), tmp_path / "others")


def test_other_settings_are_refused(scenes: Path, tmp_path: Path) -> None:
    config, out = configured(scenes, source="voronoi"), tmp_path / "maps"
    write(config, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    for change, difference in (
        ({"regions.count": 8}, "regions.count: stored 16, now 8"),
        ({"regions.jitter": 0.1}, "regions.jitter: stored 0.0, now 0.1"),
        ({"seed": 1}, "seed: stored 0, now 1"),
        ({"data.source": str(tmp_path / "other")}, f"images: stored {scenes}, now {tmp_path / 'other'}"),
    ):
        if not (tmp_path / "other").exists():
            shutil.copytree(scenes, tmp_path / "other")
        with pytest.raises(DataError, match=re.escape(f"({difference}); name another --out")):
            write(config.with_values(change), out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_of_something_else_is_refused(scenes: Path, tmp_path: Path) -> None:
    for content in (None, "nonsense", "[]", json.dumps({"seed": 0})):
        (tmp_path / "notes.txt").write_text("mine")
        if content is not None:
            (tmp_path / "regions.json").write_text(content)
        with pytest.raises(
            DataError, match=r"is not empty and holds no regions\.json of plrc regions; name a new folder"
        ):
            write(configured(scenes), tmp_path)
    assert not maps_in(tmp_path)


def test_two_images_with_one_map_are_refused(scenes: Path, tmp_path: Path) -> None:
    image = next(scenes.iterdir())
    for name in ("a.jpg", "a.jpeg"):
        shutil.copy(image, tmp_path / name)
    with pytest.raises(DataError, match=r"images a\.jpeg and a\.jpg would share the id map .*a\.png; rename one"):
        write(configured(tmp_path), tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_images_outside_of_the_folder_have_no_map(scenes: Path, tmp_path: Path) -> None:
    outside, inside = sorted(scenes.iterdir())[:2]
    shutil.copy(inside, tmp_path / "in.jpg")
    (tmp_path / "list.txt").write_text(f"{outside}\nin.jpg\n")
    report = write(configured(tmp_path / "list.txt"), tmp_path / "maps")
    assert report.written == 1
    assert report.unusable[0][0] == str(outside)
    assert "lies outside the source's folder" in report.unusable[0][1]


def test_a_folder_in_the_place_of_a_map(scenes: Path, tmp_path: Path) -> None:
    """What ends the run travels from a worker as one sentence."""
    config, out = configured(scenes), tmp_path / "maps"
    write(config, out)
    (out / "000000.png").unlink()
    (out / "000000.png").mkdir()
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^cannot write .*000000\.png: Is a directory$"):
            write(config, out, workers)


def test_real_photos(real_data: Path, tmp_path: Path) -> None:
    config = configured(real_data / "coco128" / "train2017", source="felzenszwalb")
    assert write(config, tmp_path / "maps", workers=1) == PrecomputeReport(128, 0, ())
    sizes = [path.stat().st_size for path in (tmp_path / "maps").glob("*.png")]
    assert np.mean(sizes) < 3000
