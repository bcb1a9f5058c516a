"""Normalization and frozen layers of a network that is fine-tuned.

`frozen`: BatchNorm that always uses its stored statistics, and whose scale and shift are not trained. `sync`:
statistics over all processes; without a process group on GPUs, that is ordinary BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from plrc import distributed
from plrc.errors import ConfigError
from plrc.model.backbone import Backbone, ResNetLevels
from plrc.model.transformers_networks import PREFIX as DETECTOR_PREFIX

GROUPS = 32  # of GroupNorm
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
"""Modules of the stages of a ResNet, from the bottom to the top."""


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that stays in evaluation mode. Its tensors are named as those of BatchNorm2d, so that weights load."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        super().train(False)
        return self


def norm_layer(kind: str) -> Callable[[int], nn.Module] | None:
    """Return a function from channels to a normalization layer, for "bn", "sync" and "gn"; None for "none"."""
    if kind == "none":
        return None
    if kind == "gn":
        return lambda channels: nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    if kind == "sync" and _is_distributed_on_gpus():
        return nn.SyncBatchNorm
    return nn.BatchNorm2d


def prepare_backbone(backbone: Backbone, norm: str, trainable_layers: int) -> None:
    """Set the normalization of a backbone in place, and freeze all but the last stages.

    Frozen stages get FrozenBatchNorm2d for any `norm`: a layer that is not trained does not change.

    Args:
        backbone: The backbone.
        norm: "bn", "frozen" or "sync".
        trainable_layers: How many of `STAGES` are trained, counted from the top.

    Raises:
        ConfigError: The backbone is not a torchvision ResNet, and not all of it is trained with the norm "bn"; that of
            a detector of transformers may have any norm.
    """
    if norm == "bn" and trainable_layers == len(STAGES):
        return
    net = backbone.net
    if trainable_layers < len(STAGES) or not backbone.name.startswith(DETECTOR_PREFIX):
        net = require_resnet(
            backbone, "model.norm or model.trainable_layers", "write --model.norm bn --model.trainable-layers 5"
        )
    frozen_names: list[str] = []
    for names in STAGES[: len(STAGES) - trainable_layers]:
        frozen_names += names
    for name, module in list(net.named_modules()):
        if not isinstance(module, nn.BatchNorm2d):
            continue
        if norm == "frozen" or name.partition(".")[0] in frozen_names:
            net.set_submodule(name, _freeze(module))
        elif norm == "sync" and _is_distributed_on_gpus():
            net.set_submodule(name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    for name in frozen_names:
        net.get_submodule(name).requires_grad_(False)


def require_resnet(backbone: Backbone, what: str, remedy: str) -> ResNetLevels:
    """Return the torchvision ResNet inside a backbone.

    Args:
        backbone: The backbone.
        what: What needs a ResNet, for the error message.
        remedy: What to do otherwise, for the error message.

    Raises:
        ConfigError: The backbone is another network.
    """
    if not isinstance(backbone.net, ResNetLevels):
        raise ConfigError(f"{what} as set needs a torchvision ResNet, not {backbone.name}; {remedy}")
    return backbone.net


def _is_distributed_on_gpus() -> bool:
    return distributed.is_started() and torch.cuda.is_available()


def _freeze(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.load_state_dict(norm.state_dict(), assign=True)
    frozen.requires_grad_(False).eval()
    return frozen
