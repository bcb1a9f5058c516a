"""From the options of `plrc pretrain` to a configuration, and to the names that the user set."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from plrc.cli.pretrain import parse_config
from plrc.config import Config, Method
from plrc.errors import PlrcError
from plrc.presets import PRESETS, preset


def test_options_lie_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 4\n[optim]\nlr = 0.5\nepochs = 7\n[views]\nsize = 96\nscale = [0.3, 1]\n")
    config = parse_config(
        [
            "--preset",
            "small_r18",
            "--config",
            str(file),
            "--optim.lr",
            "0.25",
            "--views.flip-prob=0",
            "--data",
            "photos",
        ]
    )
    assert config == preset("small_r18").with_values(
        {
            "seed": 4,
            "optim.lr": 0.25,
            "optim.epochs": 7.0,
            "views.size": 96,
            "views.scale": (0.3, 1.0),
            "views.flip_prob": 0.0,
            "data.source": "photos",
        }
    )
    assert config.pinned == {
        "seed",
        "optim.lr",
        "optim.epochs",
        "views.size",
        "views.scale",
        "views.flip_prob",
        "data.source",
    }


def test_a_file_can_name_preset_and_method(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "debug_cpu"\nmethod = "points"\n')
    config = parse_config(["--config", str(file)])
    assert config == preset("debug_cpu", "points") and config.pinned == {"preset", "method"}
    assert parse_config(["--config", str(file), "--preset", "small_r18"]) == preset("small_r18", "points")
    assert parse_config(["--config", str(file), "--method", "image"]) == preset("debug_cpu", "image")
    file.write_text("preset = 3\n")
    with pytest.raises(PlrcError, match="there is no preset 3"):
        parse_config(["--config", str(file)])


def test_a_file_alone_starts_from_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 0.5\n")
    assert parse_config(["--config", str(file)]) == Config().with_values({"optim.lr": 0.5})
    alone = parse_config(["--config", str(file), "--method", "image"])
    assert (alone.objectives.image_weight, alone.objectives.point_weight, alone.objectives.distill_weight) == (1, 0, 0)
    file.write_text("[optim]\nlearning_rate = 0.5\n")
    with pytest.raises(PlrcError, match=r"unknown setting optim.learning_rate"):
        parse_config(["--config", str(file)])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", get_args(Method))
def test_every_preset_and_method_arrives_unchanged(name: str, method: str) -> None:
    config = parse_config(["--preset", name, "--method", method])
    assert config == preset(name, method) and config.pinned == frozenset()


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        ("--data d", "data.source", "d"),
        ("--data.source d", "data.source", "d"),
        ("--out o", "run.out", "o"),
        ("--run.out=o", "run.out", "o"),
        ("--devices 4", "run.devices", 4),
        ("--resume", "run.resume", True),
        ("--run.resume", "run.resume", True),
        ("--no-resume", "run.resume", False),
        ("--run.no-resume", "run.resume", False),
        ("--no-adapt", "adapt", False),
        ("--optim.no-channels-last", "optim.channels_last", False),
        ("--optim.batch_size 12", "optim.batch_size", 12),
        ("--run.workers -1", "run.workers", -1),
        ("--data.rescale_percentiles 1 99", "data.rescale_percentiles", (1.0, 99.0)),
        ("--model.layer4-stride 1", "model.layer4_stride", 1),
    ],
)
def test_ways_to_write_an_option(written: str, name: str, value: object) -> None:
    config = parse_config(["--preset", "paper_r50", *written.split()])
    assert config == preset("paper_r50").with_values({name: value})
    assert config.pinned == {name}


def test_resuming_without_a_preset_takes_the_stored_configuration(tmp_path: Path) -> None:
    stored = preset("small_r18", "points").with_values({"optim.lr": 0.125, "preset": "from_a_later_version"})
    stored.save(tmp_path / "config.toml")
    config = parse_config(["--out", str(tmp_path), "--resume", "--run.threads", "3"])
    assert config == stored.with_values({"run.out": str(tmp_path), "run.resume": True, "run.threads": 3})
    assert config.pinned == set(config.flat())
    other = parse_config(["--out", str(tmp_path), "--resume", "--method", "image"])
    assert other.method == "image"
    assert other.objectives.point_weight == 0
    given = parse_config(["--out", str(tmp_path), "--resume", "--preset", "debug_cpu"])
    assert given.optim == preset("debug_cpu").optim
    assert given.pinned == {"run.out", "run.resume"}
