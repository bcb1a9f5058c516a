"""Points: a slow loop for one image, and what must hold for every image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plrc import geometry
from plrc.data.points import (
    CANDIDATES_PER_SIDE,
    ContrastPoints,
    contrast_draws,
    contrast_points,
    match_draws,
    match_points,
    pixel_points,
)
from plrc.data.regions import grid_regions

FULL = (0.0, 0.0, 1.0, 1.0)


def maps_of(boxes: list[geometry.Box], flips: list[bool] | None = None) -> Tensor:
    return torch.tensor([geometry.crop_map(b, f) for b, f in zip(boxes, flips or [False] * len(boxes), strict=True)])


def random_maps(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = 0.3 + 0.7 * torch.rand(count, 2, generator=generator)
    corner = (1 - size) * torch.rand(count, 2, generator=generator)
    flips = (torch.rand(count, generator=generator) < 0.5).tolist()
    return maps_of([tuple(b) for b in torch.cat([corner, corner + size], 1).tolist()], flips)


def blobs(count: int, ids: int, seed: int, side: int = 24) -> Tensor:
    """Random Voronoi cells, a quarter of them unlabelled: int16 [B, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.rand(count, ids, 2, generator=generator)
    nearest = torch.cdist(geometry.cell_centers(side, side).expand(count, -1, -1), seeds).argmin(-1)
    nearest = nearest.where(torch.rand(count, ids, generator=generator).gather(1, nearest) > 0.25, -1)
    return nearest.reshape(count, side, side).to(torch.int16)


def uniforms(count: int, draws: int, seed: int = 0) -> Tensor:
    return torch.rand(count, draws, generator=torch.Generator().manual_seed(seed))


def look_up_both(result: ContrastPoints, regions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return (
        geometry.look_up(regions, geometry.to_image(result.query, query)),
        geometry.look_up(regions, geometry.to_image(result.key, key)),
    )


def slow_contrast(regions: Tensor, maps: list[Tensor], uniform: Tensor, n: int) -> tuple[list[Tensor], list[int]]:
    """The rule as loops for one image: points of both views as [n, 2], and the regions."""
    total = CANDIDATES_PER_SIDE**2
    by_view: list[dict[int, list[tuple[float, Tensor]]]] = []
    for view in (0, 1):
        candidates: dict[int, list[tuple[float, Tensor]]] = {}
        for c in range(total):
            at = 2 * (view * total + c)
            x = (c % CANDIDATES_PER_SIDE + float(uniform[at])) / CANDIDATES_PER_SIDE
            y = (c // CANDIDATES_PER_SIDE + float(uniform[at + 1])) / CANDIDATES_PER_SIDE
            sx, sy, ox, oy = maps[view].tolist()
            column = min(int((sx * x + ox) * regions.shape[1]), regions.shape[1] - 1)
            row = min(int((sy * y + oy) * regions.shape[0]), regions.shape[0] - 1)
            rank = float(uniform[4 * total + view * total + c])
            candidates.setdefault(int(regions[row, column]), []).append((rank, torch.tensor([x, y])))
        by_view.append({r: sorted(points, key=lambda p: p[0]) for r, points in candidates.items()})
    shared = sorted(set(by_view[0]) & set(by_view[1]) - {-1})
    offset = int(float(uniform[-1]) * len(shared))
    chosen = [shared[(j + offset) % len(shared)] for j in range(n)]
    points = [
        torch.stack([candidates[r][(j // len(shared)) % len(candidates[r])][1] for j, r in enumerate(chosen)])
        for candidates in by_view
    ]
    return points, chosen


@pytest.mark.parametrize(("source", "n"), [("grid", 64), ("blobs", 50), ("blobs", 7)])
def test_equals_a_slow_loop(source: str, n: int) -> None:
    regions = grid_regions(4)[None] if source == "grid" else blobs(1, 12, seed=4)
    query, key = random_maps(1, 5), random_maps(1, 6)
    uniform = uniforms(1, contrast_draws(), 7)
    got = contrast_points(regions, 16, query, key, uniform, n)
    (slow_query, slow_key), chosen = slow_contrast(regions[0], [query[0], key[0]], uniform[0], n)
    assert got.query_regions[0].tolist() == chosen
    torch.testing.assert_close(got.query[0], slow_query, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.key[0], slow_key, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([1, 3, 64, 256]))
def test_points_lie_in_their_regions_with_equal_shares(seed: int, ids: int, n: int) -> None:
    regions = blobs(3, ids, seed)
    query, key = random_maps(3, seed + 1), random_maps(3, seed + 2)
    got = contrast_points(regions, ids, query, key, uniforms(3, contrast_draws(), seed), n)
    assert got.query.shape == got.key.shape == (3, n, 2)
    assert got.query_regions.shape == (3, n)
    assert got.query_regions.dtype == torch.long
    assert geometry.inside(got.query).all()
    assert geometry.inside(got.key).all()
    in_query, in_key = look_up_both(got, regions, query, key)
    labelled = got.query_regions >= 0
    assert torch.equal(labelled.all(1), labelled.any(1))
    assert torch.equal(in_query[labelled], got.query_regions[labelled])
    assert torch.equal(in_key[labelled], got.query_regions[labelled])
    for row in got.query_regions[labelled.all(1)]:
        counts = row.unique(return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


def test_the_regular_grid_in_whole_views_gives_sixteen_points_per_region() -> None:
    maps = maps_of([FULL, FULL], [False, True])
    regions = grid_regions(4).expand(2, -1, -1)
    got = contrast_points(regions, 16, maps, maps.flip(0), uniforms(2, contrast_draws()), 256)
    for row in got.query_regions:
        assert row.bincount(minlength=16).tolist() == [16] * 16
    assert not torch.equal(got.query, got.key)


def test_no_shared_region_gives_minus_one_at_valid_points() -> None:
    left, right = maps_of([(0.0, 0.0, 0.4, 1.0)] * 2), maps_of([(0.6, 0.0, 1.0, 1.0), (0.3, 0.0, 1.0, 1.0)])
    regions = grid_regions(2).expand(2, -1, -1)
    got = contrast_points(regions, 4, left, right, uniforms(2, contrast_draws()), 33)
    assert (got.query_regions[0] == -1).all()
    assert set(got.query_regions[1].tolist()) == {0, 2}
    assert geometry.inside(got.query).all()
    assert geometry.inside(got.key).all()
    unlabelled = contrast_points(torch.full_like(regions, -1), 4, left, left, uniforms(2, contrast_draws()), 5)
    assert (unlabelled.query_regions == -1).all()
    assert geometry.inside(unlabelled.query).all()


def test_candidates_are_distinct_until_exhausted_and_then_come_again() -> None:
    maps = maps_of([FULL])
    total = CANDIDATES_PER_SIDE**2
    one = torch.zeros(1, 1, 1, dtype=torch.int16)
    uniform = uniforms(1, contrast_draws(), 3)
    got = contrast_points(one, 1, maps, maps, uniform, total + 10).query[0]
    assert len(got[:total].unique(dim=0)) == total
    assert torch.equal(got[total:], got[:10])
    ids = torch.zeros(1, 16, 16, dtype=torch.int16)
    ids[0, 3, 5] = 1  # four candidates: 32 per side over 16 cells per side
    points = contrast_points(ids, 2, maps, maps, uniform, 20)
    small = points.query[0][points.query_regions[0] == 1]
    assert len(small) == 10
    assert len(small.unique(dim=0)) == 4
    assert torch.equal(small[4:8], small[:4])


def test_points_are_spread_over_the_view_and_within_cells() -> None:
    maps = maps_of([FULL] * 64)
    one = torch.zeros(64, 1, 1, dtype=torch.int16)
    got = contrast_points(one, 1, maps, maps, uniforms(64, contrast_draws()), 64)
    for points in (got.query, got.key):
        assert (points.mean((0, 1)) - 0.5).abs().max() < 0.02
        assert (points.var((0, 1)) - 1 / 12).abs().max() < 0.005
        assert ((points * CANDIDATES_PER_SIDE % 1).mean() - 0.5).abs() < 0.02


def test_more_regions_than_points_are_all_chosen_in_turn() -> None:
    count = 200
    maps = maps_of([FULL] * count)
    regions = grid_regions(4).expand(count, -1, -1)
    got = contrast_points(regions, 16, maps, maps, uniforms(count, contrast_draws()), 5)
    assert got.query_regions.flatten().bincount(minlength=16).min() > 0.6 * count * 5 / 16


def test_an_image_does_not_depend_on_its_batch() -> None:
    regions, query, key = blobs(6, 20, 1), random_maps(6, 2), random_maps(6, 3)
    uniform = uniforms(6, contrast_draws())
    whole = contrast_points(regions, 24 * 24, query, key, uniform, 100)
    for i in range(6):
        one = slice(i, i + 1)
        alone = contrast_points(regions[one], 24 * 24, query[one], key[one], uniform[one], 100)
        assert all(torch.equal(a, b[one]) for a, b in zip(alone, whole, strict=True))
    least = contrast_points(regions, 20, query, key, uniform, 100)
    assert all(torch.equal(a, b) for a, b in zip(least, whole, strict=True))


def test_match_points_are_the_same_physical_points() -> None:
    query, match = random_maps(30, 1), random_maps(30, 2)
    got = match_points(query, match, uniforms(30, match_draws(40)), 40)
    physical = geometry.to_image(got.student, query)
    in_match = geometry.to_image(got.teacher, match)
    assert torch.allclose(physical[got.valid], in_match[got.valid], atol=1e-6)
    assert geometry.inside(got.student).all()
    assert geometry.inside(got.teacher).all()
    near, far = match[:, 2:], match[:, 2:] + match[:, :2]
    low, high = torch.minimum(near, far)[:, None], torch.maximum(near, far)[:, None]
    assert torch.equal(((physical >= low) & (physical <= high)).all(-1), got.valid)
    assert 0.2 < got.valid.float().mean() < 0.95


def test_match_points_in_the_same_crop_are_all_valid_and_mirrored_by_a_flip() -> None:
    box = (0.25, 0.125, 0.75, 0.625)
    query, match = maps_of([box] * 2), maps_of([box] * 2, [False, True])
    got = match_points(query, match, uniforms(2, match_draws(50)), 50)
    assert got.valid.all()
    torch.testing.assert_close(got.teacher[0], got.student[0])
    torch.testing.assert_close(got.teacher[1], torch.stack([1 - got.student[1, :, 0], got.student[1, :, 1]], -1))


def test_match_points_of_views_apart_are_all_invalid_but_in_the_frame() -> None:
    got = match_points(
        maps_of([(0.0, 0.0, 0.4, 0.4)]), maps_of([(0.6, 0.6, 1.0, 1.0)]), uniforms(1, match_draws(20)), 20
    )
    assert not got.valid.any()
    assert geometry.inside(got.teacher).all()


def test_given_numbers_stay_as_they_were() -> None:
    regions, query, key = blobs(2, 9, 1), random_maps(2, 2), random_maps(2, 3)
    uniform = uniforms(2, contrast_draws())
    given_before = [t.clone() for t in (regions, query, key, uniform)]
    contrast_points(regions, 9, query, key, uniform, 16)
    match_points(query, key, uniform[:, : match_draws(16)], 16)
    assert all(torch.equal(a, b) for a, b in zip(given_before, (regions, query, key, uniform), strict=True))


def slow_pixels(maps: list[list[float]], side: int) -> list[int]:
    """The rule of METHOD section 5 as loops for one image: the index of each query position's positive, or -1."""

    def places(sx: float, sy: float, ox: float, oy: float) -> list[tuple[float, float]]:
        centers = [(i + 0.5) / side for i in range(side)]
        return [(sx * x + ox, sy * y + oy) for y in centers for x in centers]

    query, key = places(*maps[0]), places(*maps[1])
    diagonal = max(math.hypot(sx, sy) / side for sx, sy, _, _ in maps)
    positives = []
    for here in query:
        distances = [math.dist(here, there) for there in key]
        nearest = min(range(len(key)), key=lambda i: distances[i])
        positives.append(nearest if distances[nearest] < 0.7 * diagonal else -1)
    return positives


@pytest.mark.parametrize("side", [1, 3, 8])
def test_pixels_equal_a_slow_loop(side: int) -> None:
    query, key = random_maps(20, 8), random_maps(20, 9)
    got = pixel_points(query, key, side)
    for b in range(20):
        assert got.query_regions[b].tolist() == slow_pixels([query[b].tolist(), key[b].tolist()], side)
    assert (got.key_regions == torch.arange(side**2)).all()
    assert torch.equal(got.query[3], geometry.cell_centers(side, side))
    assert (got.query_regions >= 0).any()
    assert side == 1 or (got.query_regions < 0).any()


def test_pixels_of_mirrored_views_meet_at_the_same_place() -> None:
    maps = maps_of([FULL, FULL], [False, True])
    got = pixel_points(maps[:1], maps[1:], 4).query_regions.reshape(4, 4)
    assert torch.equal(got, torch.arange(16).reshape(4, 4).flip(1))
