"""Semantic segmentation with an FCN: layer4 dilated, two wide convolutions, as in the transfer of MoCo.

Shapes: B images, H x W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from plrc import rng
from plrc.model.backbone import Backbone
from plrc.transfer.norms import norm_layer, prepare_backbone, require_resnet
from plrc.transfer.protocols import DetectorConfig


class Segmenter(nn.Module):
    """Backbone and FCN head: normalized images [B, 3, H, W] -> logits [B, K, H, W].

    Args:
        body: The backbone.
        config: Normalization, width and dilation of the head.
        classes: K.
    """

    def __init__(self, body: Backbone, config: DetectorConfig, classes: int) -> None:
        super().__init__()
        self.body = body
        norm = norm_layer(config.head_norm)
        width = config.width
        self.head = nn.Sequential(
            Conv2dNormActivation(body.channels[32], width, norm_layer=norm, dilation=config.dilation),
            Conv2dNormActivation(width, width, norm_layer=norm, dilation=config.dilation),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.body(images)[32])
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def build_segmenter(backbone: Backbone, config: DetectorConfig, classes: int, seed: int) -> nn.Module:
    """Build an FCN around a backbone built with `layer4_stride=1`, whose level 32 has the feature grid of stride 16.

    With `layer4_dilation` 2 the 3 x 3 convolutions of layer4 are dilated, as in MoCo's recipe, which restores the
    receptive field of weights that were trained at stride 32; 1 is for weights whose layer4 had stride 1.

    Args:
        backbone: The backbone; it is changed in place.
        config: The network.
        classes: K.
        seed: The random weights of the head follow from this alone.

    Raises:
        ConfigError: The backbone is not a torchvision ResNet.
    """
    net = require_resnet(backbone, "the semantic task", "name a ResNet with --model.backbone")
    prepare_backbone(backbone, config.norm, config.trainable_layers)
    for module in net.layer4.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = (config.layer4_dilation, config.layer4_dilation)
            module.padding = (config.layer4_dilation, config.layer4_dilation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(seed, "heads"))
        return Segmenter(backbone, config, classes)
