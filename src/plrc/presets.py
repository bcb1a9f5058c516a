"""Named, full configurations. Above the engine, below the command line.

Expected quality, where there is any, stands beside each preset.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import get_args

from plrc.config import Config, DataConfig, Method, ModelConfig, ObjectiveConfig, OptimConfig, RunConfig, ViewConfig
from plrc.errors import ConfigError


def paper_r50() -> Config:
    """The paper's recipe: ResNet-50, 224 px, ImageNet-1k, 100 epochs.

    Batch 256, SGD (METHOD section 4); these are the defaults of `Config`. Reported by the authors for Pascal VOC
    07+12, Faster R-CNN R50-C4, 24k iterations, mean of 5: AP 58.2, AP50 82.7, AP75 65.1.
    Not reproduced by us: it needs ImageNet and several GPUs.
    """
    return Config(preset="paper_r50", adapt=True)


def coco_r50() -> Config:
    """The paper's recipe on COCO train2017 without labels: 800 epochs.

    Not reproduced by us.
    """
    return Config(preset="coco_r50", optim=OptimConfig(epochs=800.0))


def small_r18() -> Config:
    """ResNet-18, 128 px: for a few hundred to 100,000 images, GPU or CPU.

    layer4 has stride 1 while pre-training: 8 x 8 features; the exported weights are the same tensors. Loss weights,
    negatives and optimiser follow first trials on generated scenes, not yet a study with intervals.
    """
    return Config(
        preset="small_r18",
        views=ViewConfig(size=128),
        model=ModelConfig(backbone="resnet18", layer4_stride=1, contrast_hidden=512, distill_hidden=512),
        objectives=ObjectiveConfig(
            image_weight=0.1, point_weight=1.0, distill_weight=1.0, queue=4096, negatives="image", reference_grid=0
        ),
        optim=OptimConfig(
            name="adamw", lr=1e-3, base_batch_size=64, batch_size=64, weight_decay=0.05, epochs=200.0, warmup_epochs=5.0,
            teacher_momentum=0.99,
        ),
        run=RunConfig(checkpoint_every_steps=200),
    )  # fmt: skip


def debug_cpu() -> Config:
    """ResNet-18, 64 px, 150 steps: minutes on a CPU, to see that it works.

    Nothing is adapted to the data.
    """
    small = small_r18()
    return Config(
        preset="debug_cpu",
        adapt=False,
        data=DataConfig(held_out=16),
        views=ViewConfig(size=64),
        model=ModelConfig(
            backbone="resnet18", layer4_stride=1, contrast_hidden=256, distill_hidden=256, bn_groups=4
        ),
        objectives=ObjectiveConfig(
            image_weight=small.objectives.image_weight, point_weight=1.0, distill_weight=1.0, queue=256,
            negatives="image", reference_grid=0, points=64, distill_points=64,
        ),
        optim=OptimConfig(
            name="adamw", lr=1e-3, base_batch_size=32, batch_size=32, weight_decay=0.05, steps=150, teacher_momentum=0.95
        ),
        run=RunConfig(health_every_steps=50, checkpoint_every_steps=50),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Config]] = {
    "paper_r50": paper_r50,
    "coco_r50": coco_r50,
    "small_r18": small_r18,
    "debug_cpu": debug_cpu,
}


def preset(name: str, method: str = "plrc") -> Config:
    """A preset by name, with the terms of `method` (`with_method`).

    "custom" is the name of a configuration that starts from no preset: the defaults of `Config`.
    """
    if name not in (*PRESETS, "custom"):
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"there is no preset {name!r}; write one of {', '.join(PRESETS)}{meant}")
    return with_method(PRESETS.get(name, Config)(), method)


def with_method(config: Config, method: str) -> Config:
    """`config`, which has weights for all terms, with those of `method`: image (MoCo v2); pixel and region (METHOD
    section 5); points (no distillation); plrc (all)."""
    if method not in get_args(Method):
        raise ConfigError(f"there is no method {method!r}; write one of {', '.join(get_args(Method))}")
    terms: dict[str, dict[str, float | str]] = {
        "image": {"image_weight": 1.0, "point_weight": 0.0, "distill_weight": 0.0},
        "pixel": {"contrast": "pixel", "distill_weight": 0.0},
        "region": {"contrast": "region", "distill_weight": 0.0},
        "points": {"contrast": "points", "distill_weight": 0.0},
        "plrc": {"contrast": "points"},
    }
    values = {"method": method} | {f"objectives.{name}": value for name, value in terms[method].items()}
    return config.with_values(values, pin=False)
