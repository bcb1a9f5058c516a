"""The network of student and teacher: backbone, contrast head, distillation head.

Shapes: B images, S pixels per side, D feature width, h x w the feature grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plrc.config import ModelConfig
from plrc.errors import ConfigError
from plrc.model.backbone import build_backbone
from plrc.model.heads import contrast_head, distill_head
from plrc.model.user_code import describe_error, is_user_code, refuse_frozen


def feature_side(config: ModelConfig, size: int) -> int:
    """The side of the feature grid that a network trains on.

    Args:
        config: Settings of the network.
        size: Side of a view in pixels.

    Returns:
        Positions per side of the features of such a view.
    """
    stride = config.stride
    if (config.stride, config.layer4_stride) == (32, 1):
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
    expected = feature_side(config, size)
    backbone = network.backbone
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            side = backbone(torch.zeros(1, 3, size, size), config.stride)[config.stride].shape[-1]
    except Exception as error:  # networks of other libraries and of the user's own may raise anything
        raise ConfigError(
            f"views.size {size} does not fit {config.backbone}, {backbone.describe_sizes(size)} "
            f"({describe_error(error)})"
        ) from error
    finally:
        network.train(training)
    if side != expected:
        raise ConfigError(
            f"views.size is {size}, for which {config.backbone} gives {side} x {side} positions of stride "
            f"{config.stride} instead of {expected} x {expected}; write a multiple of {backbone.multiple}"
        )


class Network(nn.Module):
    """Images [B, 3, S, S] -> {"contrast": [B, D_c, h, w], "distill": [B, D_d, h, w]}, features not yet normalized.

    BatchNorm takes its statistics over `groups` parts of the batch (of equal size, where it divides), each of which
    passes separately, as if each were on a device of its own (METHOD section 3, *Teacher*): views and groups never
    share statistics.

    Args:
        config: Settings of the network.
        contrast: Whether it has a contrast head.
        distill: Whether it has a distillation head.

    Raises:
        ConfigError: The backbone cannot be built or trained, or has no level of stride `config.stride`.
    """

    def __init__(self, config: ModelConfig, contrast: bool = True, distill: bool = True) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone, config.layer4_stride)
        if is_user_code(config.backbone):
            refuse_frozen(self.backbone.net, config.backbone)
        self.stride = config.stride
        if config.stride not in self.backbone.channels:
            strides = ", ".join(map(str, self.backbone.channels))
            raise ConfigError(
                f"model.stride is {config.stride}; {config.backbone} has feature levels of strides {strides}"
            )
        channels = self.backbone.channels[config.stride]
        self.contrast_head = contrast_head(channels, config.contrast_hidden, config.contrast_dim) if contrast else None
        self.distill_head = distill_head(channels, config.distill_hidden, config.distill_dim) if distill else None
        # running statistics are updated once per group, in total by as much as in a single pass
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
                module.momentum = 1 - (1 - module.momentum) ** (1 / config.bn_groups)

    def forward(
        self, images: Tensor, groups: int = 1, contrast: bool = True, distill: bool = True
    ) -> dict[str, Tensor]:
        """Compute the features of both heads.

        Args:
            images: Normalized images [B, 3, S, S].
            groups: Number of BatchNorm groups.
            contrast: Whether to run the contrast head, if the network has one.
            distill: Whether to run the distillation head, if the network has one.

        Returns:
            {"contrast": [B, D_c, h, w], "distill": [B, D_d, h, w]}, without the heads that did not run.
        """
        outputs = [self._features(group, contrast, distill) for group in images.tensor_split(groups)]
        if len(outputs) == 1:
            return outputs[0]
        return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}

    def _features(self, images: Tensor, contrast: bool, distill: bool) -> dict[str, Tensor]:
        features = self.backbone(images, self.stride)[self.stride]
        outputs = {}
        if contrast and self.contrast_head is not None:
            outputs["contrast"] = self.contrast_head(features)
        if distill and self.distill_head is not None:
            outputs["distill"] = self.distill_head(features)
        return outputs
