"""Settings: every refusal names its setting, and a configuration survives the way to TOML and back."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plrc.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RegionConfig,
    RunConfig,
    TeacherConfig,
    ViewConfig,
)
from plrc.errors import ConfigError, PlrcError
from plrc.presets import preset
from plrc.settings import Settings, read_toml
from plrc.transfer.protocols import TransferConfig

SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "views": ViewConfig,
    "regions": RegionConfig,
    "model": ModelConfig,
    "teacher": TeacherConfig,
    "objectives": ObjectiveConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("data", {"held_out": -1}, "data.held_out"),
    ("data", {"rescale_percentiles": (99.0, 1.0)}, "data.rescale_percentiles"),
    ("data", {"rescale_percentiles": (-1.0, 99.0)}, "data.rescale_percentiles"),
    ("data", {"rescale_percentiles": (1.0, 101.0)}, "data.rescale_percentiles"),
    ("data", {"max_megapixels": 0.0}, "data.max_megapixels"),
    ("data", {"max_unreadable_fraction": 1.5}, "data.max_unreadable_fraction"),
    ("data", {"max_unreadable_fraction": -0.1}, "data.max_unreadable_fraction"),
    ("views", {"size": 15}, "views.size"),
    ("views", {"tiles": -1}, "views.tiles"),
    ("views", {"tiles": 15}, "views.tiles"),
    ("views", {"scale": (0.0, 1.0)}, "views.scale"),
    ("views", {"scale": (0.2, 1.1)}, "views.scale"),
    ("views", {"ratio": (4 / 3, 3 / 4)}, "views.ratio"),
    ("views", {"blur_sigma": (0.0, 2.0)}, "views.blur_sigma"),
    *[
        ("views", {name: value}, f"views.{name}")
        for name in (
            "flip_prob",
            "overlap",
            "jitter_prob",
            "gray_prob",
            "blur_prob",
            "brightness",
            "contrast",
            "saturation",
        )
        for value in (-0.1, 1.1, math.nan)
    ],
    ("views", {"hue": 0.6}, "views.hue"),
    ("views", {"hue": -0.1}, "views.hue"),
    ("views", {"overlap_tries": 0}, "views.overlap_tries"),
    ("regions", {"grid": 0}, "regions.grid"),
    ("regions", {"map_size": 3}, "regions.map_size"),
    ("regions", {"source": "maps"}, "regions.maps"),
    ("regions", {"source": "coco"}, "regions.maps"),
    ("regions", {"count": 0}, "regions.count"),
    ("regions", {"count": 17, "map_size": 4}, "regions.count"),
    ("regions", {"scale": 0.0}, "regions.scale"),
    *[
        ("regions", {name: value}, f"regions.{name}")
        for name in ("merge", "split", "jitter", "reassign")
        for value in (-0.1, 1.1, math.nan)
    ],
    *[
        ("model", {name: 0}, f"model.{name}")
        for name in ("contrast_hidden", "contrast_dim", "distill_hidden", "distill_dim", "bn_groups")
    ],
    ("model", {"backbone": "timm:resnet18", "layer4_stride": 1}, "model.layer4_stride"),
    ("objectives", {"point_weight": -0.1}, "objectives.point_weight"),
    *[("model", {"strides": strides}, "model.strides") for strides in ((), (0,), (16, 8), (8, 8))],
    *[("teacher", {name: -1}, f"teacher.{name}") for name in ("stride", "size", "components", "cache_gigabytes")],
    *[
        ("objectives", {f"{name}_temperature": 0.0}, f"objectives.{name}_temperature")
        for name in ("image", "point", "student", "teacher")
    ],
    ("objectives", {"teacher_temperature_start": 0.0}, "objectives.teacher_temperature_start"),
    ("objectives", {"temperature_warmup": 1.1}, "objectives.temperature_warmup"),
    ("objectives", {"temperature_warmup": -0.1}, "objectives.temperature_warmup"),
    *[("objectives", {name: 0}, f"objectives.{name}") for name in ("queue", "points", "distill_points")],
    ("objectives", {"reference_grid": -1}, "objectives.reference_grid"),
    ("optim", {"lr": 0.0}, "optim.lr"),
    ("optim", {"lr": math.nan}, "optim.lr"),
    ("optim", {"base_batch_size": 0}, "optim.base_batch_size"),
    ("optim", {"momentum": 1.0}, "optim.momentum"),
    ("optim", {"momentum": -0.1}, "optim.momentum"),
    ("optim", {"weight_decay": -1e-4}, "optim.weight_decay"),
    ("optim", {"batch_size": 0}, "optim.batch_size"),
    ("optim", {"gradient_accumulation_steps": 0}, "optim.gradient_accumulation_steps"),
    ("optim", {"batch_size": 10, "gradient_accumulation_steps": 3}, "optim.gradient_accumulation_steps"),
    ("optim", {"steps": -1}, "optim.steps"),
    ("optim", {"epochs": 0.0}, "optim.epochs"),
    ("optim", {"warmup_epochs": -1.0}, "optim.warmup_epochs"),
    ("optim", {"max_grad_norm": -1.0}, "max_grad_norm"),
    ("optim", {"teacher_momentum": 1.1}, "optim.teacher_momentum"),
    ("optim", {"teacher_momentum": -0.1}, "optim.teacher_momentum"),
    *[
        ("run", {name: 0}, f"run.{name}")
        for name in ("log_every_steps", "health_every_steps", "checkpoint_every_steps", "devices")
    ],
    ("run", {"workers": -2}, "run.workers"),
    ("run", {"keep_checkpoints": -1}, "run.keep_checkpoints"),
    ("run", {"threads": -1}, "run.threads"),
]


@pytest.mark.parametrize(("section", "values", "named"), REFUSED)
def test_a_setting_that_cannot_be_used_is_refused_by_its_name(section: str, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**values)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_any_term_is_refused() -> None:
    nothing = ObjectiveConfig(image_weight=0.0, point_weight=0.0, distill_weight=0.0)
    with pytest.raises(ConfigError, match=r"at least one of objectives\.\*_weight must be > 0"):
        Config(objectives=nothing)
    assert Config(objectives=nothing, teacher=TeacherConfig(kind="frozen")).distills_frozen_teacher


@pytest.mark.parametrize("value", [[8.0], [], "8", [True], [8, "16"], 0.5])
def test_strides_are_one_or_several_integers(value: object) -> None:
    with pytest.raises(ConfigError, match=r"model\.strides must be one or several"):
        Config().with_values({"model.strides": value})
    assert Config().with_values({"model.strides": 8}).model.strides == (8,)
    assert Config().with_values({"model.strides": [8, 16]}).model.strides == (8, 16)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed must be >= 0, got -1"):
        Config(seed=-1)


def test_a_config_error_is_a_plrc_error() -> None:
    assert issubclass(ConfigError, PlrcError)


def unusual() -> Config:
    """A configuration in which every setting differs from its default."""
    changed: dict[str, Any] = {}
    for name, value in Config().flat().items():
        if isinstance(value, bool):
            changed[name] = not value
        elif isinstance(value, float):
            changed[name] = value + 0.01 if value < 0.98 else value - 0.25
        elif name == "model.strides":
            changed[name] = (4, 8, 16)
        elif name == "run.loggers":
            changed[name] = ("wandb", "mlflow")
        elif isinstance(value, tuple) and value:
            changed[name] = (value[0] + 0.1, value[1] - 0.1)
        elif isinstance(value, int):
            changed[name] = value + 2
        else:
            changed[name] = 'a "quoted" \\ path\nof Überlingen'
    changed |= {
        "data.layout": "voc",
        "data.pages": "all",
        "data.mean": (0.4, 0.5, 0.6, 0.4, 0.4),
        "data.std": (0.2, 0.25, 0.3, 0.2, 0.2),
        "regions.source": "maps",
        "teacher.kind": "frozen",
        "teacher.form": "relational",
        "teacher.mean": (0.4, 0.5, 0.6),
        "teacher.std": (0.2, 0.25, 0.3),
        "model.layer4_stride": 1,
        "views.tiles": 290,
        "objectives.contrast": "region",
        "objectives.negatives": "image",
        "optim.name": "adamw",
        "optim.gradient_accumulation_steps": 3,
        "optim.teacher_schedule": "cosine",
        "optim.clock": "cpu",
        "optim.precision": "float16",
        "method": "points",
    }
    return Config().with_values(changed)


@pytest.mark.parametrize("config", [Config(), unusual()], ids=["defaults", "every setting changed"])
def test_toml_brings_a_configuration_back_unchanged(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config.save(path)
    assert Config.load(path) == config
    assert Config.from_dict(config.to_dict()) == config


def test_the_unusual_configuration_leaves_no_setting_at_its_default() -> None:
    default, changed = Config().flat(), unusual().flat()
    assert [name for name in default if default[name] == changed[name]] == []


def test_plain_values_hold_nothing_but_what_toml_knows() -> None:
    for section in Config().to_dict().values():
        for value in section.values() if isinstance(section, dict) else [section]:
            assert type(value) in (str, int, float, bool, list)


def test_settings_that_a_file_leaves_out_come_from_the_base(tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    path.write_text("seed = 7\n[optim]\nlr = 1\n", encoding="utf-8")
    base = Config(optim=OptimConfig(batch_size=64))
    assert Config.load(path, base) == replace(base, seed=7, optim=OptimConfig(batch_size=64, lr=1.0))
    assert type(Config.load(path).optim.lr) is float


@pytest.mark.parametrize(
    ("unknown", "suggested"),
    [
        ({"optim": {"lrr": 1.0}}, "optim.lrr; did you mean optim.lr?"),
        ({"lr": 1.0}, "lr; did you mean optim.lr?"),
        ({"optimiser": {"lr": 1.0}}, "optimiser.lr; did you mean optim.lr?"),
        ({"views": {"grid": 3}}, "views.grid; did you mean regions.grid?"),
        ({"sead": 3}, "sead; did you mean seed?"),
        ({"optim": 3}, "unknown setting optim;"),
        ({"seed": {"x": 3}}, "unknown setting seed.x; did you mean seed?"),
        ({"optim.lr": {"x": 3}}, "unknown setting optim.lr.x;"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest_name(unknown: dict[str, Any], suggested: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(unknown)
    assert suggested in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("optim.lr", "0.1", "a number"),
        ("optim.lr", True, "a number"),
        ("optim.lr", math.inf, "a number"),
        ("optim.batch_size", 2.0, "an integer"),
        ("optim.batch_size", True, "an integer"),
        ("optim.channels_last", 1, "true or false"),
        ("data.source", 3, "a string"),
        ("optim.precision", "fp16", "one of auto, float32, bfloat16, float16"),
        ("model.layer4_stride", 3, "one of 1, 2"),
        ("model.layer4_stride", True, "one of 1, 2"),
        ("regions.source", ["grid"], "one of grid, voronoi, boxes, slic, felzenszwalb, maps, coco, shards"),
        ("method", "dino", "one of image, pixel, region, points, plrc"),
        ("views.scale", 0.2, "two numbers [a, b]"),
        ("views.scale", [0.2], "two numbers [a, b]"),
        ("views.scale", [0.2, "1"], "two numbers [a, b]"),
        ("views.scale", [False, True], "two numbers [a, b]"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config().with_values({name: value})
    assert str(caught.value) == f"{name} must be {expected}, got {value!r}"


def test_values_are_set_by_dotted_name() -> None:
    base = Config(data=DataConfig(source="images"))
    config = base.with_values({"optim.lr": 1, "views.scale": [0.1, 1], "seed": 3})
    assert config == Config(
        data=DataConfig(source="images"), optim=OptimConfig(lr=1.0), views=ViewConfig(scale=(0.1, 1.0)), seed=3
    )
    assert base == Config(data=DataConfig(source="images"))


def test_small_presets_train_all_levels_of_a_pyramid_and_the_paper_s_do_not() -> None:
    for name in ("small_r18", "distill_r18", "adapt"):
        config = preset(name)
        assert (config.model.strides, config.model.layer4_stride) == ((8, 16, 32), 2), name
    assert not preset("small_r18").views.teacher_color
    assert preset("paper_r50").views.teacher_color
    assert preset("paper_r50").model.strides == (32,)


def test_chosen_values_are_pinned_and_derived_ones_are_not(tmp_path: Path) -> None:
    chosen = Config().with_values({"optim.lr": Config().optim.lr, "seed": 3})
    derived = chosen.with_values({"optim.batch_size": 8}, pin=False)
    assert chosen.pinned == derived.pinned == {"optim.lr", "seed"} and derived.optim.batch_size == 8
    assert replace(derived, optim=OptimConfig()).pinned == chosen.pinned
    assert preset("small_r18", "points").pinned == frozenset()
    chosen.save(tmp_path / "all.toml")
    assert Config.load(tmp_path / "all.toml").pinned == chosen.flat().keys()
    (tmp_path / "few.toml").write_text("adapt = false\n[views]\nsize = 64\n")
    assert Config.load(tmp_path / "few.toml", chosen).pinned == chosen.pinned | {"adapt", "views.size"}


def test_what_is_pinned_is_neither_compared_nor_stored() -> None:
    pinned, plain = Config().with_values({"seed": 0}), Config()
    assert pinned == plain and hash(pinned) == hash(plain) and repr(pinned) == repr(plain)
    assert pinned.differences(plain) == []
    assert "pinned" not in {*pinned.flat(), *pinned.result_settings(), *pinned.to_dict()}


@pytest.mark.parametrize("settings", [Config, TransferConfig])
def test_old_names_are_refused_with_the_new_ones(settings: type[Settings], tmp_path: Path) -> None:
    known = settings().flat()
    for old, new in settings.RENAMED.items():
        assert old not in known and new in known
        sentence = rf"^{re.escape(old)} is now called {re.escape(new)}$"
        with pytest.raises(ConfigError, match=sentence):
            settings().with_values({old: 1})
        section, _, key = old.partition(".")
        (tmp_path / "old.toml").write_text(f"[{section}]\n{key} = 1\n")
        with pytest.raises(ConfigError, match=sentence):
            settings.load(tmp_path / "old.toml")


def test_every_setting_that_was_renamed_is_known() -> None:
    assert " ".join(sorted(Config.RENAMED)) == (
        "data.bad_limit data.percentiles model.stride objectives.lattice optim.accumulate optim.clip_norm "
        "optim.lr_batch views.area views.aspect views.blur views.flip views.grey views.jitter"
    )
    assert " ".join(sorted(TransferConfig.RENAMED)) == (
        "input.flip model.finest model.rois optim.clip_norm optim.drops optim.iterations optim.warmup "
        "run.checkpoint_every run.log_every"
    )


@pytest.mark.parametrize(
    ("name", "old", "choices"),
    [
        ("objectives.contrast", "regions", "points, region, pixel"),
        ("objectives.contrast", "pixels", "points, region, pixel"),
        ("optim.precision", "fp32", "auto, float32, bfloat16, float16"),
        ("optim.precision", "bf16", "auto, float32, bfloat16, float16"),
    ],
)
def test_old_values_are_refused_with_the_choices(name: str, old: str, choices: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be one of {choices}, got '{old}'$"):
        Config().with_values({name: old})


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_need_each_other_may_come_in_any_order(order: int) -> None:
    values = [
        ("regions.source", "maps"),
        ("regions.maps", "ids"),
        ("optim.batch_size", 9),
        ("optim.gradient_accumulation_steps", 3),
    ]
    config = Config(optim=OptimConfig(batch_size=256, gradient_accumulation_steps=4)).with_values(dict(values[::order]))
    assert config.regions == RegionConfig(source="maps", maps="ids")
    assert (config.optim.batch_size, config.optim.gradient_accumulation_steps) == (9, 3)


def test_a_refused_value_is_refused_by_with_values_too() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr must be > 0, got -1"):
        Config().with_values({"optim.lr": -1})


def test_differences_name_what_changes_numbers_and_ignore_the_run_section() -> None:
    mine = Config(seed=1, optim=OptimConfig(lr=0.1), run=RunConfig(out="a", workers=0, device="cpu"))
    other = Config(seed=2, optim=OptimConfig(lr=0.1, epochs=3.0), run=RunConfig(out="b", workers=4, resume=True))
    assert mine.differences(other) == [("optim.epochs", 100.0, 3.0), ("seed", 1, 2)]
    assert mine.differences(replace(mine, run=other.run)) == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        read_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize("content", [b"optim = = 3", b"\xff\xfe\x00"], ids=["syntax", "not text"])
def test_a_file_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        Config.load(path)
