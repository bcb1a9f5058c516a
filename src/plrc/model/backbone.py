"""Backbones: an image in, a dictionary {stride: feature map} out.

Layer 2. `Backbone.net` carries the tensor names of the library it came from (torchvision, timm, or the user's own code:
user_code.py), so that weights move between plrc and that library without renaming.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from plrc.errors import ConfigError
from plrc.model.user_code import backbone_from_function, features_by_stride, is_user_code

RESNETS = tuple(n for n in torchvision.models.list_models(module=torchvision.models) if "resne" in n)


class ResNetLevels(nn.Module):
    """A torchvision ResNet without its classifier: [B, 3, H, W] -> four levels of strides 4, 8, 16, 32."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, images: Tensor, levels: int = 4) -> list[Tensor]:
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        found = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[:levels]:
            x = layer(x)
            found.append(x)
        return found


class Backbone(nn.Module):
    """{stride: features}: images [B, 3, H, W] -> {s: [B, channels[s], ceil(H / s), ceil(W / s)]}.

    Strides are those of the unchanged network: with `layer4_stride=1` the level called 32 has the lattice of level 16.
    """

    def __init__(self, name: str, net: nn.Module, channels: dict[int, int]) -> None:
        super().__init__()
        self.name = name
        self.net = net
        self.channels = channels

    def forward(self, images: Tensor, deepest: int | None = None) -> dict[int, Tensor]:
        """`deepest`: the largest stride that is wanted; a torchvision ResNet then skips the layers after it."""
        wanted = [s for s in self.channels if deepest is None or s <= deepest]
        if is_user_code(self.name):
            found = features_by_stride(self.net, self.net(images))
            return {stride: found[stride] for stride in wanted}
        levels = self.net(images, len(wanted)) if isinstance(self.net, ResNetLevels) else self.net(images)
        return dict(zip(wanted, levels, strict=False))


def build_backbone(name: str, layer4_stride: int = 2) -> Backbone:
    """A backbone with random weights: a torchvision ResNet by its name, `timm:NAME` (a model with features_only), or
    the user's own function (user_code.py), which is imported and called."""
    if is_user_code(name):
        return Backbone(name, *backbone_from_function(name))
    if name.startswith("timm:"):
        return _timm_backbone(name)
    if name not in RESNETS:
        raise ConfigError(
            f"model.backbone is {name!r}; write one of {', '.join(RESNETS)}, timm:NAME for a model of timm, "
            "or FILE.py:FUNCTION for a network of your own"
        )
    build: Callable[..., ResNet] = torchvision.models.get_model_builder(name)
    net = ResNetLevels(build(weights=None))
    widths = [_last_width(layer) for layer in (net.layer1, net.layer2, net.layer3, net.layer4)]
    if layer4_stride == 1:
        for module in net.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    return Backbone(name, net, dict(zip((4, 8, 16, 32), widths, strict=True)))


def _last_width(layer: nn.Sequential) -> int:
    convolutions = [m for name, m in layer[-1].named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in name]
    return int(convolutions[-1].out_channels)


def _timm_backbone(name: str) -> Backbone:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{name} needs timm; install it with: pip install 'plrc-pretrain[timm]'") from error
    try:
        net: Any = timm.create_model(name.removeprefix("timm:"), pretrained=False, features_only=True)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"timm cannot build {name!r} with features_only: {error}") from error
    strides, channels = net.feature_info.reduction(), net.feature_info.channels()
    with torch.no_grad():
        levels = net.eval()(torch.zeros(1, 3, 224, 224))
    if len(set(strides)) < len(strides) or [level.shape[1] for level in levels] != channels:
        raise ConfigError(
            f"{name} does not give one feature map [B, C, H, W] for each stride (its strides are {strides}); "
            "choose a model of timm that does, such as a convolutional one"
        )
    return Backbone(name, net.train(), dict(zip(strides, channels, strict=True)))
