"""Faster and Mask R-CNN on our backbones, from torchvision's parts: with a feature pyramid, or C4 as in the paper.

Layer 5: imports model and below, and this folder. C4 (paper, section 4; MoCo's detection transfer): regions are read
from stride 16, layer4 is their head, and a normalization follows it. Losses, samplers and thresholds are torchvision's.

Shapes: R regions of all images, C channels of layer4, K classes without background.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from plrc import rng
from plrc.data.photometric import MEAN, STD
from plrc.model.backbone import Backbone
from plrc.transfer.norms import head_norm, prepare_backbone, resnet_of
from plrc.transfer.protocols import DetectorConfig, InputConfig

RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors
C4_ANCHORS = (32, 64, 128, 256, 512)  # pixels
SIZE_STEP = 32  # pixels between the shorter sides that training draws from
MASK_WIDTH = 256  # of C4's mask head

PYRAMID_PROPOSALS = {"training": 2000, "testing": 1000}  # before non-maximum suppression, a level
C4_PROPOSALS = {"training": 12_000, "testing": 6000}
PROPOSALS = {"training": 2000, "testing": 1000}  # after it, an image


def build_detector(
    backbone: Backbone, config: DetectorConfig, size: InputConfig, classes: int, masks: bool, seed: int
) -> nn.Module:
    """A torchvision GeneralizedRCNN for `classes` classes (background not counted), around a backbone with its weights.

    It takes lists of images [3, H, W] in [0, 1] and targets, as torchvision documents. The random weights of its heads
    follow from `seed` alone. The backbone's normalization and frozen layers are set here, in place.
    """
    prepare_backbone(backbone, config.norm, config.trainable_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(seed, "heads"))
        build = _c4 if config.neck == "c4" else _pyramid
        body, anchors, proposals, heads = build(backbone, config, classes, masks)
        head = RPNHead(body.out_channels, anchors.num_anchors_per_location()[0])
        rpn = RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, proposals, PROPOSALS, 0.7)
    model: nn.Module = GeneralizedRCNN(body, rpn, heads, Resize(size))
    return model


class Resize(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's resizing and normalization, with one size at test and several in training.

    Training draws the shorter side with PyTorch's generator from low, low + SIZE_STEP, ... high.
    """

    def __init__(self, size: InputConfig) -> None:
        low, high = (round(side) for side in size.train_size)
        self.train_sizes, self.test_sizes = tuple(range(low, high + 1, SIZE_STEP)), (round(size.test_size),)
        super().__init__(self.test_sizes, size.max_size, list(MEAN), list(STD))

    def resize(self, image: Tensor, target: Any = None) -> Any:
        self.min_size = self.train_sizes if self.training else self.test_sizes
        return super().resize(image, target)


class Pyramid(nn.Module):
    """Backbone and feature pyramid: images -> {"4" (a stride): finest level, ..., "pool"}, all of `out_channels`."""

    def __init__(self, body: Backbone, config: DetectorConfig) -> None:
        super().__init__()
        self.body = body
        self.strides = [s for s in body.channels if s >= config.min_stride]
        self.out_channels = config.width
        widths = [body.channels[s] for s in self.strides]
        self.fpn = FeaturePyramidNetwork(widths, config.width, LastLevelMaxPool(), head_norm(config.head_norm))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = self.body(images)
        found: dict[str, Tensor] = self.fpn({str(s): levels[s] for s in self.strides})
        return found


class C4Body(nn.Module):
    """A backbone up to stride 16. Its layer4 stays a part of it, by name, and is run by the heads."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body
        self.out_channels = body.channels[16]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"16": self.body(images, 16)[16]}


class Shared(nn.Module):
    """Runs a module that is a part of another one: its tensors have one name, there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple: not registered a second time

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._module[0](x)
        return out


class C4Heads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads, with `box_head` giving features [R, C, 7, 7] that boxes and masks are both read from.

    In training `box_head` runs once, on all sampled regions, and the masks take its features of the objects: so its
    BatchNorm sees each region once. At test it runs a second time, on the boxes that were found, as torchvision does.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> Any:
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        regions = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        classifier, boxes = fastrcnn_loss(*self.box_predictor(regions), labels, offsets)
        losses = {"loss_classifier": classifier, "loss_box_reg": boxes}
        if self.has_mask() and targets is not None:
            positive = [found > 0 for found in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(regions[torch.cat(positive)]),
                [boxes[chosen] for boxes, chosen in zip(proposals, positive, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [index[chosen] for index, chosen in zip(matched, positive, strict=True)],
            )
        return [], losses


def _pyramid(backbone: Backbone, config: DetectorConfig, classes: int, masks: bool) -> tuple[Any, ...]:
    body = Pyramid(backbone, config)
    levels = [str(s) for s in body.strides]
    sides = [config.anchors * s for s in (*body.strides, 2 * body.strides[-1])]
    anchors = AnchorGenerator(tuple((side,) for side in sides), (RATIOS,) * len(sides))
    norm, width = head_norm(config.head_norm), config.width
    box_parts = (
        MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        FastRCNNConvFCHead((width, 7, 7), [width] * 4, [config.hidden], norm)
        if norm
        else TwoMLPHead(width * 7 * 7, config.hidden),
        FastRCNNPredictor(config.hidden, classes + 1),
    )
    mask_parts = (
        MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        MaskRCNNHeads(width, [width] * 4, 1, norm),
        MaskRCNNPredictor(width, width, classes + 1),
    )
    return body, anchors, PYRAMID_PROPOSALS, RoIHeads(*box_parts, *_sampling(config), *(mask_parts if masks else ()))


def _c4(backbone: Backbone, config: DetectorConfig, classes: int, masks: bool) -> tuple[Any, ...]:
    layer4 = resnet_of(backbone, "model.neck", "write --model.neck fpn").layer4
    norm, channels = head_norm(config.head_norm), backbone.channels[32]
    pool = MultiScaleRoIAlign(["16"], output_size=14, sampling_ratio=2)
    head = nn.Sequential(Shared(layer4), *([norm(channels)] if norm else []))
    predictor = nn.Sequential(nn.AdaptiveAvgPool2d(1), FastRCNNPredictor(channels, classes + 1))
    mask_parts = (pool, Shared(head), MaskRCNNPredictor(channels, MASK_WIDTH, classes + 1))
    heads = C4Heads(pool, head, predictor, *_sampling(config), *(mask_parts if masks else ()))
    return C4Body(backbone), AnchorGenerator((C4_ANCHORS,), (RATIOS,)), C4_PROPOSALS, heads


def _sampling(config: DetectorConfig) -> tuple[Any, ...]:
    """What RoIHeads takes after its box parts: which regions are trained on, which boxes are given out."""
    return 0.5, 0.5, config.rois_per_image, 0.25, None, 0.05, 0.5, 100
