"""Which points of the views are compared: points of shared regions, and the same physical points in two views.

Everything works on whole batches on any device, without host synchronization. There is no randomness: uniform numbers
in [0, 1) are arguments; `contrast_draws` and `match_draws` return how many are needed.

Shapes: B images, N points, P candidates per view, R regions (ids local to the image), h x w an id map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plrc import geometry

CANDIDATES = 32
"""Candidates per side of a view from which points are taken."""

NEAR = 0.7
"""Largest distance to a positive of `pixel_points`, in diagonals of a cell."""

_P = CANDIDATES**2
_RANK_BITS = 24  # a float32 in [0, 1) has 24 bits


class ContrastPoints(NamedTuple):
    """Points of two views and their region ids: equal ids are positives, points with id -1 are left out.

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
    return 6 * _P + 1  # two views: two coordinates and a rank per candidate; one offset


def match_draws(num_points: int) -> int:
    """Return how many uniform numbers per image `match_points` needs."""
    return 2 * num_points


def contrast_points(
    regions: Tensor, num_regions: int, map_query: Tensor, map_key: Tensor, uniform: Tensor, num_points: int
) -> ContrastPoints:
    """Draw points of two views, distributed over the regions that both views show as equally as their number allows.

    Each view has CANDIDATES x CANDIDATES jittered points; a region is shared if it has one in both. Slot j takes the
    shared region j + offset (modulo their number; the random offset distributes the remainder), and within a region the
    candidates come in random order, none twice until all are used. METHOD section 3 "Points".

    Args:
        regions: Ids in the image frame, integer [B, h, w], -1 unlabelled.
        num_regions: All ids are below this number; h * w is always enough.
        map_query: Maps from the query view to the image, [B, 4].
        map_key: Maps from the key view to the image, [B, 4].
        uniform: Uniform random numbers [B, contrast_draws()].
        num_points: N.

    Returns:
        N points of each view, with N = M. If the views of an image share no region, all its ids are -1.
    """
    batch = len(regions)
    places = uniform[:, : 4 * _P].view(batch, 2, _P, 2)
    ranks = uniform[:, 4 * _P : 6 * _P].view(batch, 2, _P)
    query, query_bounds = _candidates(regions, num_regions, map_query, places[:, 0], ranks[:, 0])
    key, key_bounds = _candidates(regions, num_regions, map_key, places[:, 1], ranks[:, 1])

    number = ((query_bounds.diff() > 0) & (key_bounds.diff() > 0)).cumsum(dim=1)
    shared = number[:, -1:]
    slot = torch.arange(num_points, device=regions.device)
    at_least_one = shared.clamp(min=1)
    turn = (slot + (uniform[:, -1:] * shared).long()) % at_least_one
    region = torch.searchsorted(number, turn + 1).where(shared > 0, -1)
    visit = slot // at_least_one
    return ContrastPoints(
        query=_take(query, query_bounds, region, visit),
        key=_take(key, key_bounds, region, visit),
        query_regions=region,
        key_regions=region,
    )


def pixel_points(map_query: Tensor, map_key: Tensor, side: int) -> ContrastPoints:
    """Return all positions of the feature grids of two views; a query's positive is the nearest position of the key.

    Nearest in the image frame, and only if the distance is below NEAR times the diagonal of the larger of both views'
    cells; a query without such a position has the id -1. METHOD section 5 (`pixel`).

    Args:
        map_query: Maps from the query view to the image, [B, 4].
        map_key: Maps from the key view to the image, [B, 4].
        side: Cells per side of the feature grids.

    Returns:
        side * side points of each view.
    """
    grid = geometry.cell_centers(side, side, map_query.device)
    points = grid.expand(len(map_query), -1, -1)
    places = geometry.to_image(points, map_query)
    cell = (geometry.to_view(places, map_key) * side).long().clamp(0, side - 1)
    nearest = cell[..., 1] * side + cell[..., 0]
    distance = (places - geometry.to_image(grid[nearest], map_key)).norm(dim=-1)
    diagonal = torch.maximum(map_query[:, :2].norm(dim=-1), map_key[:, :2].norm(dim=-1)) / side
    positive = nearest.where(distance < NEAR * diagonal[:, None], -1)
    own = torch.arange(side * side, device=grid.device).expand_as(nearest)
    return ContrastPoints(points, points, positive, own)


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
    regions: Tensor, num_regions: int, maps: Tensor, places: Tensor, ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """Jittered points of a view [B, P, 2], sorted by region and at random within it, and the bounds of the regions.

    Candidates bounds[r] up to bounds[r + 1] lie in region r: bounds [B, R + 1]. Unlabelled ones come before region 0.
    """
    cells = geometry.cell_centers(CANDIDATES, CANDIDATES, places.device)
    points = cells + (places - 0.5) / CANDIDATES
    ids = geometry.look_up(regions, geometry.to_image(points, maps))
    sort_keys = (ids << _RANK_BITS) + (ranks * 2**_RANK_BITS).long()
    ordered, order = sort_keys.sort(dim=1, stable=True)
    starts = torch.arange(num_regions + 1, device=ids.device) << _RANK_BITS
    bounds = torch.searchsorted(ordered, starts.repeat(len(ids), 1))
    return points.gather(1, order[:, :, None].expand(-1, -1, 2)), bounds


def _take(points: Tensor, bounds: Tensor, region: Tensor, visit: Tensor) -> Tensor:
    """The candidate of `region` [B, N] at its `visit`-th visit, [B, N, 2]; any candidate for the region -1."""
    start = bounds.gather(1, region.clamp(min=0)).where(region >= 0, 0)
    end = bounds.gather(1, region.clamp(min=0) + 1).where(region >= 0, points.shape[1])
    position = start + visit % (end - start)
    return points.gather(1, position[:, :, None].expand(-1, -1, 2))
