"""Warnings about objects that are too small at the size at which a network sees them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plrc.config import Config
from plrc.engine.image_sizes import SMALL, native_tiles, view_scale
from plrc.errors import PlrcError
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.protocols import TransferConfig

WARNED_SHARE = 0.1
"""Share of small objects from which a warning is due."""


def detector_warnings(images: Iterable[LabelledImage], config: TransferConfig) -> list[str]:
    """Return a warning if many objects are small at the size at which the detector sees its test images.

    Args:
        images: Labelled images.
        config: A transfer run of the task detection or instances.
    """
    images = list(images)
    scales = [_detector_scale(image, config) for image in images]
    sides = _sides(images, scales)
    if not _many_small(sides):
        return []
    model = config.model
    size = config.input.test_size
    advice = f"cut the images into tiles, or raise input.train_size and input.test_size (now {size:g})"
    if model.neck == "fpn":
        smallest = model.anchors * model.min_stride
        advice += f"; the smallest anchor has {smallest:g} px (model.anchors x model.min_stride)"
    where = f"at the size that the detector sees (median scale {np.median(scales):.2g})"
    return [_describe(sides, where, advice)]


def pretraining_size_warnings(images: Iterable[LabelledImage], inits: Iterable[str]) -> list[str]:
    """Return warnings about pre-training runs whose views would show many of the labelled objects as small.

    Args:
        images: Labelled images.
        inits: Values of `TransferConfig.init`; the views of run folders are known.
    """
    images = list(images)
    warnings: list[str] = []
    for init in dict.fromkeys(inits):
        config = run_config(init)
        if config is None:
            continue
        views = config.views
        sides = _sides(images, [view_scale(views, image.height, image.width) for image in images])
        if _many_small(sides):
            where = f"in the views of {views.size} px of the pre-training {init}, if its images are as large as these"
            advice = f"pre-train with --views.tiles {native_tiles(views)} or with a larger views.size"
            warnings.append(_describe(sides, where, advice))
    return warnings


def run_config(init: str) -> Config | None:
    """Read the configuration of the pre-training run that a value of `TransferConfig.init` names; None if it is none.

    Args:
        init: "random", "pretrained", a run folder or a file.
    """
    path = Path(init) / "config.toml"
    if not path.is_file():
        return None
    try:
        return Config.load(path)
    except PlrcError:  # the run itself reports it
        return None


def _detector_scale(image: LabelledImage, config: TransferConfig) -> float:
    shorter = min(image.height, image.width)
    longer = max(image.height, image.width)
    return min(config.input.test_size / shorter, config.input.max_size / longer)


def _sides(images: list[LabelledImage], scales: list[float]) -> NDArray[np.float64]:
    """The sides of all objects that count, scaled."""
    sides: list[float] = []
    for image, scale in zip(images, scales, strict=True):
        boxes = image.boxes[~image.ignored].astype(np.float64)
        sides += (scale * np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))).tolist()
    return np.array(sides)


def _many_small(sides: NDArray[np.float64]) -> bool:
    return sides.size > 0 and float((sides < SMALL).mean()) >= WARNED_SHARE


def _describe(sides: NDArray[np.float64], where: str, advice: str) -> str:
    small = int((sides < SMALL).sum())
    return (
        f"labelled objects with a side below {SMALL:g} px {where}: {small} of {len(sides)} ({small / len(sides):.0%}; "
        f"median of all {np.median(sides):.3g} px): {advice}"
    )
