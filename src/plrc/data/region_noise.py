"""Noise on id maps: regions merged, split, displaced and reassigned, to make them worse on purpose.

With equal random numbers, the regions and pixels that a smaller setting changes are among those that a larger one
changes, so that quality falls steadily as a setting grows.

Shapes: h x w an id map of whole numbers, -1 unlabelled; k regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.config import RegionConfig

Ids = NDArray[np.int64]

_KNOTS = 9  # per side: displacements are drawn there, and interpolated in between


def add_noise(ids: NDArray[Any], config: RegionConfig, generators: Sequence[np.random.Generator]) -> Ids:
    """Merge, split, displace and reassign regions, in this order.

    Args:
        ids: Region ids [h, w]. A map without regions stays as it is.
        config: How much of each.
        generators: One for each of the four, so that a setting does not change the random numbers of the others.

    Returns:
        Region ids [h, w], which need not be contiguous.
    """
    ids = ids.astype(np.int64)
    if ids.max() < 0:
        return ids
    ids = merge(ids, config.merge, generators[0])
    ids = split(ids, config.split, generators[1])
    ids = displace(ids, config.jitter, generators[2])
    return reassign(ids, config.reassign, generators[3])


def merge(ids: Ids, probability: float, rng: np.random.Generator) -> Ids:
    """Merge each region, with this probability, into a neighbor drawn uniformly: [h, w] -> [h, w]."""
    k = int(ids.max()) + 1
    chance, choice = rng.random((k, 2)).T
    edges = np.concatenate([_neighbors(ids[:, 1:], ids[:, :-1]), _neighbors(ids[1:], ids[:-1])])
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    starts = np.searchsorted(edges[:, 0], np.arange(k + 1))
    root = np.arange(k)
    for region in np.flatnonzero((chance < probability) & (np.diff(starts) > 0)):
        neighbors = edges[starts[region] : starts[region + 1], 1]
        other = neighbors[int(choice[region] * len(neighbors))]
        root[root == root[region]] = root[other]
    return np.where(ids >= 0, root[ids], -1)


def split(ids: Ids, probability: float, rng: np.random.Generator) -> Ids:
    """Cut each region, with this probability, into halves of equal size by a line of random direction: [h, w]."""
    k = int(ids.max()) + 1
    chance, angle = rng.random((k, 2)).T * ((1,), (2 * np.pi,))
    flat = ids.ravel()
    cut = np.flatnonzero((flat >= 0) & (chance[flat] < probability))
    region = flat[cut]
    row, column = np.divmod(cut, ids.shape[1])
    order = np.lexsort((row * np.sin(angle[region]) + column * np.cos(angle[region]), region))
    cells = np.bincount(region, minlength=k)
    rank = np.arange(len(cut)) - (np.cumsum(cells) - cells)[region[order]]
    out = flat.copy()
    out[cut[order]] += k * (2 * rank >= cells[region[order]])
    return out.reshape(ids.shape)


def displace(ids: Ids, amount: float, rng: np.random.Generator) -> Ids:
    """Read each cell's id at a displaced place, unlabelled areas included: [h, w] -> [h, w].

    Args:
        ids: Region ids.
        amount: Standard deviation of the normal displacements at 9 x 9 knots, as a share of the map's sides; linear in
            between. Displacements below half a cell change nothing.
        rng: Source of the displacements.
    """
    height, width = ids.shape
    shifts = amount * rng.standard_normal((2, _KNOTS, _KNOTS))
    row_weights = _interpolation_weights(height)
    column_weights = _interpolation_weights(width)
    row_shift = row_weights @ shifts[0] @ column_weights.T * height
    column_shift = row_weights @ shifts[1] @ column_weights.T * width
    row = np.rint(np.arange(height)[:, None] + row_shift).astype(np.int64).clip(0, height - 1)
    column = np.rint(np.arange(width)[None, :] + column_shift).astype(np.int64).clip(0, width - 1)
    return np.asarray(ids[row, column])


def reassign(ids: Ids, probability: float, rng: np.random.Generator) -> Ids:
    """Give each labelled cell, with this probability, the id of a region drawn uniformly: [h, w] -> [h, w].

    The region may be its own, so that on average probability * (1 - 1/k) of the labelled cells change.
    """
    known = np.unique(ids[ids >= 0])
    chance, choice = rng.random((2, *ids.shape))
    return np.where((ids >= 0) & (chance < probability), known[(choice * len(known)).astype(np.int64)], ids)


def _neighbors(a: Ids, b: Ids) -> Ids:
    """Ids [m, 2] of neighboring cells of different regions."""
    pairs = np.stack([a.ravel(), b.ravel()], axis=1)
    return np.asarray(pairs[(a != b).ravel() & (pairs >= 0).all(axis=1)])


def _interpolation_weights(side: int) -> NDArray[np.float64]:
    """Weights [side, knots] of linear interpolation between knots at equal distances."""
    place = np.linspace(0, _KNOTS - 1, side)
    return np.asarray(np.maximum(1 - np.abs(place[:, None] - np.arange(_KNOTS)), 0))
