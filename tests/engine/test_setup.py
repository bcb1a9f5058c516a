"""Before the first step: what is adapted and what is kept, the images of a resumed run, devices."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import plrc
from plrc.config import Config
from plrc.data.scan import scan
from plrc.engine.setup import prepare
from plrc.errors import PlrcError
from plrc.runtime import choose_device

Tiny = Callable[..., Config]
RESUME = {"run.resume": True}


@pytest.fixture
def copied(tiny: Tiny, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration on a folder of images of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(scenes, tmp_path / "images")
    return tiny(data__source=str(tmp_path / "images"))


def images(config: Config) -> list[Path]:
    return sorted(Path(config.data.source).glob("*.jpg"))


# Adapted settings


def test_what_is_set_in_python_is_never_adapted(tiny: Tiny) -> None:
    config = tiny(adapt=True, optim__lr=0.0123, optim__steps=1)
    run = plrc.pretrain(config)
    stored = Config.load(run.path / "config.toml")
    assert stored == config.with_values({"optim.precision": "float32", "optim.teacher_momentum": 0.9})
    again = plrc.pretrain(stored.with_values(RESUME))
    assert again.finished and Config.load(run.path / "config.toml") == stored


def test_a_preset_that_is_not_ours_is_compared_with_the_defaults(tiny: Tiny) -> None:
    config = tiny(adapt=True, optim__lr=0.0123, optim__steps=1, preset="mine")
    assert Config.load(plrc.pretrain(config).path / "config.toml").optim.lr == 0.0123


def test_resuming_adapts_nothing_twice(tiny: Tiny) -> None:
    config = tiny(adapt=True).with_values({"optim.steps": 0, "optim.epochs": 1.0}, pin=False)
    first = prepare(config).config
    assert {"optim.lr", "optim.epochs"} <= {name for name, _, _ in first.differences(config)}
    stored = Config.load(Path(config.run.out) / "config.toml")
    for given in (config, stored):
        plan = prepare(given.with_values(RESUME))
        assert plan.config == first.with_values(RESUME) and not any("adapted" in remark for remark in plan.remarks)
    with pytest.raises(PlrcError, match=r"optim\.lr: stored 0\.0005, now 0\.25"):
        prepare(stored.with_values(RESUME | {"optim.lr": 0.25}))


def test_rate_and_groups_follow_a_changed_batch(tiny: Tiny) -> None:
    config = plrc.preset("debug_cpu").with_values({"adapt": True}, pin=False)
    pinned = {name: value for name, value in tiny().flat().items() if name in ("data.source", "run.out", "run.device")}
    config = config.with_values(pinned | {"optim.batch_size": 16})
    first = prepare(config)
    assert (first.config.model.bn_groups, first.config.optim.lr) == (2, pytest.approx(1e-3 * 0.5**0.5, rel=1e-5))
    smaller = config.with_values(RESUME | {"optim.batch_size": 8})
    with pytest.raises(PlrcError, match=r"optim\.batch_size: stored 16, now 8"):
        prepare(smaller)
    plan = prepare(smaller.with_values({"run.allow_changes": True}))
    assert (plan.config.model.bn_groups, plan.config.optim.lr) == (1, pytest.approx(1e-3 * 0.25**0.5, rel=1e-5))
    assert [remark for remark in plan.remarks if remark.startswith("adapted")] == [
        "adapted optim.lr: 0.001 -> 0.0005 (square root of the batch: 8 / 32)",
        "adapted model.bn_groups: 4 -> 1 (8 images at a time: groups of at least 8)",
    ]
    same_batch = prepare(config.with_values(RESUME | {"run.allow_changes": True, "optim.batch_size": 16}))
    assert same_batch.config.objectives.queue == plan.config.objectives.queue == first.config.objectives.queue


def test_precision_is_settled_once_and_stored(tiny: Tiny) -> None:
    config = tiny()
    assert config.optim.precision == "auto" and prepare(config).config.optim.precision == "float32"
    file = Path(config.run.out) / "config.toml"
    Config.load(file).with_values({"optim.precision": "bfloat16"}).save(file)
    assert prepare(config.with_values(RESUME)).config.optim.precision == "bfloat16"
    with pytest.raises(PlrcError, match=r"optim\.precision: stored bfloat16, now float32"):
        prepare(config.with_values(RESUME | {"optim.precision": "float32"}))


# Images of a resumed run


def test_scan_and_new_files_between_stop_and_resume_change_nothing(copied: Config) -> None:
    image = images(copied)[7]
    image.write_bytes(image.read_bytes()[:500])
    before = prepare(copied)
    shutil.copy(images(copied)[0], image.with_name("new.jpg"))
    assert scan(copied.data).unusable[0][0] == image.name
    manifest = (before.out / "manifest.json").read_bytes()
    after = prepare(copied.with_values(RESUME))
    assert after.images == before.images and (before.out / "manifest.json").read_bytes() == manifest
    assert after.train.tolist() == before.train.tolist() and after.held_out.tolist() == before.held_out.tolist()
    changed = copied.with_values(RESUME | {"data.held_out": 2, "run.allow_changes": True})
    anew = prepare(changed)
    assert "new.jpg" in anew.images.names and image.name not in anew.images.names
    assert prepare(changed.with_values({"run.allow_changes": False})).images.names == anew.images.names


def test_files_that_are_gone_are_left_to_the_loop_until_they_are_too_many(copied: Config) -> None:
    before = prepare(copied)
    first = before.images.path(int(before.train[0]))
    Path(first).unlink()
    assert prepare(copied.with_values(RESUME)).images == before.images
    shutil.rmtree(copied.data.source)
    with pytest.raises(PlrcError, match=r"^44 of the 44 images of .*manifest\.json are missing from .*; restore them$"):
        prepare(copied.with_values(RESUME))


def test_a_changed_image_is_refused_by_name(copied: Config) -> None:
    prepare(copied)
    size = images(copied)[3].stat().st_size
    images(copied)[3].write_bytes(b"other")
    sentence = rf"{images(copied)[3].name} had {size} bytes in manifest\.json, now 5 \(1 images have changed\)"
    with pytest.raises(PlrcError, match=sentence):
        prepare(copied.with_values(RESUME))
    allowed = prepare(copied.with_values(RESUME | {"run.allow_changes": True}))
    assert len(allowed.train) == 44
    prepare(copied.with_values(RESUME))


def test_other_images_are_refused(copied: Config, scenes: Path) -> None:
    prepare(copied.with_values({"data.source": str(scenes)}))
    images(copied)[0].rename(images(copied)[0].with_stem("renamed"))
    with pytest.raises(PlrcError, match=r"data\.source: stored .*; the images are not those of manifest\.json"):
        prepare(copied.with_values(RESUME))


# Devices


@pytest.mark.parametrize("name", ["mps:0", "meta", "xpu", "hpu", "cpu:1", "cuda:-1", "tpu", ""])
def test_devices_that_do_not_serve_are_refused(name: str) -> None:
    with pytest.raises(PlrcError, match=rf"^run\.device must be auto, cpu, cuda, cuda:N or mps, got '{name}'$"):
        choose_device(name)


@pytest.mark.parametrize(
    ("variables", "gpus", "expected"),
    [
        ({}, 4, 0),
        ({"SLURM_LOCALID": "2"}, 4, 2),
        ({"SLURM_LOCALID": "2"}, 1, 0),
        ({"SLURM_LOCALID": "0", "LOCAL_RANK": "3"}, 4, 3),
    ],
)
def test_each_process_takes_its_own_gpu(
    variables: dict[str, str], gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.device] = []
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert choose_device("auto") == torch.device("cuda", expected)
    assert taken == [torch.device("cuda", expected)]


def test_settings_of_regions_that_change_nothing_are_told(tiny: Callable[..., Config]) -> None:
    told = {
        method: any("change nothing" in text for text in prepare(config).remarks)
        for method in ("image", "pixel", "points")
        for config in [tiny(method, regions__grid=3, run__out=str(Path(tiny().run.out) / method))]
    }
    assert told == {"image": True, "pixel": True, "points": False}
