"""Detectors as functions of a batch of tensors, for ONNX: every shape follows from the shapes of the inputs.

torchvision's Faster R-CNN loops over images and returns as many boxes as it predicts, which no graph with a free number
of images can do. Here all images are computed together, with a fixed number of candidates each, and what is not a
prediction has the score 0. The weights and the rules are those of the detector.

Shapes: B images, H x W pixels of C channels, N predictions per image, K classes, P proposals, G groups, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align

from plrc.transfer.detectors.transformers import SquareDetector, best_predictions

INVALID = -1.0  # score of a candidate that is left out


def batched_detector(model: nn.Module) -> nn.Module:
    """Return a detector as a function of tensors. It shares the weights, and is for evaluation only.

    Args:
        model: What `build_detector` returns.

    Returns:
        A module. Its inputs are images [B, C, H, W] in 0 to 1 and, for torchvision's detectors, the height and width
        [B, 2] of each image in them, above and left of the padding. It returns boxes [B, N, 4] (x0 y0 x1 y1 in pixels
        of the inputs), scores [B, N], classes from 0 [B, N] and, if the detector predicts masks, their probabilities
        in the boxes [B, N, 28, 28] (c4: 14). An entry without a prediction has the score 0 and the class -1.
    """
    if isinstance(model, SquareDetector):
        return BatchedSquares(model).eval()
    if isinstance(model, GeneralizedRCNN):
        return BatchedRCNN(model).eval()
    raise TypeError(f"no batched form of a {type(model).__name__}")


class BatchedSquares(nn.Module):
    """A detector of transformers: images [B, C, S, S] -> boxes, scores, classes; see `batched_detector`."""

    def __init__(self, model: SquareDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.model.network(pixel_values=(images - self.model.mean) / self.model.std)
        boxes, scores, classes = best_predictions(output.logits, output.pred_boxes)
        return boxes * self.model.test_side, scores, classes


class BatchedRCNN(nn.Module):
    """A detector of torchvision: images [B, C, H, W], sizes [B, 2] -> predictions; see `batched_detector`."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.transform.image_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(model.transform.image_std)[:, None, None])

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        inside = _is_inside(images, sizes)
        normalized = torch.where(inside, (images - self.mean) / self.std, 0.0)
        levels: dict[str, Tensor] = self.model.backbone(normalized)
        proposals, is_proposal = self._proposals(images, list(levels.values()), sizes)
        heads = self.model.roi_heads
        regions = _pool(heads.box_roi_pool, levels, proposals)
        logits, offsets = heads.box_predictor(heads.box_head(regions))
        boxes, scores, classes = self._detections(logits, offsets, proposals, is_proposal, sizes)
        if not heads.has_mask():
            return boxes, scores, classes
        masks = heads.mask_predictor(heads.mask_head(_pool(heads.mask_roi_pool, levels, boxes)))
        own = (classes.flatten().clamp(min=0) + 1)[:, None, None, None].expand(-1, 1, *masks.shape[2:])
        return boxes, scores, classes, masks.gather(1, own).sigmoid().unflatten(0, classes.shape).squeeze(2)

    def _proposals(self, images: Tensor, levels: Sequence[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The P most confident boxes of each image that are left by non-maximum suppression in each level.

        Returns:
            Boxes [B, P, 4], and whether there is one [B, P].
        """
        rpn = self.model.rpn
        kept = rpn._pre_nms_top_n["testing"]
        all_boxes = []
        all_scores = []
        for level, logits, offsets, cell in zip(
            levels, *rpn.head(levels), rpn.anchor_generator.cell_anchors, strict=True
        ):
            anchors = _anchors(images, level, cell)
            per_place = len(cell)
            logits = logits.permute(0, 2, 3, 1).flatten(1)
            offsets = offsets.unflatten(1, (per_place, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            # padded with `kept` entries of -inf, so that topk(kept) works for images of any size
            logits, chosen = F.pad(logits, (0, kept), value=-torch.inf).topk(kept)
            anchors = F.pad(anchors, (0, 0, 0, kept))[chosen]
            offsets = F.pad(offsets, (0, 0, 0, kept)).gather(1, chosen[:, :, None].expand(-1, -1, 4))
            boxes = rpn.box_coder.decode_single(offsets.flatten(0, 1), anchors.flatten(0, 1))
            boxes = _clip(boxes.unflatten(0, logits.shape), sizes)
            is_box = _has_sides(boxes, rpn.min_size) & torch.isfinite(logits)
            scores = torch.where(is_box, logits.sigmoid(), INVALID)
            all_boxes.append(boxes)
            all_scores.append(torch.where(grouped_nms(boxes, scores, rpn.nms_thresh, INVALID), scores, INVALID))
        boxes = torch.cat(all_boxes, dim=1)
        num_proposals = min(rpn._post_nms_top_n["testing"], kept * len(levels))
        scores, best = torch.cat(all_scores, dim=1).topk(num_proposals)
        return _take(boxes, best), scores > INVALID

    def _detections(
        self, logits: Tensor, offsets: Tensor, proposals: Tensor, is_proposal: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The N most confident boxes of each image that are left by non-maximum suppression in each class."""
        heads = self.model.roi_heads
        shape = is_proposal.shape
        scores = logits.softmax(dim=1).unflatten(0, shape)[:, :, 1:].permute(0, 2, 1)  # [B, K, P]
        boxes = heads.box_coder.decode_single(offsets, proposals.flatten(0, 1)).unflatten(0, shape)
        boxes = boxes.unflatten(2, (-1, 4))[:, :, 1:].permute(0, 2, 1, 3)  # [B, K, P, 4]
        num_classes = boxes.shape[1]
        boxes = _clip(boxes.flatten(1, 2), sizes)
        is_box = _has_sides(boxes, 1e-2).unflatten(1, (num_classes, -1)) & is_proposal[:, None]
        scores = torch.where(is_box & (scores > heads.score_thresh), scores, INVALID)
        groups = boxes.unflatten(1, (num_classes, -1)).flatten(0, 1)
        kept = grouped_nms(groups, scores.flatten(0, 1), heads.nms_thresh, heads.score_thresh)
        scores = torch.where(kept.unflatten(0, (-1, num_classes)), scores, INVALID).flatten(1)
        scores, best = scores.topk(min(heads.detections_per_img, num_classes * shape[1]))
        is_prediction = scores > INVALID
        classes = torch.where(is_prediction, best // shape[1], -1)
        boxes = torch.where(is_prediction[:, :, None], _take(boxes, best), 0.0)
        return boxes, scores.clamp(min=0), classes


@torch.library.custom_op("plrc::grouped_nms", mutates_args=())
def grouped_nms(boxes: Tensor, scores: Tensor, iou: float, above: float) -> Tensor:
    """Suppress boxes that overlap with a more confident box of their group.

    Args:
        boxes: [G, P, 4].
        scores: [G, P].
        iou: Boxes whose IoU with a kept one is larger are suppressed.
        above: Boxes with this score or a lower one are not kept and suppress none.

    Returns:
        Which boxes are kept, bool [G, P].
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in range(len(boxes)):
        candidates = torch.nonzero(scores[group] > above)[:, 0]
        chosen = nms(boxes[group, candidates], scores[group, candidates], iou)
        kept[group, candidates[chosen]] = True
    return kept


@grouped_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, above: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op("plrc::align_regions", mutates_args=())
def align_regions(
    features: Tensor, boxes: Tensor, images: Tensor, chosen: Tensor, scale: float, side: int, samples: int
) -> Tensor:
    """Pool some regions from one level of features; the others become zeros.

    Args:
        features: [B, C, h, w].
        boxes: [R, 4] in pixels.
        images: Number of the image of each region [R].
        chosen: Which regions lie on this level, bool [R].
        scale: Places of the features per pixel.
        side: Side of the pooled features.
        samples: Samples per side and place.

    Returns:
        [R, C, side, side].
    """
    pooled = features.new_zeros(len(boxes), features.shape[1], side, side)
    regions = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)[chosen]
    pooled[chosen] = roi_align(features, regions, side, scale, samples)
    return pooled


@align_regions.register_fake
def _(features: Tensor, boxes: Tensor, images: Tensor, chosen: Tensor, scale: float, side: int, samples: int) -> Tensor:
    return features.new_empty(boxes.shape[0], features.shape[1], side, side)


def _pool(pool: MultiScaleRoIAlign, levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Pool boxes [B, P, 4] from the level that torchvision's rule chooses: [B P, C, side, side]."""
    strides = [int(name) for name in pool.featmap_names]
    images = torch.arange(len(boxes), device=boxes.device)[:, None].expand(-1, boxes.shape[1]).flatten()
    regions = boxes.flatten(0, 1)
    sides = ((regions[:, 2] - regions[:, 0]) * (regions[:, 3] - regions[:, 1])).sqrt()
    exponents = torch.floor(pool.canonical_level + torch.log2(sides / pool.canonical_scale) + 1e-6)
    wanted = 2 ** exponents.clamp(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    pooled = torch.zeros((), device=boxes.device)
    for stride in strides:
        pooled = pooled + align_regions(
            levels[str(stride)],
            regions,
            images,
            wanted == stride,
            1 / stride,
            pool.output_size[0],
            pool.sampling_ratio,
        )
    return pooled


def _anchors(images: Tensor, level: Tensor, cell: Tensor) -> Tensor:
    """torchvision's anchors of a level [h w A, 4], where a place has the anchors `cell` [A, 4]."""
    height, width = level.shape[2:]
    y = torch.arange(height, device=cell.device) * (images.shape[2] // height)
    x = torch.arange(width, device=cell.device) * (images.shape[3] // width)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([columns, rows, columns, rows], dim=-1)
    return (shifts[:, :, None] + cell).flatten(0, 2)


def _is_inside(images: Tensor, sizes: Tensor) -> Tensor:
    """Which pixels belong to an image and not to its padding, [B, 1, H, W]."""
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    is_row = rows < sizes[:, :1]
    is_column = columns < sizes[:, 1:]
    return (is_row[:, :, None] & is_column[:, None])[:, None]


def _clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, P, 4] cut at the sides of their images."""
    height, width = sizes.to(boxes.dtype)[:, :, None].unbind(1)
    x0, y0, x1, y1 = boxes.unbind(dim=2)
    zero = torch.zeros_like(height)
    corners = [x0.clamp(zero, width), y0.clamp(zero, height), x1.clamp(zero, width), y1.clamp(zero, height)]
    return torch.stack(corners, dim=2)


def _has_sides(boxes: Tensor, least: float) -> Tensor:
    """Whether both sides of boxes [B, P, 4] are at least `least` pixels long."""
    return (boxes[:, :, 2] - boxes[:, :, 0] >= least) & (boxes[:, :, 3] - boxes[:, :, 1] >= least)


def _take(boxes: Tensor, chosen: Tensor) -> Tensor:
    return boxes.gather(1, chosen[:, :, None].expand(-1, -1, 4))
