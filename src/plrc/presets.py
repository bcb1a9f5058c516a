"""Named, complete configurations. Expected quality, where it is known, is stated with each preset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from plrc.config import Config, DataConfig, Method, ModelConfig, ObjectiveConfig, OptimConfig, RunConfig, ViewConfig
from plrc.errors import ConfigError
from plrc.text import did_you_mean


def paper_r50() -> Config:
    """The paper's recipe: ResNet-50, 224 px, ImageNet-1k, 100 epochs.

    Batch size 256, SGD (METHOD section 4); these are the defaults of `Config`. The authors report, for Pascal VOC 07+12
    with Faster R-CNN R50-C4 and 24k iterations (mean of 5 runs): AP 58.2, AP50 82.7, AP75 65.1. Not reproduced by us,
    since it needs ImageNet and several GPUs.
    """
    return Config(preset="paper_r50", adapt=True)


def coco_r50() -> Config:
    """The paper's recipe on COCO train2017 without labels: 800 epochs.

    Not reproduced by us.
    """
    return Config(preset="coco_r50", optim=OptimConfig(epochs=800.0))


def small_r18() -> Config:
    """ResNet-18, 128 px: for a few hundred to 100,000 images, GPU or CPU.

    During pre-training layer4 has stride 1, which gives a feature grid of 8 x 8; the exported weights are the same
    tensors. Loss weights, negatives and optimizer come from first trials on generated scenes, not from a study.
    """
    return Config(
        preset="small_r18",
        views=ViewConfig(size=128),
        model=ModelConfig(backbone="resnet18", layer4_stride=1, contrast_hidden=512, distill_hidden=512),
        objectives=ObjectiveConfig(
            image_weight=0.1,
            point_weight=1.0,
            distill_weight=1.0,
            queue=4096,
            negatives="image",
            reference_grid=0,
        ),
        optim=OptimConfig(
            name="adamw",
            lr=1e-3,
            base_batch_size=64,
            batch_size=64,
            weight_decay=0.05,
            epochs=200.0,
            warmup_epochs=5.0,
            teacher_momentum=0.99,
        ),
        run=RunConfig(checkpoint_every_steps=200),
    )


def debug_cpu() -> Config:
    """ResNet-18, 64 px, 150 steps: minutes on a CPU, to see that it works.

    Nothing is adapted to the data.
    """
    return Config(
        preset="debug_cpu",
        adapt=False,
        data=DataConfig(held_out=16),
        views=ViewConfig(size=64),
        model=ModelConfig(
            backbone="resnet18",
            layer4_stride=1,
            contrast_hidden=256,
            distill_hidden=256,
            bn_groups=4,
        ),
        objectives=ObjectiveConfig(
            image_weight=small_r18().objectives.image_weight,
            point_weight=1.0,
            distill_weight=1.0,
            queue=256,
            negatives="image",
            reference_grid=0,
            points=64,
            distill_points=64,
        ),
        optim=OptimConfig(
            name="adamw",
            lr=1e-3,
            base_batch_size=32,
            batch_size=32,
            weight_decay=0.05,
            steps=150,
            teacher_momentum=0.95,
        ),
        run=RunConfig(health_every_steps=50, checkpoint_every_steps=50),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "paper_r50": paper_r50,
    "coco_r50": coco_r50,
    "small_r18": small_r18,
    "debug_cpu": debug_cpu,
}


def preset(name: str, method: str = "plrc") -> Config:
    """Return a named configuration.

    Args:
        name: One of "paper_r50", "coco_r50", "small_r18", "debug_cpu"; or "custom", the defaults of `Config`.
        method: Which loss terms are trained. "image": image contrast (MoCo v2). "points": image contrast and
            point-level region contrast. "plrc": both and point affinity distillation. "pixel", "region": baselines
            (METHOD section 5).

    Returns:
        The configuration; nothing in it is pinned.

    Raises:
        ConfigError: The name or the method is unknown.

    Example:
        >>> import plrc
        >>> config = plrc.preset("small_r18", method="points")
        >>> config.model.backbone, config.objectives.distill_weight
        ('resnet18', 0.0)
    """
    if name not in (*PRESETS, "custom"):
        suggestion = did_you_mean(str(name), PRESETS)
        raise ConfigError(f"there is no preset {name!r}; write one of {', '.join(PRESETS)}{suggestion}")
    build = PRESETS.get(name, Config)
    return with_method(build(), method)


def with_method(config: Config, method: str) -> Config:
    """Return a copy that trains the loss terms of a method.

    Args:
        config: A configuration with weights for all terms.
        method: As in `preset`.
    """
    if method not in get_args(Method):
        raise ConfigError(f"there is no method {method!r}; write one of {', '.join(get_args(Method))}")
    terms: dict[str, dict[str, Any]] = {
        "image": {
            "objectives.image_weight": 1.0,
            "objectives.point_weight": 0.0,
            "objectives.distill_weight": 0.0,
        },
        "pixel": {"objectives.contrast": "pixel", "objectives.distill_weight": 0.0},
        "region": {"objectives.contrast": "region", "objectives.distill_weight": 0.0},
        "points": {"objectives.contrast": "points", "objectives.distill_weight": 0.0},
        "plrc": {"objectives.contrast": "points"},
    }
    return config.with_values({"method": method} | terms[method], pin=False)
