"""The checks before the first step, as pure functions: no folder, no image, no process."""

from __future__ import annotations

from pathlib import Path

import pytest

from plrc.config import Config
from plrc.engine.checks import (
    check_batch_norm,
    check_cache,
    check_missing_images,
    check_required,
    check_resumed,
    describe_random_start,
)
from plrc.errors import ConfigError, DataError, RunError
from plrc.presets import preset

OUT = Path("runs/first")


def small(**settings: object) -> Config:
    values: dict[str, object] = {"optim.batch_size": 8, "model.bn_groups": 2, "views.size": 32, "model.strides": (8,)}
    return preset("debug_cpu").with_values(values | {name.replace("__", "."): v for name, v in settings.items()})


def test_images_and_run_folder_are_required() -> None:
    with pytest.raises(ConfigError, match=r"^no images named: write --data FOLDER"):
        check_required(small(run__out="x"))
    with pytest.raises(ConfigError, match=r"^no run folder named: write --out FOLDER$"):
        check_required(small(data__source="x"))
    check_required(small(data__source="x", run__out="x"))


def test_batch_norm_gets_statistics_that_mean_something() -> None:
    assert check_batch_norm(small(), processes=1, device_type="cpu") == []
    (leak,) = check_batch_norm(small(model__bn_groups=1), processes=1, device_type="cpu")
    assert "leak" in leak
    assert check_batch_norm(small(model__bn_groups=1), processes=2, device_type="cpu") == []
    (alone,) = check_batch_norm(small(model__bn_groups=8), processes=1, device_type="cpu")
    assert "hold one image" in alone
    with pytest.raises(ConfigError, match=r"^model\.bn_groups must be <= 4, .* got 8$"):
        check_batch_norm(small(model__bn_groups=8, optim__gradient_accumulation_steps=2), 1, "cpu")
    with pytest.raises(ConfigError, match="one image, one position"):
        check_batch_norm(small(model__bn_groups=8, model__strides=(32,), model__layer4_stride=2), 1, "cpu")
    with pytest.raises(ConfigError, match=r"^model\.sync_bn is set, but PyTorch"):
        check_batch_norm(small(model__sync_bn=True), processes=2, device_type="cpu")


def test_the_cache_is_for_folders() -> None:
    assert check_cache(small(), sharded=True) == []
    (remark,) = check_cache(small(run__cache="cache"), sharded=False)
    assert remark == f"decoded images are kept in {Path('cache').resolve()}"
    with pytest.raises(ConfigError, match=r"^run\.cache keeps images of folders only"):
        check_cache(small(run__cache="cache"), sharded=True)


def test_a_resumed_run_computes_what_the_stored_one_would_have() -> None:
    stored = small()
    check_resumed(stored.with_values({"run.workers": 7}), stored, [], OUT)
    changed = stored.with_values({"optim.lr": 0.5})
    with pytest.raises(RunError, match=r"optim\.lr: stored 0\.001, now 0\.5; 3 images have changed\): resume without"):
        check_resumed(changed, stored, ["3 images have changed"], OUT)
    check_resumed(changed.with_values({"run.allow_changes": True}), stored, ["3 images have changed"], OUT)


def test_a_tenth_of_the_images_may_be_missing() -> None:
    sizes = {str(index): -1 if index < 2 else 100 for index in range(20)}
    check_missing_images(small(), sizes, "photos", OUT)
    with pytest.raises(DataError, match=r"^3 of the 20 images of runs/first/manifest\.json are missing from photos"):
        check_missing_images(small(), sizes | {"5": -1}, "photos", OUT)


@pytest.mark.parametrize(
    ("backbone", "init", "remarks"),
    [
        ("timm:resnet18.a1_in1k", "", 1),
        ("timm:hf-hub:timm/resnet18", "", 1),
        ("timm:resnet18", "", 0),
        ("timm:resnet18.a1_in1k", "pretrained", 0),
        ("resnet18", "", 0),
    ],
)
def test_a_name_of_trained_weights_that_starts_random_is_remarked(backbone: str, init: str, remarks: int) -> None:
    lines = describe_random_start(
        small(model__backbone=backbone, model__init=init, model__strides=(32,), model__layer4_stride=2)
    )
    assert len(lines) == remarks
    for line in lines:
        assert line == (
            f"training starts from random weights, though model.backbone {backbone} names trained ones; write "
            "--model.init pretrained to start from them"
        )
