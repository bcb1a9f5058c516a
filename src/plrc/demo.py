"""`plrc demo`: generated scenes, a short pre-training, and what it learned beside the random network. Layer 6.

OUT/scenes (images with labels; pre-training sees only the images), OUT/run (a run folder like any other, with
report.html), OUT/affinity.png, OUT/result.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from plrc import pretrain
from plrc.config import Config, ModelConfig, ObjectiveConfig, OptimConfig, RunConfig, ViewConfig
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint
from plrc.engine.learner import Learner
from plrc.errors import PlrcError
from plrc.measures.grouping import grouping_auc
from plrc.model import Backbone
from plrc.scenes import Scene, render_scene, scene_names, write_scenes
from plrc.transfer.probe import extract_features, probe_backbone
from plrc.visualize import save_affinities

IMAGES, SIZE = 3000, 96
LABELLED = 100  # scenes to fit the probe on, and as many others to score it
PICTURES = 2
SCENES_SEED, PROBE_SEED = 0, 1


def demo_config(out: Path, steps: int) -> Config:
    """ResNet-18 at stride 8 on 64-pixel crops: small enough for minutes on a CPU."""
    return Config(
        preset="demo",
        adapt=False,
        views=ViewConfig(size=64),
        model=ModelConfig(backbone="resnet18", stride=8, contrast_hidden=256, distill_hidden=256),
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


def run_demo(out: Path, steps: int, images: int = IMAGES) -> dict[str, dict[str, float]]:
    """Run the demo into `out` (empty, or a demo that was stopped) and return {"random" | "plrc": {measure: value}}."""
    console, started = Console(highlight=False), time.perf_counter()
    partial = out / ".scenes.partial"
    if out.exists() and {path.name for path in out.iterdir()} - {partial.name} and not (out / "scenes").exists():
        raise PlrcError(f"{out} is not empty and holds no demo; name another --out")
    if not (out / "scenes").exists():
        console.print(f"1/4 rendering {images} scenes of {len(scene_names())} kinds of objects into {out / 'scenes'}")
        write_scenes(out / "scenes", {"train": images}, seed=SCENES_SEED, size=SIZE)
    config = demo_config(out, steps)
    console.print(f"2/4 pre-training {config.model.backbone} on them without labels ({steps} steps)")
    if not pretrain(config).finished:
        raise PlrcError(f"stopped; go on with: plrc demo --out {out} --steps {steps}")

    console.print(
        f"3/4 a linear probe on frozen features, fitted on {LABELLED} labelled scenes, scored on {LABELLED} others"
    )
    scenes = [render_scene(PROBE_SEED, i, SIZE) for i in range(2 * LABELLED)]
    pixels = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
    classes = torch.from_numpy(np.stack([s.semantic for s in scenes]).astype(np.int64))
    objects = torch.from_numpy(np.stack([s.masks for s in scenes]).astype(np.int64))
    networks = {"random": _network(config, trained=False), "plrc": _network(config, trained=True)}
    result = {}
    for name, network in networks.items():
        train, test = (pixels[:LABELLED], classes[:LABELLED]), (pixels[LABELLED:], classes[LABELLED:])
        found = probe_backbone(network, train, test, config.model.stride, len(scene_names()) + 1)
        auc = grouping_auc(extract_features(network, test[0], config.model.stride), objects[LABELLED:])
        result[name] = {"miou": found.miou, "accuracy": found.accuracy, "grouping_auc": auc}
    _picture(out / "affinity.png", scenes[-PICTURES:], networks, config.model.stride)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _tell(console, result, out, time.perf_counter() - started)
    return result


def _network(config: Config, trained: bool) -> Backbone:
    """The backbone as the run's seed initialises it, or as the run left it."""
    network = Learner(config, torch.device("cpu")).student
    if trained:
        path = newest_checkpoint(Path(config.run.out))
        assert path is not None, "a finished run has a checkpoint"
        network.load_state_dict(load_checkpoint(path)["student"])
    return network.backbone.eval()


def _picture(path: Path, scenes: list[Scene], networks: dict[str, Backbone], stride: int) -> None:
    """The affinities of one point on each of two objects a scene, by each network."""
    images = [scene.image for scene in scenes]
    points = [[_point_inside(scene.masks == i) for i in (1, 2)] for scene in scenes]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    maps = {name: extract_features(network, pixels, stride) for name, network in networks.items()}
    save_affinities(path, images, [{name: m[i] for name, m in maps.items()} for i in range(len(scenes))], points)


def _point_inside(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The pixel of a mask that is closest to its mean position, as (x, y) in [0, 1]."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return (float(columns[nearest]) + 0.5) / mask.shape[1], (float(rows[nearest]) + 0.5) / mask.shape[0]


def _tell(console: Console, result: dict[str, dict[str, float]], out: Path, seconds: float) -> None:
    table = Table("frozen features", "mIoU of a linear probe", "pixel accuracy", "grouping AUC (chance 0.5)")
    for name, values in result.items():
        table.add_row(name, f"{values['miou']:.3f}", f"{values['accuracy']:.3f}", f"{values['grouping_auc']:.3f}")
    console.print(table)
    taught = "taught" if result["plrc"]["miou"] > result["random"]["miou"] else "did NOT teach"
    console.print(
        f"4/4 done in {seconds / 60:.1f} minutes: pre-training {taught} the network to "
        "tell the objects' kinds apart better than a random one. See:"
    )
    for name in ("run/report.html", "affinity.png", "result.json", "run/exported/backbone.safetensors"):
        console.print(f"  {out / name}", markup=False, soft_wrap=True)
    console.print(
        "next, with your own images:\n"
        "  plrc scan FOLDER\n"
        "  plrc pretrain --preset small_r18 --data FOLDER --out runs/first\n"
        "  plrc visualize runs/first --images FOLDER\n"
        "  plrc export runs/first --to torchvision",
        markup=False,
    )
