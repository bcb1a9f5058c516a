"""Intervals against tables and simulations; verdicts, and how many more seeds are needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from plrc import rng
from plrc.compare.statistics import (
    MAX_SEEDS,
    interval,
    more_seeds,
    paired_differences,
    summarize_differences,
    t_quantile,
)


@pytest.mark.parametrize(
    ("df", "confidence", "tabulated"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (3, 0.95, 3.18245),
        (4, 0.95, 2.77645),
        (9, 0.95, 2.26216),
        (10, 0.95, 2.22814),
        (30, 0.95, 2.04227),
        (99, 0.95, 1.98422),
        (1, 0.5, 1.0),
        (2, 0.99, 9.92484),
        (5, 0.99, 4.03214),
        (4, 0.8, 1.53321),
        (100_000, 0.95, 1.95999),
    ],
)
def test_quantiles_of_t_are_the_tabulated_ones(df: int, confidence: float, tabulated: float) -> None:
    assert t_quantile(df, confidence) == pytest.approx(tabulated, rel=3e-6)


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_the_mean_in_95_percent_of_simulations(n: int) -> None:
    runs, mean, sd = 4000, 41.0, 1.7
    scores = rng.generator(0, "probe", index=n).normal(mean, sd, (runs, n))
    intervals = [interval(row.tolist()) for row in scores]
    share = np.mean([one.low < mean < one.high for one in intervals if one.low is not None and one.high is not None])
    assert share == pytest.approx(0.95, abs=3.5 * np.sqrt(0.95 * 0.05 / runs))


def test_equal_weights_differ_in_5_percent_of_simulations() -> None:
    runs = 4000
    draws = rng.generator(1, "probe").normal(0, 1, (runs, 2, 4))
    shared = rng.generator(2, "probe").normal(30, 5, (runs, 1, 4))  # the luck of a seed, which pairing takes out
    differ = [
        summarize_differences(paired_differences(a, b)).verdict != "too close to tell"
        for a, b in (draws + shared).tolist()
    ]
    assert np.mean(differ) == pytest.approx(0.05, abs=3.5 * np.sqrt(0.95 * 0.05 / runs))


def test_an_interval_by_hand() -> None:
    result = interval([10.0, 12.0, 14.0])
    assert (result.mean, result.n) == (12.0, 3)
    assert result.high == pytest.approx(12 + 4.30265 * 2 / np.sqrt(3), rel=1e-5)
    assert result.low == pytest.approx(12 - 4.30265 * 2 / np.sqrt(3), rel=1e-5)


def test_one_score_has_no_interval_and_no_verdict() -> None:
    result = summarize_differences([7.0])
    assert (result.mean, result.low, result.high, result.n) == (7.0, None, None, 1)
    assert (result.verdict, result.more_seeds) == ("too close to tell", None)


def test_only_seeds_that_both_have_are_paired() -> None:
    assert paired_differences([1.0, None, 5.0, 2.0], [0.5, 3.0, None, 4.0]) == [0.5, -2.0]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([3.0, 3.5, 2.5], "better"),
        ([-3.0, -3.5, -2.5], "worse"),
        ([3.0, -1.0, 0.5], "too close to tell"),
        ([0.0, 0.0, 0.0], "too close to tell"),
        ([2.0, 2.0], "better"),
    ],
)
def test_verdicts(differences: Sequence[float], verdict: str) -> None:
    assert summarize_differences(differences).verdict == verdict


@pytest.mark.parametrize(("mean", "n"), [(1.0, 3), (0.5, 3), (0.5, 5), (0.3, 8)])
def test_so_many_more_seeds_decide_and_one_fewer_does_not(mean: float, n: int) -> None:
    more = more_seeds(series(mean, 1.0, n))
    assert more is not None and more > 0
    assert summarize_differences(series(mean, 1.0, n + more)).verdict == "better"
    assert summarize_differences(series(mean, 1.0, n + more - 1)).verdict == "too close to tell"
    assert more_seeds(series(-mean, 1.0, n)) == more


def test_more_seeds_at_its_ends() -> None:
    assert more_seeds([3.0, 3.5, 2.5]) == 0
    assert more_seeds(series(0.15, 1.0, 3)) is None  # would need more than MAX_SEEDS
    assert more_seeds(series(0.15, 1.0, 3), max_seeds=10 * MAX_SEEDS) is not None
    assert more_seeds([0.0, 0.0]) is None
    assert more_seeds([1.0]) is None


def series(mean: float, sd: float, n: int) -> list[float]:
    """n numbers with exactly this mean and standard deviation."""
    plain = np.arange(n, dtype=float)
    return list(mean + sd * (plain - plain.mean()) / plain.std(ddof=1))
