"""The protocols: named configurations of transfer runs, from the literature and for small data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from plrc.errors import ConfigError
from plrc.text import did_you_mean
from plrc.transfer.protocols import DetectorConfig, InputConfig, LabelledConfig, OptimConfig, Task, TransferConfig

COCO_SIDES = (640.0, 800.0)
CITYSCAPES_INPUT = InputConfig(train_size=(800.0, 1024.0), test_size=1024.0, max_size=2048)
SEMANTIC_INPUT = InputConfig(train_size=(0.5, 2.0), test_size=1.0, crop=(513.0, 513.0))
FCN = DetectorConfig(norm="sync", head_norm="sync")


def voc_c4_24k() -> TransferConfig:
    """Pascal VOC: Faster R-CNN C4, trainval07+12 -> test2007, 24k steps, batch 16 (the paper, section 4)."""
    return TransferConfig(
        task="detection",
        data=LabelledConfig(layout="voc", train="trainval07+12", val="none", test="test07", difficult=True),
        input=InputConfig(train_size=(480.0, 800.0), test_size=800.0),
        model=DetectorConfig(neck="c4", norm="sync", head_norm="sync"),
        optim=OptimConfig(lr=0.02, steps=24_000, lr_milestones=(0.75, 11 / 12), warmup_steps=100),
    )


def coco_c4_1x() -> TransferConfig:
    """COCO: Mask R-CNN C4, 90k steps, batch 16 (the paper, section 4); --schedule 2x for 180k."""
    return TransferConfig(
        task="instances",
        data=LabelledConfig(layout="coco", val="none"),
        input=InputConfig(train_size=COCO_SIDES, test_size=800.0),
        model=DetectorConfig(neck="c4", norm="sync", head_norm="sync"),
    )


def coco_fpn_1x() -> TransferConfig:
    """COCO: Mask R-CNN FPN, 90k steps, batch 16; --schedule 2x for 180k."""
    return coco_c4_1x().with_values({"model.neck": "fpn"})


def coco_rt_detr_v2() -> TransferConfig:
    """COCO: RT-DETR v2, 72 epochs of 118k images (532k steps of 16), 480-800 px."""
    return TransferConfig(
        task="detection",
        data=LabelledConfig(layout="coco", val="none"),
        input=InputConfig(train_size=(480.0, 800.0), test_size=640.0),
        model=DetectorConfig(detector="rt_detr_v2"),
        optim=OptimConfig(
            optimizer="adamw",
            lr=1e-4,
            backbone_lr_factor=0.1,
            steps=532_000,
            lr_milestones=(1.0, 1.0),
            warmup_steps=2000,
            max_grad_norm=0.1,
        ),
    )


def coco_rt_detr() -> TransferConfig:
    """COCO: RT-DETR, 72 epochs of 118k images (532k steps of 16), 480-800 px."""
    return coco_rt_detr_v2().with_values({"model.detector": "rt_detr"})


def coco_d_fine() -> TransferConfig:
    """COCO: D-FINE, 72 epochs of 118k images (266k steps of 32), 480-800 px."""
    return coco_rt_detr_v2().with_values(
        {
            "model.detector": "d_fine",
            "optim.lr": 2.5e-4,
            "optim.batch_size": 32,
            "optim.steps": 266_000,
            "optim.weight_decay": 1.25e-4,
        }
    )


def coco_rf_detr() -> TransferConfig:
    """COCO: RF-DETR, 50 epochs of 118k images (370k steps of 16), squares of 560 px."""
    return coco_rt_detr_v2().with_values(
        {
            "model.detector": "rf_detr",
            "model.backbone": "timm:vit_small_patch14_dinov2",
            "model.hidden": 2048,
            "model.decoder_layers": 3,
            "input.train_size": (448.0, 672.0),
            "input.test_size": 560.0,
            "optim.steps": 370_000,
        }
    )


def cityscapes_instances() -> TransferConfig:
    """Cityscapes: Mask R-CNN FPN, 24k steps, batch 8, 800-1024 px."""
    return TransferConfig(
        task="instances",
        data=LabelledConfig(layout="cityscapes", val="none"),
        input=CITYSCAPES_INPUT,
        model=DetectorConfig(neck="fpn", norm="sync", head_norm="sync"),
        optim=OptimConfig(lr=0.01, batch_size=8, steps=24_000, lr_milestones=(0.75, 1.0)),
    )


def cityscapes_semantic() -> TransferConfig:
    """Cityscapes: FCN, 90k steps, batch 16, crops of 769 px."""
    return TransferConfig(
        task="semantic",
        data=LabelledConfig(layout="cityscapes", val="none"),
        input=InputConfig(train_size=(0.5, 2.0), test_size=1.0, crop=(769.0, 769.0)),
        model=FCN,
        optim=OptimConfig(lr=0.01, steps=90_000, lr_milestones=(0.7, 0.9)),
    )


def voc_semantic() -> TransferConfig:
    """Pascal VOC: FCN, train_aug2012 -> val2012, 30k steps, batch 16, crops of 513 px."""
    return TransferConfig(
        task="semantic",
        data=LabelledConfig(layout="voc", train="train_aug12", val="none", test="val12"),
        input=SEMANTIC_INPUT,
        model=FCN,
        optim=OptimConfig(lr=0.003, steps=30_000, lr_milestones=(0.7, 0.9)),
    )


def small_detection() -> TransferConfig:
    """Few labels, a CPU: Faster R-CNN FPN from stride 8, 192 px, 300 steps of 4 images.

    Pyramid and box head are normalized: from ImageNet weights, 300 steps on photographs of animals give AP 5 with it
    and 0.5 without (docs/RESULTS.md).
    """
    return TransferConfig(
        task="detection",
        input=InputConfig(train_size=(176.0, 208.0), test_size=192.0, max_size=320),
        model=DetectorConfig(
            backbone="resnet18",
            norm="bn",
            head_norm="bn",
            width=96,
            min_stride=8,
            hidden=256,
            rois_per_image=64,
            proposals=200,
            anchors=4.0,
        ),
        optim=OptimConfig(
            lr=0.02, batch_size=4, steps=300, lr_milestones=(0.75, 0.92), warmup_steps=30, max_grad_norm=10.0
        ),
    )


def small_rt_detr_v2() -> TransferConfig:
    """Few labels, a CPU: RT-DETR v2, 50 queries, 192 px, 600 steps of 4 images."""
    return TransferConfig(
        task="detection",
        input=InputConfig(train_size=(160.0, 224.0), test_size=192.0, max_size=320),
        model=DetectorConfig(
            backbone="resnet18", detector="rt_detr_v2", width=96, hidden=256, queries=50, decoder_layers=2
        ),
        optim=OptimConfig(
            optimizer="adamw",
            lr=5e-4,
            backbone_lr_factor=0.2,
            batch_size=4,
            steps=600,
            lr_milestones=(0.75, 0.92),
            warmup_steps=30,
            max_grad_norm=1.0,
        ),
    )


def small_rt_detr() -> TransferConfig:
    """Few labels, a CPU: RT-DETR, 50 queries, 192 px, 600 steps of 4 images."""
    return small_rt_detr_v2().with_values({"model.detector": "rt_detr"})


def small_d_fine() -> TransferConfig:
    """Few labels, a CPU: D-FINE, 50 queries, 192 px, 600 steps of 4 images."""
    return small_rt_detr_v2().with_values({"model.detector": "d_fine"})


def small_rf_detr() -> TransferConfig:
    """Few labels, a CPU: RF-DETR on a vision transformer, 50 queries, 192 px, 600 steps of 4 images."""
    return small_rt_detr_v2().with_values({"model.detector": "rf_detr", "model.backbone": "timm:vit_tiny_patch16_224"})


def small_instances() -> TransferConfig:
    """Few labels, a CPU: Mask R-CNN FPN from stride 8, 192 px, 300 steps of 4 images."""
    return small_detection().with_values({"task": "instances"})


def small_semantic() -> TransferConfig:
    """Few labels, a CPU: FCN on stride 16, half scale, crops of 128 x 160, 300 steps of 4 images."""
    return TransferConfig(
        task="semantic",
        input=InputConfig(train_size=(0.4, 0.75), test_size=0.5, crop=(128.0, 160.0)),
        model=DetectorConfig(backbone="resnet18", norm="bn", head_norm="bn", width=128, dilation=2),
        optim=OptimConfig(
            lr=0.02, batch_size=4, steps=300, lr_milestones=(0.75, 0.92), warmup_steps=30, max_grad_norm=10.0
        ),
    )


PROTOCOLS: dict[str, Callable[[], TransferConfig]] = {
    "voc_c4_24k": voc_c4_24k,
    "coco_c4_1x": coco_c4_1x,
    "coco_fpn_1x": coco_fpn_1x,
    "coco_rt_detr": coco_rt_detr,
    "coco_rt_detr_v2": coco_rt_detr_v2,
    "coco_d_fine": coco_d_fine,
    "coco_rf_detr": coco_rf_detr,
    "cityscapes_instances": cityscapes_instances,
    "cityscapes_semantic": cityscapes_semantic,
    "voc_semantic": voc_semantic,
    "small_detection": small_detection,
    "small_rt_detr": small_rt_detr,
    "small_rt_detr_v2": small_rt_detr_v2,
    "small_d_fine": small_d_fine,
    "small_rf_detr": small_rf_detr,
    "small_instances": small_instances,
    "small_semantic": small_semantic,
}


def protocol(name: str, task: str) -> TransferConfig:
    """Build a protocol for a task. A Mask R-CNN protocol may be used for boxes alone, and a box protocol for masks.

    Args:
        name: Name of a protocol; `plrc transfer --help` lists them.
        task: "detection", "instances" or "semantic".

    Returns:
        The settings of a transfer run; nothing in it is pinned.

    Raises:
        ConfigError: An unknown name or task, or a protocol that is not for the task.

    Examples:
        >>> import plrc
        >>> config = plrc.protocol("small_detection", "detection")
        >>> config.model.backbone, config.optim.steps
        ('resnet18', 300)
    """
    if task not in get_args(Task):
        raise ConfigError(f"unknown task {task!r}; choose one of {', '.join(get_args(Task))}")
    if name not in PROTOCOLS:
        suggestion = did_you_mean(name, PROTOCOLS)
        raise ConfigError(f"there is no protocol {name!r}; write one of {', '.join(PROTOCOLS)}{suggestion}")
    is_semantic = task == "semantic"
    config = PROTOCOLS[name]()
    if (config.task == "semantic") != is_semantic:
        fitting = [other for other, build in PROTOCOLS.items() if (build().task == "semantic") == is_semantic]
        raise ConfigError(f"{name} is a protocol for {config.task}, not {task}; choose one of {', '.join(fitting)}")
    return replace(config.with_values({"preset": name, "task": task}, pin=False), pinned=frozenset())
