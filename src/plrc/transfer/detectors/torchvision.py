"""Faster and Mask R-CNN on our backbones, from torchvision's parts: with a feature pyramid, or C4 as in the paper.

C4 (paper, section 4; MoCo's detection transfer): regions are read from stride 16, layer4 is their head, and a
normalization follows it. Losses, samplers and thresholds are torchvision's.

Shapes: H x W an image, R regions of all images, C channels of layer4, K classes without background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from torchvision.ops.poolers import LevelMapper

from plrc import rng
from plrc.errors import ConfigError
from plrc.model.backbone import Backbone
from plrc.model.transformers_networks import takes_squares_only
from plrc.pixels import PixelStatistics
from plrc.transfer.norms import norm_layer, prepare_backbone, require_resnet
from plrc.transfer.protocols import DetectorConfig, InputConfig

RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors
SIDE_MULTIPLE = 32  # that torchvision pads the sides of images to
C4_ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels
SIZE_STEP = 32  # pixels between the shorter sides that training draws from
C4_MASK_WIDTH = 256  # channels of the mask head of C4

PYRAMID_PROPOSALS = {"training": 2000, "testing": 1000}  # before non-maximum suppression, per level
C4_PROPOSALS = {"training": 12_000, "testing": 6000}
TRAINING_PROPOSALS = 2000  # after it, per image


def build_detector(
    backbone: Backbone, config: DetectorConfig, size: InputConfig, classes: int, masks: bool, seed: int
) -> nn.Module:
    """Build a torchvision GeneralizedRCNN around a backbone with its weights.

    The network takes lists of images [3, H, W] in [0, 1] and of targets, as torchvision documents.

    Args:
        backbone: The backbone; its normalization and frozen layers are set in place.
        config: The network.
        size: Sizes of the images.
        classes: K, without background.
        masks: Whether to predict masks (Mask R-CNN).
        seed: The random weights of the heads follow from this alone.

    Raises:
        ConfigError: The backbone does not take images of any size, or the configuration needs a torchvision ResNet and
            it is another network.
    """
    _require_any_size(backbone)
    prepare_backbone(backbone, config.norm, config.trainable_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(seed, "heads"))
        if config.neck == "c4":
            parts = _c4_parts(backbone, config, classes, masks)
        else:
            parts = _pyramid_parts(backbone, config, classes, masks)
        rpn = RegionProposalNetwork(
            parts.anchors,
            RPNHead(parts.body.out_channels, parts.anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=parts.proposals,
            post_nms_top_n={"training": TRAINING_PROPOSALS, "testing": config.proposals},
            nms_thresh=0.7,
        )
    model: nn.Module = GeneralizedRCNN(parts.body, rpn, parts.heads, Resize(size, backbone.pixels))
    return model


def _require_any_size(backbone: Backbone) -> None:
    """Raise ConfigError if a backbone does not take all images whose sides are multiples of SIDE_MULTIPLE."""
    if backbone.fixed or takes_squares_only(backbone.net) or SIDE_MULTIPLE % backbone.multiple:
        raise ConfigError(
            f"faster_rcnn pads images to multiples of {SIDE_MULTIPLE} px, which {backbone.name} does not take; choose "
            "another model.backbone, or write --model.detector rf_detr for a vision transformer"
        )


class Resize(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's resizing and normalization, with one size at test and several in training.

    Training draws the shorter side with PyTorch's generator from low, low + SIZE_STEP, ... high.
    """

    def __init__(self, size: InputConfig, pixels: PixelStatistics) -> None:
        low = round(size.train_size[0])
        high = round(size.train_size[1])
        self.train_sizes = tuple(range(low, high + 1, SIZE_STEP))
        self.test_sizes = (round(size.test_size),)
        super().__init__(self.test_sizes, size.max_size, list(pixels.mean), list(pixels.std))

    def resize(self, image: Tensor, target: Any = None) -> Any:
        self.min_size = self.train_sizes if self.training else self.test_sizes
        return super().resize(image, target)


class Pyramid(nn.Module):
    """Backbone and feature pyramid: images -> {"4" (a stride): finest level, ..., "pool"}, all of `out_channels`.

    Args:
        body: The backbone.
        config: Smallest stride, width and normalization of the pyramid.
    """

    def __init__(self, body: Backbone, config: DetectorConfig) -> None:
        super().__init__()
        self.body = body
        self.strides = [stride for stride in body.channels if stride >= config.min_stride]
        self.out_channels = config.width
        widths = [body.channels[stride] for stride in self.strides]
        self.fpn = FeaturePyramidNetwork(widths, config.width, LastLevelMaxPool(), norm_layer(config.head_norm))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = self.body(images)
        pyramid: dict[str, Tensor] = self.fpn({str(stride): levels[stride] for stride in self.strides})
        return pyramid


