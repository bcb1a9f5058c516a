"""docs/STARTING.md: its commands are valid, and its numbers are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from plrc.cli.pretrain import parse_config
from plrc.config import Config
from plrc.data.teacher_cache import record_type

PAGE = (Path(__file__).parents[1] / "docs" / "STARTING.md").read_text(encoding="utf-8")


def test_every_command_is_valid() -> None:
    text = PAGE.replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^    plrc pretrain (.*)$", text, re.M)]
    configs = [parse_config(command) for command in commands]
    assert [config.preset for config in configs] == ["distill_r18", "adapt", "small_r18", "adapt", "distill_r18"]
    for config in configs:
        assert config.data.source == "photos/" and config.run.out.startswith("runs/")
        assert config.teacher.init or config.model.init
    assert configs[4].teacher.pixels == configs[3].data.pixels


def test_every_setting_exists() -> None:
    settings = Config().flat()
    named = re.findall(r"--((?:model|teacher|objectives|optim|data)\.[a-z-]+)", PAGE)
    assert len(named) > 20
    assert [name for name in named if name.replace("-", "_") not in settings] == []


def test_the_size_of_the_cache() -> None:
    teacher = Config().teacher
    bytes_per_image = record_type(teacher.components, teacher.size // teacher.stride).itemsize
    assert f"{bytes_per_image:,} bytes per image" in PAGE and f"`--teacher.components {teacher.components}`" in PAGE
    assert f"{bytes_per_image * 10_000 / 1e6:.0f} MB for 10,000 images" in PAGE
