"""The network of student and teacher: backbone, contrast head, distillation head.

Layer 2: imports config and this folder. Shapes: B images, S pixels a side, D feature width, h x w the lattice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plrc.config import ModelConfig
from plrc.errors import ConfigError
from plrc.model.backbone import build_backbone
from plrc.model.heads import contrast_head, distill_head
from plrc.model.user_code import is_user_code, refuse_frozen


def feature_side(config: ModelConfig, size: int) -> int:
    """Positions per side of the features of a view of `size` pixels."""
    stride = 16 if (config.stride, config.layer4_stride) == (32, 1) else config.stride
    return -(-size // stride)


def check_feature_side(network: Network, config: ModelConfig, size: int) -> None:
    """Raise ConfigError where views of `size` pixels do not give the lattice that points are mapped to.

    torchvision's ResNets round every size up; other networks may round down what their coarsest stride does not divide.
    """
    if ":" not in config.backbone:
        return
    side, coarsest = feature_side(config, size), max(network.backbone.channels)
    training = network.training
    with torch.no_grad():
        found = network.backbone.eval()(torch.zeros(1, 3, size, size), config.stride)[config.stride].shape[-1]
    network.train(training)
    if found != side:
        raise ConfigError(
            f"views.size is {size}, for which {config.backbone} gives {found} x {found} positions of stride "
            f"{config.stride} instead of {side} x {side}; write a multiple of {coarsest}"
        )


class Network(nn.Module):
    """Images [B, 3, S, S] -> {"contrast": [B, D_c, h, w], "distill": [B, D_d, h, w]}, features not yet normalized.

    BatchNorm takes its statistics over `groups` parts of the batch (of equal size, where it divides), each passing
    alone, as if each sat on a device of its own (METHOD section 3, *Teacher*): views and groups never share statistics.
    """

    def __init__(self, config: ModelConfig, contrast: bool = True, distill: bool = True) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone, config.layer4_stride)
        if is_user_code(config.backbone):
            refuse_frozen(self.backbone.net, config.backbone)
        self.stride = config.stride
        channels = self.backbone.channels.get(config.stride)
        if channels is None:
            levels = ", ".join(map(str, self.backbone.channels))
            found = f"{config.backbone} has feature levels of strides {levels}"
            raise ConfigError(f"model.stride is {config.stride}; {found}")
        self.contrast_head = contrast_head(channels, config.contrast_hidden, config.contrast_dim) if contrast else None
        self.distill_head = distill_head(channels, config.distill_hidden, config.distill_dim) if distill else None
        for module in self.modules():  # running statistics move once a group: by as much in all as in one pass
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
                module.momentum = 1 - (1 - module.momentum) ** (1 / config.bn_groups)

    def forward(
        self, images: Tensor, groups: int = 1, contrast: bool = True, distill: bool = True
    ) -> dict[str, Tensor]:
        """`contrast`, `distill`: which of the heads that the network has to run."""
        parts = [self._features(part, contrast, distill) for part in images.tensor_split(groups)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]

    def _features(self, images: Tensor, contrast: bool, distill: bool) -> dict[str, Tensor]:
        features = self.backbone(images, self.stride)[self.stride]
        out = {}
        if contrast and self.contrast_head is not None:
            out["contrast"] = self.contrast_head(features)
        if distill and self.distill_head is not None:
            out["distill"] = self.distill_head(features)
        return out
