"""Pixels of figures, and real runs of a few seconds: a short run for the explorer; for the
verdicts a healthy run, a ruined run, and a run that does not learn."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tests.tiny import TINY

from plrc import pretrain
from plrc.errors import PlrcError
from plrc.presets import preset
from plrc.scenes import write_scenes
from plrc.visualize.figures import default_style

EVIL = ('<b>"x.jpg', "</script>.jpg", "{{ 7 * 7 }} & 'y'.jpg")  # the second lies in a folder named "<"


def figure_pixels(figure: Figure) -> NDArray[np.int64]:
    """A figure as it is written to a file: [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    with default_style():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(np.int64)


def tile_pixels(figure: Figure, index: int) -> NDArray[np.int64]:
    """The part of `figure_pixels` that an entry of the figure's axes covers."""
    pixels = figure_pixels(figure)
    box = figure.axes[index].get_window_extent()
    top = len(pixels) - round(box.y1)
    left = round(box.x0)
    return pixels[top : top + round(box.height), left : left + round(box.width)]


@dataclass(frozen=True)
class Trained:
    """A finished run of six steps with checkpoints 3 and 6, and a folder of images that it has not seen."""

    run: Path
    images: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    write_scenes(root / "data", {"train": 24, "test": 6}, seed=5, size=64)
    config = preset("debug_cpu").with_values(
        {
            **TINY,
            "data.source": str(root / "data" / "train" / "images"),
            "data.held_out": 2,
            "run.out": str(root / "run"),
            "run.checkpoint_every_steps": 3,
            "run.keep_checkpoints": 0,
            "optim.steps": 6,
            "model.strides": (8,),
        }
    )
    assert pretrain(config).finished
    images = root / "images"
    (images / "<").mkdir(parents=True)
    scenes = sorted((root / "data" / "test" / "images").iterdir())
    for scene, name in zip(scenes, [*EVIL, "plain.jpg", "other.jpg", "third.jpg"], strict=True):
        shutil.copy(scene, images / name)
    return Trained(root / "run", images)


@pytest.fixture(scope="session")
def runs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs of 70 steps, by name; "ruined" ended before, by its learning rate of 10."""
    root = tmp_path_factory.mktemp("runs")
    shared = {
        **TINY,
        "data.source": str(scenes),
        "data.held_out": 4,
        "run.log_every_steps": 2,
        "run.health_every_steps": 10,
        "run.checkpoint_every_steps": 70,
        "optim.steps": 70,
        "model.strides": (8,),
    }
    own: dict[str, tuple[str, dict[str, object]]] = {
        "healthy": ("plrc", {"optim.lr": 2e-3}),
        "ruined": ("plrc", {"optim.lr": 10.0, "optim.name": "sgd"}),
        "idle": ("points", {"optim.lr": 1e-7}),
    }
    for name, (method, settings) in own.items():
        config = preset("debug_cpu", method).with_values(shared | settings | {"run.out": str(root / name)})
        with pytest.raises(PlrcError, match="collapsed") if name == "ruined" else contextlib.nullcontext():
            pretrain(config)
    return {name: root / name for name in own}
