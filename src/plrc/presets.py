"""Named, complete configurations. The docstring of a preset states the quality to expect, where it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from plrc.config import Config, DataConfig, Method, ModelConfig, ObjectiveConfig, OptimConfig, RunConfig, ViewConfig
from plrc.errors import ConfigError
from plrc.text import did_you_mean

FROZEN_TEACHER_ALONE = {
    "teacher.kind": "frozen",
    "objectives.distill_points": 128,  # as good as the default 256, and cheaper (docs/RESULTS.md)
    "objectives.image_weight": 0.0,
    "objectives.point_weight": 0.0,
    "objectives.distill_weight": 0.0,
}
"""Settings with which the distillation from a frozen teacher is the only term."""


def paper_r50() -> Config:
    """The paper's recipe: ResNet-50, 224 px, ImageNet-1k, 100 epochs.

    Batch size 256, SGD (METHOD section 4); these are the defaults of `Config`. The authors report, for Pascal VOC 07+12
    with Faster R-CNN R50-C4 and 24k iterations (mean of 5 runs): AP 58.2, AP50 82.7, AP75 65.1. Not reproduced by us,
    since it needs ImageNet and several GPUs.
    """
    return Config(preset="paper_r50")


def coco_r50() -> Config:
    """The paper's recipe on COCO train2017 without labels: 800 epochs.

    Otherwise as paper_r50. Not reproduced by us.
    """
    return Config(preset="coco_r50", optim=OptimConfig(epochs=800.0))


def small_r18() -> Config:
    """ResNet-18, 128 px: for a few hundred to 100,000 images, GPU or CPU.

    Unlike in the paper, the terms are means over the levels 8, 16 and 32, all of which a feature pyramid reads, and the
    teacher sees its views without changed colors. Frozen features of blood cells need half of the images with both; a
    detector gains as much as before (docs/RESULTS.md, "Which recipe"). Loss weights, negatives and optimizer come from
    first trials on generated scenes, not from a study.
    """
    return Config(
        preset="small_r18",
        views=ViewConfig(size=128, teacher_color=False),
        model=ModelConfig(backbone="resnet18", strides=(8, 16, 32), contrast_hidden=512, distill_hidden=512),
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
            image_weight=0.1,
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


def distill_r18() -> Config:
    """ResNet-18 that learns from a frozen teacher alone.

    Name the teacher with --teacher.backbone and --teacher.init. As small_r18, but the only term is the distillation
    from the frozen teacher (METHOD section 6). Only view A is needed, and the teacher's features are cached, so that a
    step costs little more than the student's own forward and backward pass. The learning rate is three times that of
    small_r18: a target that does not move allows larger steps. Results are in docs/RESULTS.md.
    """
    return small_r18().with_values(
        {
            "preset": "distill_r18",
            "optim.lr": 3e-3,
            **FROZEN_TEACHER_ALONE,
        },
        pin=False,
    )


def distill_r50() -> Config:
    """ResNet-50 that learns from a frozen teacher alone.

    Name the teacher with --teacher.backbone and --teacher.init. 224 px as in the paper; levels 8 to 32, because the
    detectors of a ResNet-50 read all of them through a feature pyramid. AdamW, batch size 64 and the number of epochs
    as in small_r18. Not evaluated.
    """
    config = Config(
        preset="distill_r50",
        model=ModelConfig(backbone="resnet50", strides=(8, 16, 32), distill_hidden=512),
        objectives=ObjectiveConfig(queue=4096, negatives="image", reference_grid=0),
        optim=small_r18().optim,
    )
    return config.with_values(FROZEN_TEACHER_ALONE, pin=False)


def adapt() -> Config:
    """Warm start: given weights are trained further on your images.

    Name them with --model.backbone and --model.init. The frozen teacher is the network with the start weights
    themselves. It sees whole images at 384 px, finer than the student's crops, so that the student learns what its own
    weights see at a higher resolution. There is no contrast, which made warm starts worse. All levels that detectors
    read are trained, because layers above the last trained level would no longer fit the trained ones below. The
    learning rate is twice that of small_r18; it halves with each stage below the last, because lower stages need to
    change least. Results: docs/RESULTS.md, "From weights that you have". This preset is not the setting `adapt`, which
    adapts default values to the data.
    """
    return small_r18().with_values(
        {
            "preset": "adapt",
            "teacher.kind": "frozen",
            "teacher.size": 384,
            "objectives.image_weight": 0.0,
            "objectives.distill_weight": 0.0,
            "objectives.point_weight": 0.0,
            "objectives.frozen_weight": 1.0,
            "optim.lr": 2e-3,
            "optim.layer_decay": 0.5,
        },
        pin=False,
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "paper_r50": paper_r50,
    "coco_r50": coco_r50,
    "small_r18": small_r18,
    "debug_cpu": debug_cpu,
    "distill_r18": distill_r18,
    "distill_r50": distill_r50,
    "adapt": adapt,
}


def preset(name: str, method: str = "plrc") -> Config:
    """Return a named configuration.

    Args:
        name: One of "paper_r50", "coco_r50", "small_r18", "debug_cpu", "distill_r18", "distill_r50", "adapt"; or
            "custom", the defaults of `Config`.
        method: Which loss terms are trained. "image": image contrast (MoCo v2). "points": image contrast and
            point-level region contrast. "plrc": both and point affinity distillation. "pixel", "region": baselines
            (METHOD section 5).

    Returns:
        The configuration; nothing in it is pinned.

    Raises:
        ConfigError: The name or the method is unknown.

    Examples:
        >>> import plrc
        >>> config = plrc.preset("small_r18", method="points")
        >>> config.model.backbone, config.objectives.distill_weight
        ('resnet18', 0.0)
    """
    if name not in (*PRESETS, "custom"):
        suggestion = did_you_mean(str(name), PRESETS)
        raise ConfigError(f"there is no preset {name!r}; write one of {', '.join(PRESETS)}{suggestion}")
    config = Config() if name == "custom" else PRESETS[name]()
    return with_method(config, method)


def with_method(config: Config, method: str) -> Config:
    """Return a copy that trains the loss terms of a method.

    Args:
        config: A configuration with weights for all terms.
        method: As in `preset`.
    """
    methods = get_args(Method)
    if method not in methods:
        raise ConfigError(f"there is no method {method!r}; write one of {', '.join(methods)}")
    values: dict[str, dict[str, Any]] = {
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
    return config.with_values({"method": method} | values[method], pin=False)