class C4Body(nn.Module):
    """A backbone up to stride 16. Its layer4 keeps its place and name in the backbone, and is run by the heads."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body
        self.out_channels = body.channels[16]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"16": self.body(images, 16)[16]}


class Shared(nn.Module):
    """Runs a module that is registered elsewhere in the network: its tensors keep the name that they have there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple, so that it is not registered a second time

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._module[0](x)
        return out


class C4Heads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads, in which `box_head` gives the features [R, C, 7, 7] of both boxes and masks.

    In training `box_head` runs once, on all sampled regions, and the masks use its features of the objects, so that its
    BatchNorm sees each region once. At test it runs a second time, on the predicted boxes, as in torchvision.
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
            positive = [image_labels > 0 for image_labels in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(regions[torch.cat(positive)]),
                [boxes[chosen] for boxes, chosen in zip(proposals, positive, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [index[chosen] for index, chosen in zip(matched, positive, strict=True)],
            )
        return [], losses


@dataclass(frozen=True)
class _Parts:
    """What differs between the two kinds of detectors."""

    body: nn.Module
    anchors: AnchorGenerator
    proposals: dict[str, int]
    heads: RoIHeads


def _pyramid_parts(backbone: Backbone, config: DetectorConfig, classes: int, masks: bool) -> _Parts:
    body = Pyramid(backbone, config)
    sides = [config.anchors * stride for stride in (*body.strides, 2 * body.strides[-1])]
    anchors = AnchorGenerator(tuple((side,) for side in sides), (RATIOS,) * len(sides))
    norm = norm_layer(config.head_norm)
    width = config.width
    pool = _region_pool(body.strides, 7)
    box_head: nn.Module
    if norm is None:
        box_head = TwoMLPHead(width * 7 * 7, config.hidden)
    else:
        box_head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [config.hidden], norm)
    predictor = FastRCNNPredictor(config.hidden, classes + 1)
    heads = RoIHeads(pool, box_head, predictor, **_sampling(config))
    # The random weights of the mask head are drawn in any case: those of the proposals do not depend on `masks`.
    mask_head = MaskRCNNHeads(width, [width] * 4, 1, norm)
    mask_predictor = MaskRCNNPredictor(width, width, classes + 1)
    if masks:
        heads.mask_roi_pool = _region_pool(body.strides, 14)
        heads.mask_head = mask_head
        heads.mask_predictor = mask_predictor
    return _Parts(body, anchors, PYRAMID_PROPOSALS, heads)


def _c4_parts(backbone: Backbone, config: DetectorConfig, classes: int, masks: bool) -> _Parts:
    layer4 = require_resnet(backbone, "model.neck", "write --model.neck fpn").layer4
    norm = norm_layer(config.head_norm)
    channels = backbone.channels[32]
    pool = _region_pool([16], 14)
    head = nn.Sequential(Shared(layer4))
    if norm is not None:
        head.append(norm(channels))
    predictor = nn.Sequential(nn.AdaptiveAvgPool2d(1), FastRCNNPredictor(channels, classes + 1))
    heads = C4Heads(pool, head, predictor, **_sampling(config))
    mask_predictor = MaskRCNNPredictor(channels, C4_MASK_WIDTH, classes + 1)  # drawn in any case, as in a pyramid
    if masks:
        heads.mask_roi_pool = pool
        heads.mask_head = Shared(head)
        heads.mask_predictor = mask_predictor
    return _Parts(C4Body(backbone), AnchorGenerator((C4_ANCHORS,), (RATIOS,)), C4_PROPOSALS, heads)


def _region_pool(strides: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """torchvision's pooling of regions to side x side, with the exact scale of each level.

    torchvision would infer the scales from the first images, without their padding, which is wrong for small ones.
    """
    pool = MultiScaleRoIAlign([str(stride) for stride in strides], output_size=side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return pool


def _sampling(config: DetectorConfig) -> dict[str, Any]:
    """The arguments of RoIHeads that say which regions are trained on and which boxes are returned."""
    return {
        "fg_iou_thresh": 0.5,
        "bg_iou_thresh": 0.5,
        "batch_size_per_image": config.rois_per_image,
        "positive_fraction": 0.25,
        "bbox_reg_weights": None,
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_img": 100,
    }
