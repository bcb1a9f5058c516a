"""How well features group the points of an object: a measure that needs masks, but no training.

Layer 4. Pure: features and masks in, a number out.

Shapes: n images, C channels, h x w the features' lattice, H x W the masks, N points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.errors import PlrcError
from plrc.geometry import sample
from plrc.rng import generator


@torch.no_grad()
def grouping_auc(
    features: Tensor,
    instances: Tensor,
    *,
    points: int = 128,
    bins: int = 32,
    match_distance: bool = True,
    seed: int = 0,
) -> float:
    """How well the affinity (cosine) of two points tells whether they lie on the same object: ROC-AUC, 0.5 is chance.

    features [n, C, h, w], read bilinearly at `points` random pixels an image; instances [n, H, W]: 0 background, above
    0 an object, below 0 unlabelled (never drawn). Pairs are of one image and have at least one point on an object:
    positive if both are on the same object; negative if on two objects or on an object and the background. Pairs
    inside the background are left out. All images' pairs share one ranking.

    With `match_distance` the pairs are put into `bins` bins of distance with equally many positives, and in each bin
    the negatives are weighted to the positives' total. Without it locality passes for grouping: points of one object
    lie close together, and any smooth map is more alike at close points, even that of a random network (about 0.85) or
    of the bare position. Matched, features that know nothing but position score 0.5.
    Raises PlrcError where there is no positive or no negative pair.
    """
    scores, distances, same = [], [], []
    for image, ids in enumerate(instances.cpu().numpy()):
        where, owner = _draw_points(ids, points, seed, image)
        first, second = np.triu_indices(len(owner), k=1)
        kept = (owner[first] > 0) | (owner[second] > 0)
        first, second = first[kept], second[kept]
        read = sample(features[image : image + 1], torch.from_numpy(where).to(features.device)[None])[0]
        unit = F.normalize(read, dim=-1)
        scores.append((unit @ unit.T).cpu().numpy()[first, second])
        distances.append(np.linalg.norm(where[first] - where[second], axis=1))
        same.append(owner[first] == owner[second])
    score, distance, positive = np.concatenate(scores), np.concatenate(distances), np.concatenate(same)
    if positive.all() or not positive.any():
        raise PlrcError("grouping needs pairs on the same object and pairs on different ones; give images with objects")
    weight = _matched_weights(distance, positive, bins) if match_distance else np.ones(len(score))
    return weighted_auc(score, positive, weight)


def weighted_auc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Chance that a positive outscores a negative, both drawn by weight; ties count half. All arguments [N]."""
    _, level = np.unique(score, return_inverse=True)
    above = np.bincount(level, weights=weight * positive)
    below = np.bincount(level, weights=weight * ~positive)
    return float((above * (np.cumsum(below) - below / 2)).sum() / (above.sum() * below.sum()))


def _matched_weights(distance: np.ndarray, positive: np.ndarray, bins: int) -> np.ndarray:
    """Weights [N] that give positives and negatives the same total in every bin of distance, 0 in a one-sided bin."""
    edges = np.unique(np.quantile(distance[positive], np.linspace(0, 1, bins + 1)))
    which = np.digitize(distance, edges[1:-1])
    inside = (distance >= edges[0]) & (distance <= edges[-1])
    positives = np.bincount(which, weights=positive & inside, minlength=len(edges))
    negatives = np.bincount(which, weights=~positive & inside, minlength=len(edges))
    ratio = np.divide(positives, negatives, out=np.zeros_like(positives), where=negatives > 0)
    return np.asarray(inside * np.where(positive, negatives[which] > 0, ratio[which]))


def _draw_points(ids: np.ndarray, count: int, seed: int, image: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) of `count` distinct labelled pixels, as shares of the sides [N, 2], and their ids [N]."""
    candidates = np.flatnonzero(ids.ravel() >= 0)
    rng = generator(seed, "probe", epoch=1, index=image)
    chosen = rng.choice(candidates, size=min(count, len(candidates)), replace=False)
    return centers(chosen, *ids.shape), ids.ravel()[chosen]


def centers(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Row-major pixel numbers [N] -> centers (x, y) as shares of the sides, float32 [N, 2]."""
    return np.stack([(pixels % width + 0.5) / width, (pixels // width + 0.5) / height], axis=1).astype(np.float32)
