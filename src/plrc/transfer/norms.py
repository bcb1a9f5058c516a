"""Normalization and frozen layers, said explicitly. Layer 5: imports model and below.

`frozen`: BatchNorm that always uses its stored statistics, and whose scale and shift are not trained. `sync`:
statistics over all processes; where no process group runs on GPUs, that is ordinary BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from plrc import distributed
from plrc.errors import PlrcError
from plrc.model.backbone import Backbone, ResNetLevels

GROUPS = 32
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """The same names as BatchNorm2d, so that weights load and compare; `train()` has no effect on it."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        super().train(False)
        return self


def head_norm(kind: str) -> Callable[[int], nn.Module] | None:
    """Channels -> a layer, for none (no layer at all), bn, sync and gn."""
    if kind == "none":
        return None
    if kind == "gn":
        return lambda channels: nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return nn.SyncBatchNorm if kind == "sync" and _on_gpus() else nn.BatchNorm2d


def prepare_backbone(backbone: Backbone, norm: str, trainable_layers: int) -> None:
    """Set the normalization of a backbone in place, and freeze all but its last `trainable_layers` of STAGES.

    Frozen layers get FrozenBatchNorm2d whatever `norm` says: a layer that is not trained does not move. Raises
    PlrcError for a network that is no torchvision ResNet, unless all of it is trained with the norm `bn`.
    """
    if norm == "bn" and trainable_layers == len(STAGES):
        return
    net = resnet_of(
        backbone, "model.norm or model.trainable_layers", "write --model.norm bn --model.trainable-layers 5"
    )
    fixed = [name for names in STAGES[: len(STAGES) - trainable_layers] for name in names]
    for name, module in list(net.named_modules()):
        if not isinstance(module, nn.BatchNorm2d):
            continue
        if norm == "frozen" or name.partition(".")[0] in fixed:
            net.set_submodule(name, _frozen(module))
        elif norm == "sync" and _on_gpus():
            net.set_submodule(name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    for name in fixed:
        net.get_submodule(name).requires_grad_(False)


def resnet_of(backbone: Backbone, what: str, remedy: str) -> ResNetLevels:
    """The torchvision ResNet inside a backbone; PlrcError, with what to do, for another network."""
    if not isinstance(backbone.net, ResNetLevels):
        raise PlrcError(f"{what} as set needs a torchvision ResNet, not {backbone.name}; {remedy}")
    return backbone.net


def _on_gpus() -> bool:
    return distributed.is_started() and torch.cuda.is_available()


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.load_state_dict(norm.state_dict(), assign=True)
    frozen.requires_grad_(False).eval()
    return frozen
