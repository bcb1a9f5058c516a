"""The network of student and teacher: a backbone, and projection heads on each level that is trained.

Shapes: B images, S pixels per side, D feature width, h x w the feature grid of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from plrc.config import ModelConfig
from plrc.errors import ConfigError
from plrc.model.backbone import build_backbone
from plrc.model.heads import contrast_head, distill_head
from plrc.model.modes import evaluation_mode
from plrc.model.user_code import describe_error, is_user_code, refuse_frozen
from plrc.pixels import RGB_CHANNELS

HEADS = ("contrast", "distill", "frozen")
"""Names of the heads: for the image and point terms, for affinity distillation from the moving average, and from a
frozen teacher."""

Features = dict[tuple[str, int], Tensor]
"""(name of a head, stride) -> features [B, D, h, w], not yet normalized."""


def feature_side(config: ModelConfig, size: int, stride: int) -> int:
    """The side of the feature grid of a level.

    Args:
        config: Settings of the network.
        size: Side of a view in pixels.
        stride: The level, one of `config.strides`.

    Returns:
        Positions per side of the features of such a view.
    """
    if (stride, config.layer4_stride) == (32, 1):
        stride = 16
    return -(-size // stride)


def check_feature_side(network: Network, config: ModelConfig, size: int) -> None:
    """Check that views give the feature grid that points are mapped to.

    torchvision's ResNets round every size up; other networks may round down what their coarsest stride does not divide.

    Args:
        network: The network that will be trained.
        config: Its settings.
        size: Side of a view in pixels.

    Raises:
        ConfigError: The grid has another side than `feature_side` expects.
    """
    if ":" not in config.backbone:
        return
    backbone = network.backbone
    try:
        with evaluation_mode(network), torch.no_grad():
            levels = backbone(torch.zeros(1, backbone.in_channels, size, size), config.largest_stride)
    except Exception as error:  # networks of other libraries and of the user's own may raise anything
        raise ConfigError(
            f"views.size {size} does not fit {config.backbone}, {backbone.describe_sizes(size)} "
            f"({describe_error(error)})"
        ) from error
    for stride in config.strides:
        expected = feature_side(config, size, stride)
        side = levels[stride].shape[-1]
        if side != expected:
            raise ConfigError(
                f"views.size is {size}, for which {config.backbone} gives {side} x {side} positions of stride {stride} "
                f"instead of {expected} x {expected}; write a multiple of {backbone.multiple}"
            )


class Network(nn.Module):
    """Images [B, 3, S, S] -> features of each head on each trained level (`Features`).

    BatchNorm takes its statistics over `groups` parts of the batch (of equal size, where it divides), each of which
    passes separately, as if each were on a device of its own (METHOD section 3, *Teacher*): views and groups never
    share statistics.

    Args:
        config: Settings of the network.
        contrast: Whether it has contrast heads.
        distill: Whether it has distillation heads.
        frozen_dim: Output width of the heads that are compared with a frozen teacher; 0: it has none.
        in_channels: Channels of the images.

    Attributes:
        backbone: The backbone, whose weights are exported.
        heads: Name -> the heads of all levels, by stride.

    Raises:
        ConfigError: The backbone cannot be built or trained, or lacks a level of `config.strides`.
    """

    def __init__(
        self,
        config: ModelConfig,
        contrast: bool = True,
        distill: bool = True,
        frozen_dim: int = 0,
        in_channels: int = RGB_CHANNELS,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone, config.layer4_stride, in_channels)
        if is_user_code(config.backbone):
            refuse_frozen(self.backbone.net, config.backbone)
        self.strides = config.strides
        for stride in config.strides:
            if stride not in self.backbone.channels:
                strides = ", ".join(map(str, self.backbone.channels))
                raise ConfigError(
                    f"model.strides has {stride}; {config.backbone} has feature levels of strides {strides}; write "
                    "--model.strides with one or several of them"
                )
        self.heads = nn.ModuleDict()
        if contrast:
            self._add_heads("contrast", contrast_head, config.contrast_hidden, config.contrast_dim)
        if distill:
            self._add_heads("distill", distill_head, config.distill_hidden, config.distill_dim)
        if frozen_dim:
            self._add_heads("frozen", distill_head, config.distill_hidden, frozen_dim)
        # running statistics are updated once per group, in total by as much as in a single pass
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
                module.momentum = 1 - (1 - module.momentum) ** (1 / config.bn_groups)

    def forward(self, images: Tensor, groups: int = 1, heads: Collection[str] = HEADS) -> Features:
        """Compute the features of heads on all trained levels.

        Args:
            images: Normalized images [B, 3, S, S].
            groups: Number of BatchNorm groups.
            heads: Names of the heads to run; those that the network does not have are left out.

        Returns:
            (name of a head, stride) -> features [B, D, h, w].
        """
        outputs = [self._features(group, heads) for group in images.tensor_split(groups)]
        if len(outputs) == 1:
            return outputs[0]
        return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}

    def _add_heads(self, name: str, build: Callable[[int, int, int], nn.Module], hidden: int, dim: int) -> None:
        """Add a head to each level."""
        heads = nn.ModuleDict()
        for stride in self.strides:
            heads[str(stride)] = build(self.backbone.channels[stride], hidden, dim)
        self.heads[name] = heads

    def _features(self, images: Tensor, heads: Collection[str]) -> Features:
        levels = self.backbone(images, self.strides[-1])
        outputs = {}
        for name, level_heads in self.heads.items():
            if name in heads:
                for stride, head in level_heads.items():  # type: ignore[operator]  # a ModuleDict
                    outputs[name, int(stride)] = head(levels[int(stride)])
        return outputs
