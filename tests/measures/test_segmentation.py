"""Scores of label maps against a slow loop and cases counted by hand."""

import math

import numpy as np
import pytest

from plrc.measures.segmentation import class_iou, confusion_matrix, semantic_metrics


def test_confusion_and_scores_equal_a_slow_loop():
    draw = np.random.default_rng(0)
    labels = draw.choice([0, 1, 2, 4, 255], (7, 9)).astype(np.uint8)  # class 3 occurs nowhere
    guesses = np.where(draw.random((7, 9)) < 0.6, labels % 255, draw.choice([0, 1, 4, 5], (7, 9)))  # 5 only here
    expected = np.zeros((6, 6), dtype=np.int64)
    for label, guess in zip(labels.ravel().tolist(), guesses.ravel().tolist(), strict=True):
        if label != 255:
            expected[label, guess] += 1
    counts = confusion_matrix(labels, guesses, 6)
    assert np.array_equal(counts, expected)
    ious = []
    for k in range(6):
        hit = sum(a == b == k for a, b in zip(labels.ravel(), guesses.ravel(), strict=True))
        either = sum(a != 255 and k in (a, b) for a, b in zip(labels.ravel(), guesses.ravel(), strict=True))
        ious.append(hit / either if either else math.nan)
    assert class_iou(counts) == pytest.approx(ious, nan_ok=True)
    assert [k for k, iou in enumerate(ious) if math.isnan(iou)] == [3]
    occurring = [iou for iou in ious if not math.isnan(iou)]
    right = sum(a == b for a, b in zip(labels.ravel(), guesses.ravel(), strict=True)) / (labels != 255).sum()
    assert semantic_metrics(counts) == pytest.approx({"mIoU": 100 * np.mean(occurring), "accuracy": 100 * right})


def test_scores_of_label_maps_counted_by_hand():
    """Class 0: 2 of 4 pixels (union 4), class 1: 3 of 3 (union 5), class 2: nowhere."""
    scores = semantic_metrics(
        confusion_matrix(np.array([0, 0, 0, 0, 1, 1, 1, 255]), np.array([0, 0, 1, 1, 1, 1, 1, 0]), 3)
    )
    assert scores == pytest.approx({"mIoU": 100 * (2 / 4 + 3 / 5) / 2, "accuracy": 100 * 5 / 7})
    assert all(map(math.isnan, semantic_metrics(np.zeros((2, 2), dtype=np.int64)).values()))
