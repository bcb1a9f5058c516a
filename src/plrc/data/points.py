"""Which points of the views are compared: points of shared regions, and the same physical points in two views.

Everything works on whole batches on any device, without host synchronization. There is no randomness: uniform numbers
in [0, 1) are arguments; `contrast_draws` and `match_draws` return how many are needed.

Shapes: B images, N points (M of the key view), P candidates per view, R regions (ids local to the image),
h x w an id map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plrc import geometry

CANDIDATES_PER_SIDE = 32
"""Each view has a grid of this many candidates per side; points are taken from them."""

MAX_POSITIVE_DISTANCE = 0.7
"""`pixel_points`: largest distance between a query and its positive, as a multiple of the diagonal of a cell."""

_CANDIDATES = CANDIDATES_PER_SIDE**2  # of one view
_RANK_BITS = 24  # low bits of a sort key, for a rank: NumPy's uniform float32 numbers have 24 bits


class ContrastPoints(NamedTuple):
    """Points of two views and their region ids: equal ids are positives, and the loss ignores points with id -1.

    Attributes:
        query: Points in the frame of the query view, [B, N, 2].
        key: Points in the frame of the key view, [B, M, 2].
        query_regions: Ids, long [B, N].
        key_regions: Ids, long [B, M].
    """

    query: Tensor
    key: Tensor
    query_regions: Tensor
    key_regions: Tensor


class MatchPoints(NamedTuple):
    """The same physical points in views A and B.

    Attributes:
        student: Points in the frame of A, [B, N, 2].
        teacher: Points in the frame of B, clamped into it, [B, N, 2].
        valid: Whether the point lies inside of B, bool [B, N].
    """

    student: Tensor
    teacher: Tensor
    valid: Tensor


def contrast_draws() -> int:
    """Return how many uniform numbers per image `contrast_points` needs."""
    return 6 * _CANDIDATES + 1  # two views: two coordinates and a rank per candidate; one offset


def match_draws(num_points: int) -> int:
    """Return how many uniform numbers per image `match_points` needs."""
    return 2 * num_points


def contrast_points(
    regions: Tensor, num_regions: int, map_query: Tensor, map_key: Tensor, uniform: Tensor, num_points: int
) -> ContrastPoints:
    """Draw points of two views. Every region that both views show gets about the same number of points.

    Each view has a grid of jittered candidates. A region is shared if it has a candidate in both views. The points take
    turns: point j belongs to shared region number (j + offset) modulo the number of shared regions. The offset is
    random, so that no region is preferred when the points do not divide evenly. Within a region the candidates come in
    random order, and none is used twice before all were used once. METHOD section 3 "Points".

    Args:
        regions: Ids in the image frame, integer [B, h, w], -1 unlabelled.
        num_regions: An upper bound: all ids are below it; h * w is always enough.
        map_query: Maps from the query view to the image, [B, 4].
        map_key: Maps from the key view to the image, [B, 4].
        uniform: Uniform random numbers [B, contrast_draws()].
        num_points: N.

    Returns:
        N points of each view, with N = M. If the views of an image share no region, all its ids are -1.
    """
    batch = len(regions)
    jitter = uniform[:, : 4 * _CANDIDATES].view(batch, 2, _CANDIDATES, 2)
    ranks = uniform[:, 4 * _CANDIDATES : 6 * _CANDIDATES].view(batch, 2, _CANDIDATES)
    query, query_bounds = _candidates(regions, num_regions, map_query, jitter[:, 0], ranks[:, 0])
    key, key_bounds = _candidates(regions, num_regions, map_key, jitter[:, 1], ranks[:, 1])

    is_shared = (query_bounds.diff() > 0) & (key_bounds.diff() > 0)  # [B, R]
    shared_so_far = is_shared.cumsum(dim=1)
    num_shared = shared_so_far[:, -1:]
    divisor = num_shared.clamp(min=1)
    slot = torch.arange(num_points, device=regions.device)
    offset = (uniform[:, -1:] * num_shared).long()
    nth_shared = (slot + offset) % divisor
    # the n-th shared region (from 0) is the first region where the running count reaches n + 1
    region = torch.searchsorted(shared_so_far, nth_shared + 1).where(num_shared > 0, -1)
    round_number = slot // divisor  # how many points the region has already
    return ContrastPoints(
        query=_take(query, query_bounds, region, round_number),
        key=_take(key, key_bounds, region, round_number),
        query_regions=region,
        key_regions=region,
    )


def pixel_points(map_query: Tensor, map_key: Tensor, side: int) -> ContrastPoints:
    """Return all positions of the feature grids of two views; a query's positive is the nearest position of the key.

    The distance is measured in the image frame. It must be below MAX_POSITIVE_DISTANCE times the diagonal of a cell (of
    the view with the larger cells); otherwise the query has no positive. METHOD section 5 (`pixel`).

    Args:
        map_query: Maps from the query view to the image, [B, 4].
        map_key: Maps from the key view to the image, [B, 4].
        side: Cells per side of the feature grids.

    Returns:
        side * side points of each view. The region id of a key is its position in the grid; that of a query is the
        position of its positive, or -1 if it has none.
    """
    grid = geometry.cell_centers(side, side, map_query.device)
    points = grid.expand(len(map_query), -1, -1)
    in_image = geometry.to_image(points, map_query)
    cell = (geometry.to_view(in_image, map_key) * side).long().clamp(0, side - 1)
    nearest = cell[..., 1] * side + cell[..., 0]
    distance = (in_image - geometry.to_image(grid[nearest], map_key)).norm(dim=-1)
    diagonal = torch.maximum(map_query[:, :2].norm(dim=-1), map_key[:, :2].norm(dim=-1)) / side
    positive = nearest.where(distance < MAX_POSITIVE_DISTANCE * diagonal[:, None], -1)
    key_position = torch.arange(side * side, device=grid.device).expand_as(nearest)
    return ContrastPoints(points, points, positive, key_position)


def match_points(map_query: Tensor, map_match: Tensor, uniform: Tensor, num_points: int) -> MatchPoints:
    """Return uniform points of view A and where they lie in view B. METHOD section 3.

    Args:
        map_query: Maps from A to the image, [B, 4].
        map_match: Maps from B to the image, [B, 4].
        uniform: Uniform random numbers [B, match_draws(num_points)].
        num_points: N.
    """
    student = uniform.view(-1, num_points, 2)
    teacher = geometry.to_view(geometry.to_image(student, map_query), map_match)
    return MatchPoints(student, teacher.clamp(0, 1), geometry.inside(teacher))


def _candidates(
    regions: Tensor, num_regions: int, maps: Tensor, jitter: Tensor, ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the candidates of a view, sorted by region and then by rank: points [B, P, 2], bounds [B, R + 1].

    Candidates bounds[r] to bounds[r + 1] - 1 of the sorted ones lie in region r. Unlabelled ones come before region 0.
    """
    cells = geometry.cell_centers(CANDIDATES_PER_SIDE, CANDIDATES_PER_SIDE, jitter.device)
    points = cells + (jitter - 0.5) / CANDIDATES_PER_SIDE
    ids = geometry.look_up(regions, geometry.to_image(points, maps))
    # one integer per candidate: the region in the high bits, the rank in the low ones
    sort_keys = (ids << _RANK_BITS) + (ranks * 2**_RANK_BITS).long()
    ordered, order = sort_keys.sort(dim=1, stable=True)
    starts = torch.arange(num_regions + 1, device=ids.device) << _RANK_BITS
    bounds = torch.searchsorted(ordered, starts.repeat(len(ids), 1))
    return points.gather(1, order[:, :, None].expand(-1, -1, 2)), bounds


def _take(points: Tensor, bounds: Tensor, region: Tensor, number: Tensor) -> Tensor:
    """Take a candidate of each `region` [B, N], the one with this number, counted cyclically: points [B, N, 2].

    For region -1, which is ignored, all candidates are counted.
    """
    start = bounds.gather(1, region.clamp(min=0)).where(region >= 0, 0)
    end = bounds.gather(1, region.clamp(min=0) + 1).where(region >= 0, points.shape[1])
    position = start + number % (end - start)
    return points.gather(1, position[:, :, None].expand(-1, -1, 2))
