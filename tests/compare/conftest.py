"""A comparison with simulated scores, and the lines that a grid logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
from tests.compare.simulation import simulated_comparison

from plrc.compare.plan import ComparisonPlan
from plrc.model.backbone import build_backbone
from plrc.scenes import write_scenes


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., ComparisonPlan]:
    """build(changes of ComparisonPlan) -> random, good and bad weights at two fractions with two seeds."""
    return partial(simulated_comparison, tmp_path)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that plrc logs for the user; `log.messages` are the lines."""
    caplog.set_level(logging.INFO, "plrc")
    return caplog


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real file of ResNet-18 weights, and labelled scenes next to it."""
    path = tmp_path_factory.mktemp("weights") / "theirs.safetensors"
    safetensors.torch.save_file(build_backbone("resnet18").net.state_dict(), path)
    write_scenes(path.with_name("labels"), {"train": 4, "val": 2, "test": 2}, seed=0, size=64)
    return path
