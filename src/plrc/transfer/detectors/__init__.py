"""The detectors by name: a file for each library, and a table."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from plrc.model.backbone import Backbone
from plrc.transfer.detectors import torchvision, transformers
from plrc.transfer.protocols import DetectorConfig, InputConfig

BUILDERS: dict[str, Callable[[Backbone, DetectorConfig, InputConfig, int, bool, int], nn.Module]] = {
    "faster_rcnn": torchvision.build_detector,
    "rt_detr": transformers.build_detector,
    "rt_detr_v2": transformers.build_detector,
    "d_fine": transformers.build_detector,
    "rf_detr": transformers.build_detector,
}
"""Value of `model.detector` -> the function that builds it around a backbone."""


def build_detector(
    backbone: Backbone, config: DetectorConfig, size: InputConfig, classes: int, masks: bool, seed: int
) -> nn.Module:
    """Build the detector `config.detector` around a backbone with its weights.

    The network takes lists of images [C, H, W] in [0, 1] and, in training, of targets ("boxes" [n, 4] in pixels,
    "labels" [n] from 1), as torchvision documents. It returns losses by name in training, else predictions of the
    same form, with "scores" [n].

    Args:
        backbone: The backbone; its normalization and frozen layers are set in place.
        config: The network.
        size: Sizes of the images.
        classes: Number of classes, without background.
        masks: Whether to predict masks (Mask R-CNN).
        seed: The random weights outside of the backbone follow from this alone.

    Raises:
        ConfigError: The detector cannot be built around this backbone.
        MissingPackageError: The detector's library is not installed.
    """
    return BUILDERS[config.detector](backbone, config, size, classes, masks, seed)
