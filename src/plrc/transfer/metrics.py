"""Scores of detectors (COCO's and Pascal VOC's average precision), in percent.

A score that nothing defines (no object of that size, no pixel) is nan.

Shapes: n objects of an image, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from plrc.data.masks import mask_functions
from plrc.errors import MissingPackageError
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.splits import LabelledSet

_THRESHOLDS = np.arange(50, 100, 5) / 100  # 0.5, 0.55 ... 0.95, each the double nearest to it
_RECALLS = np.arange(11)  # tenths


@dataclass(frozen=True)
class Prediction:
    """What a detector found in one image, in any order."""

    boxes: NDArray[np.float32]
    """[n, 4]: x0 y0 x1 y1 in pixels, x1 and y1 exclusive."""
    scores: NDArray[np.float32]
    """[n], higher is surer."""
    classes: NDArray[np.int64]
    """[n], from 0."""
    masks: tuple[dict[str, Any], ...] = ()
    """[n] COCO run lengths of the image's size; () if boxes only."""


def coco_metrics(
    truth: LabelledSet, predictions: Sequence[Prediction], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """COCO's AP (mean over IoU .50:.05:.95 and classes), AP50, AP75 and, by size of the object, APs, APm, APl.

    The 100 surest predictions of a class in an image count. Ignored objects are COCO's crowds: predictions inside them
    are neither right nor wrong. kind: IoU of boxes or of masks. predictions: one for each image, in the set's order.
    Raises MissingPackageError if faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingPackageError("COCO's scores", "faster-coco-eval") from error
    objects, found = [], []
    for index, (image, prediction) in enumerate(zip(truth.images, predictions, strict=True)):
        known = {"area": image.areas.tolist(), "iscrowd": image.ignored.astype(int).tolist()}
        objects += _coco_rows(index, image.classes, _coco_shapes(kind, image.boxes, image.segments) | known)
        shapes = _coco_shapes(kind, prediction.boxes, prediction.masks)
        found += _coco_rows(index, prediction.classes, shapes | {"score": prediction.scores.tolist()})
    shared = {
        "images": [{"id": i, "height": image.height, "width": image.width} for i, image in enumerate(truth.images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(truth.classes)],
    }
    # ids from 1: to the scorer, 0 means "without a match"
    tables = [{**shared, "annotations": [{"id": i, **row} for i, row in enumerate(t, 1)]} for t in (objects, found)]
    scorer = COCOeval_faster(*map(COCO, tables), iouType=kind, print_function=lambda *_: None)
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    scores = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), scorer.stats.tolist(), strict=False))
    return {name: 100 * score if score >= 0 else math.nan for name, score in scores.items()}  # -1: no such object


def voc_metrics(truth: LabelledSet, predictions: Sequence[Prediction], eleven_points: bool) -> dict[str, float]:
    """Pascal VOC's AP at IoU .50 (AP50), at .75 (AP75), and the mean over .50:.05:.95 (AP); means over classes.

    The rule of the VOC devkit: the predictions of a class, surest first over all images (ties: in their order), each
    belong to the object of highest IoU. At least the threshold: right the first time, wrong if the object is taken,
    left out if it is ignored (difficult); else wrong. AP is the mean of the best precision at recalls 0, .1 ... 1
    (`eleven_points`, VOC 2007) or the area under its curve (2010 on). Classes without objects are left out.
    """
    offsets = np.cumsum([0, *(len(image.classes) for image in truth.images)])
    pairs = zip(truth.images, predictions, offsets[:-1], strict=True)
    nearest = [_nearest(image, prediction, int(offset)) for image, prediction, offset in pairs]
    owner, overlap = (np.concatenate(column) for column in zip(*nearest, strict=True))
    scores, classes = (np.concatenate([getattr(p, name) for p in predictions]) for name in ("scores", "classes"))
    ignored, known = (np.concatenate([getattr(i, name) for i in truth.images]) for name in ("ignored", "classes"))
    totals = np.bincount(known[~ignored], minlength=len(truth.classes))
    table = []
    for k in np.flatnonzero(totals):
        chosen = np.flatnonzero(classes == k)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        judged = [_judge(owner[chosen], overlap[chosen] >= threshold, ignored) for threshold in _THRESHOLDS]
        table.append([_average_precision(right, int(totals[k]), eleven_points) for right in judged])
    by_threshold = np.array(table).reshape(-1, len(_THRESHOLDS))
    return {"AP": _percent(by_threshold), "AP50": _percent(by_threshold[:, 0]), "AP75": _percent(by_threshold[:, 5])}


def _coco_shapes(kind: str, boxes: NDArray[np.float32], masks: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """COCO's columns for the shapes of n objects: boxes (x, y, width, height) or masks, and their areas."""
    if kind == "segm":
        return {"segmentation": masks, "area": [float(mask_functions().area(mask)) for mask in masks]}
    corners = boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    return {"bbox": np.hstack([corners[:, :2], sides]).tolist(), "area": sides.prod(axis=1).tolist()}


def _coco_rows(image: int, classes: NDArray[np.int64], columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of n objects -> n COCO annotations."""
    rows = zip(classes.tolist(), *columns.values(), strict=True)
    return [dict(zip(("image_id", "category_id", *columns), (image, *row), strict=True)) for row in rows]


def _nearest(
    image: LabelledImage, prediction: Prediction, offset: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each prediction [n] the object of its class with the highest IoU, counted over all images, and that IoU.

    Boxes that are exclusive at the end have the widths that the devkit computes from inclusive pixels with + 1.
    """
    boxes, objects = (torch.from_numpy(b.astype(np.float64)) for b in (prediction.boxes, image.boxes))
    same = prediction.classes[:, None] == image.classes
    overlaps = np.where(same, box_iou(boxes, objects).numpy(), 0)
    overlaps = np.pad(overlaps, ((0, 0), (1, 0)))  # a column for "none", where there is no object to be nearest
    best = overlaps.argmax(axis=1)
    return offset + best - 1, overlaps[np.arange(len(best)), best]


def _judge(owner: NDArray[np.int64], hit: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which predictions, surest first, are right; those that hit an ignored object are left out."""
    right = np.zeros_like(hit)
    _, first = np.unique(owner[hit], return_index=True)
    right[np.flatnonzero(hit)[first]] = True
    return right[~(hit & ignored[owner])]


def _average_precision(right: NDArray[np.bool_], objects: int, eleven_points: bool) -> float:
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    if not eleven_points:
        return float(best[right].sum() / objects)
    reached = np.searchsorted(10 * hits, objects * _RECALLS)  # the first prediction there; whole numbers, so exact
    return float(np.append(best, 0)[reached].mean())


def _percent(shares: NDArray[np.float64]) -> float:
    """100 x the mean; nan of nothing."""
    return 100 * float(shares.mean()) if shares.size else math.nan
