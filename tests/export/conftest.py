"""The one real run that the tests of exports share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.export.runs import small_config

import plrc


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> plrc.Run:
    """A ResNet-18 after two small steps. Tests add exports to its folder and change nothing else in it."""
    out = tmp_path_factory.mktemp("r18") / "run"
    return plrc.pretrain(small_config(scenes, out, "resnet18", **{"optim.lr": 0.002, "seed": 5}))
