"""The quality knob: id maps made worse by merges, splits, displaced boundaries and reassigned pixels.

Layer 1: imports config. Functions of an id map and a generator. With equal draws, the regions and pixels that a smaller
share changes are among those that a larger one does, so that quality falls steadily as a knob turns.

Shapes: h x w an id map of whole numbers, -1 unlabelled; k regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.config import RegionConfig

Ids = NDArray[np.int64]

_KNOTS = 9  # per side: displacements are drawn there, and linear in between


def add_noise(ids: NDArray[Any], config: RegionConfig, streams: Sequence[np.random.Generator]) -> Ids:
    """Merge, split, displace and reassign, in this order, as the settings say: [h, w] -> [h, w].

    streams: a generator for each of the four, so that turning one knob leaves the others' draws alone. Ids that come
    out need not be contiguous. A map without regions stays as it is.
    """
    if ids.max() < 0:
        return ids.astype(np.int64)
    changed = merge(ids.astype(np.int64), config.merge, streams[0])
    changed = split(changed, config.split, streams[1])
    changed = displace(changed, config.jitter, streams[2])
    return reassign(changed, config.reassign, streams[3])


def merge(ids: Ids, share: float, rng: np.random.Generator) -> Ids:
    """Each region is merged, with probability `share`, into one of those that it has an edge with, drawn uniformly."""
    k = int(ids.max()) + 1
    chance, choice = rng.random((k, 2)).T
    edges = np.concatenate([_pairs(ids[:, 1:], ids[:, :-1]), _pairs(ids[1:], ids[:-1])])
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    starts = np.searchsorted(edges[:, 0], np.arange(k + 1))
    root = np.arange(k)
    for region in np.flatnonzero((chance < share) & (np.diff(starts) > 0)):
        neighbours = edges[starts[region] : starts[region + 1], 1]
        other = neighbours[int(choice[region] * len(neighbours))]
        root[root == root[region]] = root[other]
    return np.where(ids >= 0, root[ids], -1)


def split(ids: Ids, share: float, rng: np.random.Generator) -> Ids:
    """Each region is cut, with probability `share`, into halves of equal size by a line of random direction."""
    k = int(ids.max()) + 1
    chance, angle = rng.random((k, 2)).T * ((1,), (2 * np.pi,))
    flat = ids.ravel()
    cut = np.flatnonzero((flat >= 0) & (chance[flat] < share))
    region, (row, column) = flat[cut], np.divmod(cut, ids.shape[1])
    order = np.lexsort((row * np.sin(angle[region]) + column * np.cos(angle[region]), region))
    cells = np.bincount(region, minlength=k)
    rank = np.arange(len(cut)) - (np.cumsum(cells) - cells)[region[order]]
    out = flat.copy()
    out[cut[order]] += k * (2 * rank >= cells[region[order]])
    return out.reshape(ids.shape)


def displace(ids: Ids, amount: float, rng: np.random.Generator) -> Ids:
    """Each cell reads the id of a displaced place: smooth, normal displacements of standard deviation `amount`, a share
    of the map's sides, at 9 x 9 knots. Below half a cell nothing moves. Unlabelled areas are displaced alike."""
    shifts = amount * rng.standard_normal((2, _KNOTS, _KNOTS))
    weights = [_linear(side) for side in ids.shape]
    rows, columns = (weights[0] @ shift @ weights[1].T * side for shift, side in zip(shifts, ids.shape, strict=True))
    row = np.rint(np.arange(ids.shape[0])[:, None] + rows).astype(np.int64).clip(0, ids.shape[0] - 1)
    column = np.rint(np.arange(ids.shape[1])[None, :] + columns).astype(np.int64).clip(0, ids.shape[1] - 1)
    return np.asarray(ids[row, column])


def reassign(ids: Ids, share: float, rng: np.random.Generator) -> Ids:
    """Each labelled cell gets, with probability `share`, the id of a region drawn uniformly, its own among them: so a
    share (1 - 1/k) of the labelled cells changes, times `share`, on average."""
    known = np.unique(ids[ids >= 0])
    chance, choice = rng.random((2, *ids.shape))
    return np.where((ids >= 0) & (chance < share), known[(choice * len(known)).astype(np.int64)], ids)


def _pairs(a: Ids, b: Ids) -> Ids:
    """Ids [m, 2] of neighbouring cells with different regions."""
    pairs = np.stack([a.ravel(), b.ravel()], axis=1)
    return np.asarray(pairs[(a != b).ravel() & (pairs >= 0).all(axis=1)])


def _linear(side: int) -> NDArray[np.float64]:
    """Weights [side, knots] of linear interpolation from knots spread evenly over the side."""
    place = np.linspace(0, _KNOTS - 1, side)
    return np.asarray(np.maximum(1 - np.abs(place[:, None] - np.arange(_KNOTS)), 0))
