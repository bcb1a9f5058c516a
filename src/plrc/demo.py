"""A short pre-training on generated scenes, compared with the random network that it started from.

It writes OUT/scenes (images with labels; pre-training reads only the images), OUT/run (a run folder like any other,
with report.html), OUT/affinity.png and OUT/result.json.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from plrc.api import pretrain
from plrc.config import Config, ModelConfig, ObjectiveConfig, OptimConfig, RunConfig, ViewConfig
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint
from plrc.engine.learner import Learner
from plrc.errors import RunError
from plrc.measures.grouping import grouping_auc
from plrc.model import Backbone
from plrc.progress import OnProgress, ignore_progress
from plrc.scenes import Scene, render_scene, scene_names, write_scenes
from plrc.transfer.probe import extract_features, probe_backbone
from plrc.visualize import affinity_figure, affinity_rows, save_figure

logger = logging.getLogger(__name__)

IMAGES = 3000
SIZE = 96  # pixels
LABELLED = 100  # scenes to fit the probe on, and as many others to score it
PICTURES = 2
SCENES_SEED = 0
PROBE_SEED = 1


def demo_config(out: Path, steps: int) -> Config:
    """Return the demo's configuration: ResNet-18 at stride 8 on 64-pixel crops, minutes on a CPU."""
    return Config(
        preset="demo",
        adapt=False,
        views=ViewConfig(size=64),
        model=ModelConfig(backbone="resnet18", strides=(8,), contrast_hidden=256, distill_hidden=256),
        objectives=ObjectiveConfig(
            image_weight=0.0, point_weight=1.0, distill_weight=1.0, negatives="image", reference_grid=0
        ),
        optim=OptimConfig(
            name="adamw",
            lr=2e-3,
            base_batch_size=64,
            weight_decay=0.05,
            batch_size=64,
            steps=steps,
            teacher_momentum=0.99,
        ),
        run=RunConfig(out=str(out / "run"), resume=True, checkpoint_every_steps=100, health_every_steps=100),
    ).with_values({"data.source": str(out / "scenes" / "train" / "images"), "data.held_out": 32})


def run_demo(
    out: Path, steps: int, images: int = IMAGES, on_progress: OnProgress = ignore_progress
) -> dict[str, dict[str, float]]:
    """Run the demo.

    Args:
        out: Folder to write into: empty, absent, or that of a stopped demo.
        steps: Optimizer steps.
        images: Number of scenes to pre-train on.
        on_progress: Called while the network trains.

    Returns:
        {"random" or "plrc": {"miou", "accuracy", "grouping_auc"}}, each a share from 0 to 1.

    Raises:
        RunError: The folder holds something else, or the run was stopped.
    """
    scenes_folder = out / "scenes"
    partial = out / ".scenes.partial"
    if not scenes_folder.exists():
        if out.exists() and any(path != partial for path in out.iterdir()):
            raise RunError(f"{out} is not empty and holds no demo; name another --out")
        kinds = len(scene_names())
        logger.info("1/4 rendering %d scenes with %d kinds of objects into %s", images, kinds, scenes_folder)
        write_scenes(scenes_folder, {"train": images}, seed=SCENES_SEED, size=SIZE)
    config = demo_config(out, steps)
    logger.info("2/4 pre-training %s on them without labels (%d steps)", config.model.backbone, steps)
    if not pretrain(config, on_progress).finished:
        raise RunError(f"stopped; continue with: plrc demo --out {out} --steps {steps}")
    logger.info("3/4 fitting a linear probe to frozen features of %d labelled scenes", LABELLED)
    scenes = [render_scene(PROBE_SEED, index, SIZE) for index in range(2 * LABELLED)]
    networks = {"random": _network(config, trained=False), "plrc": _network(config, trained=True)}
    result = {name: _score(network, scenes, config.model.largest_stride) for name, network in networks.items()}
    logger.info("4/4 drawing affinities and writing the result")
    _draw_affinities(out / "affinity.png", scenes[-PICTURES:], networks, config.model.largest_stride)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _network(config: Config, trained: bool) -> Backbone:
    """The backbone as the run's seed initializes it, or as the run left it."""
    network = Learner(config, torch.device("cpu")).student
    if trained:
        path = newest_checkpoint(Path(config.run.out))
        assert path is not None, "a finished run has a checkpoint"
        network.load_state_dict(load_checkpoint(path)["student"])
    return network.backbone.eval()


def _score(network: Backbone, scenes: list[Scene], stride: int) -> dict[str, float]:
    """Fit the probe on the first LABELLED scenes and score it, and the grouping, on the others."""
    pixels = _pixels(scenes)
    classes = torch.from_numpy(np.stack([scene.semantic for scene in scenes]).astype(np.int64))
    objects = torch.from_numpy(np.stack([scene.masks for scene in scenes]).astype(np.int64))
    train = (pixels[:LABELLED], classes[:LABELLED])
    test = (pixels[LABELLED:], classes[LABELLED:])
    scores = probe_backbone(network, train, test, stride, len(scene_names()) + 1)
    auc = grouping_auc(extract_features(network, test[0], stride), objects[LABELLED:])
    return {"miou": scores.miou, "accuracy": scores.accuracy, "grouping_auc": auc}


def _draw_affinities(path: Path, scenes: list[Scene], networks: dict[str, Backbone], stride: int) -> None:
    """The affinities of a point on each of two objects per scene, by each network."""
    features = {name: extract_features(network, _pixels(scenes), stride) for name, network in networks.items()}
    rows = []
    for index, scene in enumerate(scenes):
        points = [_point_inside(scene.masks == 1), _point_inside(scene.masks == 2)]
        maps = {name: of_all[index] for name, of_all in features.items()}
        rows += affinity_rows(scene.image, maps, points)
    save_figure(affinity_figure(rows), path)


def _pixels(scenes: list[Scene]) -> torch.Tensor:
    """Images [B, 3, H, W], uint8."""
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)


def _point_inside(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The pixel of a mask that is closest to its mean position, as (x, y) in [0, 1]."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    height, width = mask.shape
    return (float(columns[nearest]) + 0.5) / width, (float(rows[nearest]) + 0.5) / height
