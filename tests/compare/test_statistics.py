"""Intervals against tables and simulations; verdicts, further seeds and the words of the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from plrc import rng
from plrc.compare.statistics import MOST_SEEDS, difference, interval, paired, recommendation, seeds_to_tell, t_quantile


@pytest.mark.parametrize(
    ("df", "confidence", "tabulated"),
    [
        (1, 0.95, 12.7062), (2, 0.95, 4.30265), (3, 0.95, 3.18245), (4, 0.95, 2.77645), (9, 0.95, 2.26216),
        (10, 0.95, 2.22814), (30, 0.95, 2.04227), (99, 0.95, 1.98422), (1, 0.5, 1.0), (2, 0.99, 9.92484),
        (5, 0.99, 4.03214), (4, 0.8, 1.53321), (100_000, 0.95, 1.95999),
    ],
)  # fmt: skip
def test_quantiles_of_t_are_the_tabulated_ones(df: int, confidence: float, tabulated: float) -> None:
    assert t_quantile(df, confidence) == pytest.approx(tabulated, rel=3e-6)


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_the_mean_in_95_percent_of_simulations(n: int) -> None:
    runs, mean, sd = 4000, 41.0, 1.7
    scores = rng.generator(0, "probe", index=n).normal(mean, sd, (runs, n))
    found = [interval(row.tolist()) for row in scores]
    share = np.mean([one.low < mean < one.high for one in found if one.low is not None and one.high is not None])
    assert share == pytest.approx(0.95, abs=3.5 * np.sqrt(0.95 * 0.05 / runs))


def test_equal_weights_are_told_apart_in_5_percent_of_simulations() -> None:
    runs = 4000
    draws = rng.generator(1, "probe").normal(0, 1, (runs, 2, 4))
    shared = rng.generator(2, "probe").normal(30, 5, (runs, 1, 4))  # the luck of a seed, which pairing takes out
    told = [difference(paired(a, b)).verdict != "too close to tell" for a, b in (draws + shared).tolist()]
    assert np.mean(told) == pytest.approx(0.05, abs=3.5 * np.sqrt(0.95 * 0.05 / runs))


def test_an_interval_by_hand() -> None:
    found = interval([10.0, 12.0, 14.0])
    assert (found.mean, found.n) == (12.0, 3)
    assert found.high == pytest.approx(12 + 4.30265 * 2 / np.sqrt(3), rel=1e-5)
    assert found.low == pytest.approx(12 - 4.30265 * 2 / np.sqrt(3), rel=1e-5)


def test_one_score_has_no_interval_and_no_verdict() -> None:
    found = difference([7.0])
    assert (found.mean, found.low, found.high, found.n) == (7.0, None, None, 1)
    assert (found.verdict, found.more_seeds) == ("too close to tell", None)


def test_only_seeds_that_both_have_are_paired() -> None:
    assert paired([1.0, None, 5.0, 2.0], [0.5, 3.0, None, 4.0]) == [0.5, -2.0]


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
    assert difference(differences).verdict == verdict


@pytest.mark.parametrize(("mean", "n"), [(1.0, 3), (0.5, 3), (0.5, 5), (0.3, 8)])
def test_so_many_more_seeds_tell_and_one_fewer_does_not(mean: float, n: int) -> None:
    more = seeds_to_tell(series(mean, 1.0, n))
    assert more is not None and more > 0
    assert difference(series(mean, 1.0, n + more)).verdict == "better"
    assert difference(series(mean, 1.0, n + more - 1)).verdict == "too close to tell"
    assert seeds_to_tell(series(-mean, 1.0, n)) == more


def test_seeds_to_tell_at_its_ends() -> None:
    assert seeds_to_tell([3.0, 3.5, 2.5]) == 0
    assert seeds_to_tell(series(0.15, 1.0, 3)) is None  # would need more than MOST_SEEDS
    assert seeds_to_tell(series(0.15, 1.0, 3), most=10 * MOST_SEEDS) is not None
    assert seeds_to_tell([0.0, 0.0]) is None
    assert seeds_to_tell([1.0]) is None


def series(mean: float, sd: float, n: int) -> list[float]:
    """n numbers with exactly this mean and standard deviation."""
    plain = np.arange(n, dtype=float)
    return list(mean + sd * (plain - plain.mean()) / plain.std(ddof=1))


def comparison(scores: dict[str, list[list[float]]], kinds: dict[str, str], **changes: Any) -> dict[str, Any]:
    """As much of comparison.json as the recommendation reads, from scores[init][number of labels][seed]."""
    count, seeds = len(next(iter(scores.values()))), len(next(iter(scores.values()))[0])
    labels = [{"name": f"{i + 1} images a class", "text": f"{i + 1} images a class"} for i in range(count)]
    results = {
        init: {
            at["name"]: {
                "scores": {"AP": values}, **vars(interval(values)), "edge": "", "lr": 0.02, "diverged": [],
            }
            for at, values in zip(labels, rows, strict=True)
        }
        for init, rows in scores.items()
    }  # fmt: skip
    pairs = [None] * (count * len(scores) * (len(scores) - 1) // 2)
    inits = {init: {"kind": kinds.get(init, init), "files": [init]} for init in scores}
    whole = {"metric": "AP", "labels": labels, "results": results, "pairs": pairs, "inits": inits, "seeds": seeds}
    return whole | {"finished": True, "done": 12, "cells": 12} | changes


RANDOM = series(20, 1, 5)


@pytest.mark.parametrize(
    ("scores", "start"),
    [
        ({"mine": series(30, 1, 5), "torchvision": series(25, 1, 5)}, "use mine. mine has AP 30.0"),
        ({"mine": series(25, 1, 5), "torchvision": series(30, 1, 5)}, "keep torchvision. torchvision has AP 30.0"),
        ({"mine": [25.5, 23.0, 24.5, 27.5, 25.0], "torchvision": series(25, 1, 5)}, "keep torchvision: mine is not"),
        ({"mine": series(15, 1, 5)}, "keep what you have: nothing has a higher mean than random weights"),
        ({"mine": [20.5, 18.0, 21.5, 22.5, 20.0]}, "keep what you have: mine is not clearly better than random"),
        ({"mine": series(30, 1, 5), "second": series(29.9, 3, 5)}, "use mine. mine has AP 30.0"),
    ],
)
def test_what_is_recommended(scores: dict[str, list[float]], start: str) -> None:
    found = {"random": [RANDOM], **{init: [values] for init, values in scores.items()}}
    kinds = {"mine": "plrc", "second": "plrc"}
    first = recommendation(comparison(found, kinds))[0]
    assert first.startswith(f"With 1 images a class: {start}")


def test_each_number_of_labels_has_its_own_line_with_the_differences() -> None:
    mine = [series(30, 1, 5), [20.5, 18.0, 21.5, 22.5, 20.0]]
    few, many, *_ = recommendation(comparison({"random": [RANDOM, RANDOM], "mine": mine}, {"mine": "plrc"}))
    assert few.startswith("With 1 images a class: use mine")
    assert "better than random by +10.0 [+10.0, +10.0]" in few
    assert many.startswith("With 2 images a class: keep what you have")
    assert "too close to tell from random (+0.5 [" in many
    assert f"{seeds_to_tell(paired(mine[1], RANDOM))} more seeds would tell" in many


def test_caveats() -> None:
    scores = {name: [series(20 + i, 1, 3)] for i, name in enumerate(["random", "mine", "theirs", "third"])}
    kinds = {"mine": "plrc", "theirs": "file", "third": "file"}
    plain = comparison({"random": [RANDOM], "theirs": [series(30, 1, 5)]}, kinds)
    assert len(recommendation(plain)) == 1
    found = comparison(scores, kinds, finished=False, done=7)
    one = found["results"]["mine"]["1 images a class"]
    one.update(edge="highest", diverged=[2])
    _, *caveats = recommendation(found)
    wanted = ["Only 7 of 12 runs", "3 seeds: a first look, not a headline", "6 pairs", "the edge of the grid for mine"]
    wanted += [
        "diverged and the score is 0 for mine with 1 images a class, seed 2",
        "Fewer pre-training runs than seeds: mine (1)",
    ]
    assert len(caveats) == len(wanted)
    assert all(part in line for part, line in zip(wanted, caveats, strict=True))


def test_one_seed_recommends_nothing() -> None:
    found = recommendation(comparison({"random": [[20.0]], "mine": [[40.0]]}, {"mine": "plrc"}))
    assert found[0].startswith("With 1 images a class: keep what you have: mine is not clearly better")
    assert "one seed has no interval" in found[0]
    assert found[1].startswith("1 seed: a first look")


def test_a_clear_lead_goes_before_a_higher_but_uncertain_mean() -> None:
    """A has the higher mean and may be luck; B is above random weights at every seed."""
    scores = {
        "random": [40.0, 40.2, 39.9, 40.1, 40.0],
        "A": [50.0, 40.0, 48.0, 39.0, 53.0],
        "B": [44.0, 45.0, 43.0, 44.0, 44.2],
    }
    results = {
        name: {"all": {**vars(interval(values)), "scores": {"AP": values}, "edge": "", "diverged": []}}
        for name, values in scores.items()
    }
    comparison = {
        "metric": "AP", "seeds": 5, "preliminary": False, "finished": True, "done": 15, "cells": 15, "lrs": [0.1],
        "inits": {name: {"kind": "random" if name == "random" else "plrc", "files": [name]} for name in scores},
        "labels": [{"name": "all", "text": "all labels"}], "results": results, "pairs": [],
    }  # fmt: skip
    assert recommendation(comparison)[0].startswith("With all labels: use B.")
