"""Scores of detectors in percent: COCO's and Pascal VOC's average precision.

A score that is not defined (no object of that size) is nan.

Shapes: n objects or predictions of an image, N predictions of all images, M objects of all images, K classes.
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

_COCO_SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first of the scorer's `stats`
_THRESHOLDS = np.arange(50, 100, 5) / 100  # 0.5, 0.55 ... 0.95, each the nearest float64
_RECALLS = np.arange(11)  # tenths


@dataclass(frozen=True)
class Prediction:
    """What a detector predicts for an image, in any order.

    Attributes:
        boxes: [n, 4], x0 y0 x1 y1 in pixels, x1 and y1 exclusive.
        scores: [n], higher is more confident.
        classes: [n], from 0.
        masks: n masks as COCO run lengths of the size of the image; empty if only boxes are predicted.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: tuple[dict[str, Any], ...] = ()


def coco_metrics(
    truth: LabelledSet, predictions: Sequence[Prediction], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """Compute COCO's average precision.

    For each image and class the 100 most confident predictions count. Ignored objects are COCO's crowds: predictions
    inside them are neither right nor wrong.

    Args:
        truth: The labelled images.
        predictions: One for each image, in the same order.
        kind: IoU of boxes or of masks.

    Returns:
        AP (mean over IoU .50:.05:.95 and classes), AP50, AP75 and, by size of the object, APs, APm, APl.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingPackageError("COCO's scores", "faster-coco-eval") from error
    objects: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for index, (image, prediction) in enumerate(zip(truth.images, predictions, strict=True)):
        columns = _coco_shapes(kind, image.boxes, image.segments)
        columns |= {"area": image.areas.tolist(), "iscrowd": image.ignored.astype(int).tolist()}
        objects += _coco_rows(index, image.classes, columns)
        columns = _coco_shapes(kind, prediction.boxes, prediction.masks) | {"score": prediction.scores.tolist()}
        detections += _coco_rows(index, prediction.classes, columns)
    scorer = COCOeval_faster(
        COCO(_coco_table(truth, objects)),
        COCO(_coco_table(truth, detections)),
        iouType=kind,
        print_function=lambda *_: None,
    )
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    scores = {}
    for name, score in zip(_COCO_SCORES, scorer.stats.tolist(), strict=False):
        scores[name] = 100 * score if score >= 0 else math.nan  # -1: there is no such object
    return scores


def voc_metrics(truth: LabelledSet, predictions: Sequence[Prediction], eleven_points: bool) -> dict[str, float]:
    """Compute Pascal VOC's average precision by the rule of the VOC devkit.

    The predictions of a class, the most confident first over all images (ties: in their order), each belong to the
    object of highest IoU. At or above the threshold a prediction is right if it is the first of its object, wrong if
    the object is taken, and left out if the object is ignored (difficult); below it, it is wrong. Classes without
    objects are left out.

    Args:
        truth: The labelled images.
        predictions: One for each image, in the same order.
        eleven_points: True: AP is the mean of the best precision at recalls 0, .1 ... 1 (VOC 2007). False: the area
            under the curve (VOC 2010 and later).

    Returns:
        Means over classes: AP (mean over IoU .50:.05:.95), AP50 and AP75.
    """
    owner, overlap = _match(truth, predictions)
    scores = np.concatenate([prediction.scores for prediction in predictions])
    classes = np.concatenate([prediction.classes for prediction in predictions])
    ignored = np.concatenate([image.ignored for image in truth.images])
    object_classes = np.concatenate([image.classes for image in truth.images])
    totals = np.bincount(object_classes[~ignored], minlength=len(truth.classes))
    table = []
    for k in np.flatnonzero(totals):
        chosen = np.flatnonzero(classes == k)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        row = []
        for threshold in _THRESHOLDS:
            right = _judge(owner[chosen], overlap[chosen] >= threshold, ignored)
            row.append(_average_precision(right, int(totals[k]), eleven_points))
        table.append(row)
    by_threshold = np.array(table).reshape(-1, len(_THRESHOLDS))
    return {
        "AP": _mean_percent(by_threshold),
        "AP50": _mean_percent(by_threshold[:, 0]),
        "AP75": _mean_percent(by_threshold[:, 5]),
    }


def _coco_shapes(kind: str, boxes: NDArray[np.float32], masks: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """COCO's columns for the shapes of n objects: boxes (x, y, width, height) or masks, and their areas."""
    if kind == "segm":
        return {"segmentation": masks, "area": [float(mask_functions().area(mask)) for mask in masks]}
    corners = boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    return {"bbox": np.hstack([corners[:, :2], sides]).tolist(), "area": sides.prod(axis=1).tolist()}


def _coco_rows(image: int, classes: NDArray[np.int64], columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of n objects -> n COCO annotations."""
    rows = []
    for i, category in enumerate(classes.tolist()):
        row = {"image_id": image, "category_id": category}
        for name, column in columns.items():
            row[name] = column[i]
        rows.append(row)
    return rows


def _coco_table(truth: LabelledSet, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of a COCO file; ids start at 1 because 0 means "without a match" to the scorer."""
    return {
        "images": [{"id": i, "height": image.height, "width": image.width} for i, image in enumerate(truth.images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(truth.classes)],
        "annotations": [{"id": i, **row} for i, row in enumerate(rows, start=1)],
    }


def _match(truth: LabelledSet, predictions: Sequence[Prediction]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each prediction [N] the object of its class with the highest IoU, counted over all images, and that IoU."""
    owners = []
    overlaps = []
    offset = 0
    for image, prediction in zip(truth.images, predictions, strict=True):
        owner, overlap = _match_image(image, prediction)
        owners.append(offset + owner)
        overlaps.append(overlap)
        offset += len(image.classes)
    return np.concatenate(owners), np.concatenate(overlaps)


def _match_image(image: LabelledImage, prediction: Prediction) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The object of the image with the highest IoU [n], -1 if there is none, and that IoU [n].

    Boxes whose end is exclusive have the widths that the devkit computes from inclusive pixels with + 1.
    """
    boxes = torch.from_numpy(prediction.boxes.astype(np.float64))
    objects = torch.from_numpy(image.boxes.astype(np.float64))
    same_class = prediction.classes[:, None] == image.classes
    overlaps = np.where(same_class, box_iou(boxes, objects).numpy(), 0)
    overlaps = np.pad(overlaps, ((0, 0), (1, 0)))  # a first column for "no object"
    best = overlaps.argmax(axis=1)
    return best - 1, overlaps[np.arange(len(best)), best]


def _judge(owner: NDArray[np.int64], hit: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which predictions, the most confident first, are right; those that hit an ignored object are left out."""
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
    reached = np.searchsorted(10 * hits, objects * _RECALLS)  # the first prediction there; integers, so exact
    return float(np.append(best, 0)[reached].mean())


def _mean_percent(shares: NDArray[np.float64]) -> float:
    """100 x the mean; nan without values."""
    return 100 * float(shares.mean()) if shares.size else math.nan
