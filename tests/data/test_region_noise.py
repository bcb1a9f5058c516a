"""The quality knob: what each kind of noise does to an id map, and that it does exactly as much as is asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plrc.config import RegionConfig
from plrc.data.region_noise import add_noise, displace, merge, reassign, split
from plrc.data.regions import voronoi_regions

Knob = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
KNOBS: dict[str, Knob] = {"merge": merge, "split": split, "jitter": displace, "reassign": reassign}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cells(count: int = 12, size: int = 64, seed: int = 5) -> np.ndarray:
    """Voronoi cells with an unlabelled corner."""
    ids = voronoi_regions(count, size, rng(seed))
    ids[: size // 4, : size // 4] = -1
    return np.unique(ids, return_inverse=True)[1].reshape(ids.shape) - 1


def neighbors(ids: np.ndarray, region: int) -> set[int]:
    """Regions that have an edge with the region, cell by cell."""
    neighbors = set()
    for row, column in zip(*np.nonzero(ids == region), strict=True):
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < ids.shape[0] and 0 <= c < ids.shape[1]:
                neighbors.add(int(ids[r, c]))
    return neighbors - {region, -1}


@pytest.mark.parametrize("name", KNOBS)
def test_no_noise_changes_nothing(name: str) -> None:
    ids = cells()
    assert (KNOBS[name](ids, 0.0, rng()) == ids).all()


@pytest.mark.parametrize("name", KNOBS)
def test_noise_follows_from_the_generator_and_leaves_its_input_alone(name: str) -> None:
    ids, before = cells(), cells()
    first = KNOBS[name](ids, 0.3, rng(1))
    assert (first == KNOBS[name](ids, 0.3, rng(1))).all()
    assert (first != KNOBS[name](ids, 0.3, rng(2))).any()
    assert (ids == before).all()


def test_the_knobs_draw_from_streams_of_their_own() -> None:
    ids, streams = cells(), [rng(i) for i in range(4)]
    both = add_noise(ids, RegionConfig(merge=0.4, reassign=0.2), streams)
    assert (both == reassign(merge(ids, 0.4, rng(0)), 0.2, rng(3))).all()


def test_maps_without_regions_stay() -> None:
    ids = np.full((8, 8), -1)
    config = RegionConfig(merge=1.0, split=1.0, jitter=0.5, reassign=1.0)
    assert (add_noise(ids, config, [rng(i) for i in range(4)]) == -1).all()


# merge


def test_every_region_joins_a_neighbor_at_most_and_the_unlabelled_stay() -> None:
    ids = cells(30)
    after = merge(ids, 1.0, rng())
    assert ((after == -1) == (ids == -1)).all()
    for target in np.unique(after[after >= 0]):
        group = set(np.unique(ids[after == target]).tolist())
        assert len(group) > 1
        reached, pending = set(), [min(group)]
        while pending:
            region = pending.pop()
            reached.add(region)
            pending += (neighbors(ids, region) & group) - reached
        assert reached == group


def test_the_share_of_regions_that_choose_to_merge() -> None:
    """In a chain of pairs, each of two regions wants to merge with probability p: the pair stays with (1 - p)^2."""
    pairs = np.full((1000, 3), -1)
    pairs[::2, :2] = np.arange(1000).reshape(500, 2)
    after = merge(pairs, 0.3, rng())
    joined = np.mean(after[::2, 0] == after[::2, 1])
    assert joined == pytest.approx(1 - 0.7**2, abs=0.06)


def test_a_region_without_neighbors_stays() -> None:
    ids = np.array([[0, -1, 1], [-1, -1, -1]])
    assert (merge(ids, 1.0, rng()) == ids).all()


def test_more_merging_joins_what_less_merging_does() -> None:
    ids = cells(30)
    before = ids
    for share in (0.2, 0.5, 0.9):
        after = merge(ids, share, rng(3))
        for region in np.unique(before):
            assert len(np.unique(after[before == region])) == 1
        assert len(np.unique(after)) < len(np.unique(before))
        before = after


# split


def test_halves_are_equal_and_parted_by_a_line() -> None:
    ids = cells()
    after = split(ids, 1.0, rng())
    assert ((after == -1) == (ids == -1)).all()
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    for region in range(ids.max() + 1):
        inside = ids == region
        a, b = np.unique(after[inside])
        first, second = (np.argwhere(inside & (after == half)) for half in (a, b))
        assert 0 <= len(first) - len(second) <= 1
        direction = np.stack([np.sin(angles), np.cos(angles)])
        assert ((first @ direction).max(axis=0) <= (second @ direction).min(axis=0) + 0.05).any()


def test_the_share_of_regions_that_are_cut() -> None:
    ids = np.arange(2500).reshape(50, 50).repeat(2, axis=0)
    after = split(ids, 0.3, rng())
    assert (len(np.unique(after)) - 2500) / 2500 == pytest.approx(0.3, abs=0.04)


def test_a_single_cell_cannot_be_cut() -> None:
    ids = np.arange(16).reshape(4, 4)
    assert (split(ids, 1.0, rng()) == ids).all()


# displace


def test_displacements_are_as_large_as_asked_at_the_knots_and_smooth_between() -> None:
    """An id map whose ids are the places gives the displacements back."""
    size, amount = 257, 0.03
    places = np.arange(size * size).reshape(size, size)
    moved = []
    for seed in range(20):
        row, column = np.divmod(displace(places, amount, rng(seed)), size)
        shift = np.stack([row, column]) - np.indices((size, size))
        inner = shift[:, 32:-32, 32:-32]  # the border is clipped
        assert np.abs(np.diff(inner, axis=1)).max() <= np.ceil(amount * size * 8 / 32)
        moved.append(inner[:, ::32, ::32])
    assert np.std(moved) == pytest.approx(amount * size, rel=0.1)


def test_small_displacements_move_boundaries_only() -> None:
    ids = cells()
    ids[ids < 0] = 0
    after = displace(ids, 0.02, rng())
    changed = after != ids
    near = np.zeros_like(changed)
    for row in range(-8, 9):
        for column in range(-8, 9):
            near |= np.roll(ids, (row, column), (0, 1)) != ids
    assert 0.02 < changed.mean() < 0.3
    assert not (changed & ~near).any()


# reassign


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_share_of_cells_that_change(share: float) -> None:
    """A share p gets a random id of k, which differs with probability 1 - 1 / k."""
    k, size = 5, 250
    ids = voronoi_regions(k, size, rng(1))
    ids[0] = -1
    after = reassign(ids, share, rng())
    assert (after[0] == -1).all()
    assert np.mean(after[1:] != ids[1:]) == pytest.approx(share * (1 - 1 / k), abs=0.01)
    changed = after[1:][after[1:] != ids[1:]]
    assert set(changed.tolist()) == set(range(k))


def test_only_present_regions_are_given() -> None:
    ids = np.where(np.indices((30, 30)).sum(axis=0) % 2, 2, 7)
    assert set(reassign(ids, 1.0, rng()).ravel().tolist()) == {2, 7}
