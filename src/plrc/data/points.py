"""Which points of the views are compared: points of shared regions, and the same physical points in two views.

Layer 1: imports geometry. Works on whole batches on any device, without host synchronisation and without randomness of
its own: uniform numbers in [0, 1) come in, `contrast_draws` and `match_draws` say how many.

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
"""How near a positive of `pixel_points` must be, in diagonals of a cell."""

_P = CANDIDATES**2
_KEY_BITS = 24  # a float32 in [0, 1) has 24 bits


class ContrastPoints(NamedTuple):
    """Points of two views, each in its view's frame, and their ids: equal ids are positives, -1 leaves a point out."""

    query: Tensor  # [B, N, 2]
    key: Tensor  # [B, M, 2]
    query_regions: Tensor  # long [B, N]
    key_regions: Tensor  # long [B, M]


class MatchPoints(NamedTuple):
    """The same physical points in A and B, each in its view's frame; `valid` where the point lies inside B."""

    student: Tensor  # [B, N, 2]
    teacher: Tensor  # [B, N, 2], clamped into the frame
    valid: Tensor  # bool [B, N]


def contrast_draws() -> int:
    """Uniform numbers per image for `contrast_points`: per candidate of two views a place and a rank; one offset."""
    return 6 * _P + 1


def match_draws(n: int) -> int:
    """Uniform numbers per image for `match_points`."""
    return 2 * n


def contrast_points(
    regions: Tensor, count_regions: int, map_query: Tensor, map_key: Tensor, uniform: Tensor, n: int
) -> ContrastPoints:
    """N points of each of two views, spread as equally as N allows over the regions that both views show.

    regions: integer [B, h, w] with ids below `count_regions` (h w is always enough), -1 unlabelled; maps [B, 4];
    uniform [B, contrast_draws()]. Each view holds CANDIDATES x CANDIDATES jittered points; a region is shared if it has
    one in both. Slot j takes the shared region j + offset (mod their number; the random offset spreads what does not
    divide evenly), and within a region the candidates come in random order, none twice until all are used. An image
    whose views share no region has id -1 in every slot, at arbitrary points. METHOD section 3 "Points".
    """
    batch, device = len(regions), regions.device
    places = uniform[:, : 4 * _P].view(batch, 2, _P, 2)
    ranks = uniform[:, 4 * _P : 6 * _P].view(batch, 2, _P)
    query, query_bounds = _candidates(regions, count_regions, map_query, places[:, 0], ranks[:, 0])
    key, key_bounds = _candidates(regions, count_regions, map_key, places[:, 1], ranks[:, 1])

    number = ((query_bounds.diff() > 0) & (key_bounds.diff() > 0)).cumsum(dim=1)
    shared = number[:, -1:]
    slot = torch.arange(n, device=device)
    at_least_one = shared.clamp(min=1)
    turn = (slot + (uniform[:, -1:] * shared).long()) % at_least_one
    region = torch.searchsorted(number, turn + 1).where(shared > 0, -1)
    visit = slot // at_least_one
    taken = _take(query, query_bounds, region, visit), _take(key, key_bounds, region, visit)
    return ContrastPoints(*taken, region, region)


def pixel_points(map_query: Tensor, map_key: Tensor, side: int) -> ContrastPoints:
    """All positions of two views' side x side lattices; a query's positive is the key's position nearest to it.

    maps [B, 4]. Nearest in the image frame, and only where the distance is below NEAR times the diagonal of the larger
    of both views' cells; a query without such a position has id -1. METHOD section 5 (`pixel`).
    """
    grid = geometry.cell_centers(side, side, map_query.device)
    points = grid.expand(len(map_query), -1, -1)
    places = geometry.to_image(points, map_query)
    cell = (geometry.to_view(places, map_key) * side).long().clamp(0, side - 1)
    nearest = cell[..., 1] * side + cell[..., 0]
    distance = (places - geometry.to_image(grid[nearest], map_key)).norm(dim=-1)
    diagonal = torch.maximum(map_query[:, :2].norm(dim=-1), map_key[:, :2].norm(dim=-1)) / side
    positive = nearest.where(distance < NEAR * diagonal[:, None], -1)
    return ContrastPoints(points, points, positive, torch.arange(side * side, device=grid.device).expand_as(nearest))


def match_points(map_query: Tensor, map_match: Tensor, uniform: Tensor, n: int) -> MatchPoints:
    """N uniform points of A and where they lie in B: maps [B, 4], uniform [B, match_draws(n)]. METHOD section 3."""
    student = uniform.view(-1, n, 2)
    teacher = geometry.to_view(geometry.to_image(student, map_query), map_match)
    return MatchPoints(student, teacher.clamp(0, 1), geometry.inside(teacher))


def _candidates(
    regions: Tensor, count_regions: int, maps: Tensor, places: Tensor, ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """Jittered points of a view [B, P, 2], sorted by region and at random within it, and where each region's begin.

    bounds [B, R + 1]: candidates bounds[r] up to bounds[r + 1] lie in region r; unlabelled ones come before region 0.
    """
    cells = geometry.cell_centers(CANDIDATES, CANDIDATES, places.device)
    points = cells + (places - 0.5) / CANDIDATES
    ids = geometry.look_up(regions, geometry.to_image(points, maps))
    ordered, order = ((ids << _KEY_BITS) + (ranks * 2**_KEY_BITS).long()).sort(dim=1, stable=True)
    starts = torch.arange(count_regions + 1, device=ids.device) << _KEY_BITS
    bounds = torch.searchsorted(ordered, starts.repeat(len(ids), 1))
    return points.gather(1, order[:, :, None].expand(-1, -1, 2)), bounds


def _take(points: Tensor, bounds: Tensor, region: Tensor, visit: Tensor) -> Tensor:
    """The candidate of `region` [B, N] at the `visit`-th time that it is visited, [B, N, 2]; of any region where -1."""
    start, end = bounds.gather(1, region.clamp(min=0)), bounds.gather(1, region.clamp(min=0) + 1)
    start, end = start.where(region >= 0, 0), end.where(region >= 0, points.shape[1])
    position = start + visit % (end - start)
    return points.gather(1, position[:, :, None].expand(-1, -1, 2))
