"""Scores of semantic segmentation, from the counts of pixels by true and predicted class.

Shapes: K classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = 255
"""Label of a pixel that is neither trained on nor scored."""


def confusion_matrix(labels: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Count pixels by true class (row) and predicted class (column).

    Args:
        labels: True classes, integers from 0 to `classes` - 1; pixels labelled 255 are left out.
        predicted: Predicted classes, integers of the shape of `labels`.
        classes: K, the number of classes.

    Returns:
        Counts [K, K].
    """
    kept = labels != IGNORED
    pairs = labels[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the intersection over union of each class from a confusion matrix [K, K].

    Returns:
        IoU in [0, 1] of each class [K]; nan for a class that occurs neither in the labels nor in the prediction.
    """
    hits = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / union)  # 0 / 0 = nan


def semantic_metrics(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Compute mean IoU and pixel accuracy from a confusion matrix [K, K].

    Returns:
        "mIoU" (mean over the classes that occur in labels or prediction) and "accuracy" (share of correct pixels), in
        percent; nan if no pixel was counted.
    """
    pixels = confusion.sum()
    if pixels == 0:
        return {"mIoU": math.nan, "accuracy": math.nan}
    iou = class_iou(confusion)
    occurring = iou[~np.isnan(iou)]
    return {"mIoU": 100 * float(occurring.mean()), "accuracy": 100 * float(confusion.trace() / pixels)}
