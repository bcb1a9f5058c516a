"""How well features group the points of an object: a measure that needs masks, but no training.

Shapes: n images, C channels, h x w the feature grid, H x W the masks, N points, P pairs of points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.errors import DataError
from plrc.geometry import sample
from plrc.rng import generator

_BINS = 32  # of distance


@torch.no_grad()
def grouping_auc(
    features: Tensor,
    instances: Tensor,
    *,
    points: int = 128,
    match_distance: bool = True,
    seed: int = 0,
) -> float:
    """Measure how well the affinity (cosine) of two points predicts whether they lie on the same object.

    Pairs are formed within an image and have at least one point on an object: positive if both are on the same object;
    negative if they are on two objects or on an object and the background. All pairs share one ranking.

    With `match_distance` the pairs are put into bins of distance with equally many positives, and in each bin the
    negatives are weighted to the total of the positives. Without it, locality passes for grouping: points of one object
    lie close together, and any smooth map is more similar at close points, even that of a random network (about 0.85)
    or of the position alone. With it, features that encode nothing but the position score 0.5.

    Args:
        features: [n, C, h, w], read bilinearly.
        instances: Object of each pixel [n, H, W]: 0 background, above 0 an object, below 0 unlabelled (never drawn).
        points: Number of random pixels per image.
        match_distance: Whether to match the distances of positive and negative pairs.
        seed: Seed of the draw of points.

    Returns:
        ROC-AUC in [0, 1]; 0.5 is chance.

    Raises:
        DataError: There is no positive or no negative pair, or none at the distances of the other kind.
    """
    scores = []
    distances = []
    same = []
    for image, ids in enumerate(instances.cpu().numpy()):
        where, owner = _draw_points(ids, points, seed, image)
        first, second = np.triu_indices(len(owner), k=1)
        on_object = (owner[first] > 0) | (owner[second] > 0)
        first = first[on_object]
        second = second[on_object]
        read = sample(features[image : image + 1], torch.from_numpy(where).to(features.device)[None])[0]
        unit = F.normalize(read, dim=-1)
        scores.append((unit @ unit.T).cpu().numpy()[first, second])
        distances.append(np.linalg.norm(where[first] - where[second], axis=1))
        same.append(owner[first] == owner[second])
    positive = np.concatenate([np.zeros(0, dtype=bool), *same])
    if positive.all() or not positive.any():
        raise DataError("grouping needs pairs on the same object and pairs on different ones; give images with objects")
    score = np.concatenate(scores)
    weight = np.ones(len(score))
    if match_distance:
        weight = _matched_weights(np.concatenate(distances), positive)
        if not weight.any():
            raise DataError(
                "grouping needs pairs at equal distances on the same and on different objects; give images "
                "with larger objects, or more of them"
            )
    return weighted_auc(score, positive, weight)


def weighted_auc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Compute the probability that a positive outscores a negative, both drawn by weight; ties count half.

    Args:
        score: [P].
        positive: bool [P].
        weight: [P].
    """
    _, level = np.unique(score, return_inverse=True)
    positives = np.bincount(level, weights=weight * positive)
    negatives = np.bincount(level, weights=weight * ~positive)
    return float((positives * (np.cumsum(negatives) - negatives / 2)).sum() / (positives.sum() * negatives.sum()))


def pixel_centers(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert row-major pixel numbers [N] of a map to centers (x, y) as shares of the sides, float32 [N, 2]."""
    x = (pixels % width + 0.5) / width
    y = (pixels // width + 0.5) / height
    return np.stack([x, y], axis=1).astype(np.float32)


def _matched_weights(distance: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Weights [P] that give positives and negatives the same total in every bin of distance, 0 in a one-sided bin."""
    edges = np.unique(np.quantile(distance[positive], np.linspace(0, 1, _BINS + 1)))
    which = np.digitize(distance, edges[1:-1])
    inside = (distance >= edges[0]) & (distance <= edges[-1])
    positives = np.bincount(which, weights=positive & inside, minlength=len(edges))
    negatives = np.bincount(which, weights=~positive & inside, minlength=len(edges))
    ratio = np.divide(positives, negatives, out=np.zeros_like(positives), where=negatives > 0)
    return np.asarray(inside * np.where(positive, negatives[which] > 0, ratio[which]))


def _draw_points(ids: np.ndarray, count: int, seed: int, image: int) -> tuple[np.ndarray, np.ndarray]:
    """Centers [N, 2] of `count` distinct labelled pixels, and their ids [N]."""
    candidates = np.flatnonzero(ids.ravel() >= 0)
    rng = generator(seed, "probe", epoch=1, index=image)
    chosen = rng.choice(candidates, size=min(count, len(candidates)), replace=False)
    return pixel_centers(chosen, *ids.shape), ids.ravel()[chosen]
