"""What the recommendation advises, and the sentences that limit it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.compare.test_statistics import series

from plrc.compare.recommendation import recommendation
from plrc.compare.statistics import interval, more_seeds, paired_differences


def comparison(scores: dict[str, list[list[float]]], kinds: dict[str, str], **changes: Any) -> dict[str, Any]:
    """As much of comparison.json as the recommendation reads, from scores[init][number of labels][seed]."""
    count, seeds = len(next(iter(scores.values()))), len(next(iter(scores.values()))[0])
    labels = [{"name": f"{i + 1} images per class", "text": f"{i + 1} images per class"} for i in range(count)]
    results = {
        init: {
            at["name"]: {
                "scores": {"AP": values},
                **vars(interval(values)),
                "edge": "",
                "lr": 0.02,
                "diverged": [],
            }
            for at, values in zip(labels, rows, strict=True)
        }
        for init, rows in scores.items()
    }
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
    content = {"random": [RANDOM], **{init: [values] for init, values in scores.items()}}
    kinds = {"mine": "plrc", "second": "plrc"}
    first = recommendation(comparison(content, kinds))[0]
    assert first.startswith(f"With 1 images per class: {start}")


def test_each_number_of_labels_has_its_own_line_with_the_differences() -> None:
    mine = [series(30, 1, 5), [20.5, 18.0, 21.5, 22.5, 20.0]]
    few, many, *_ = recommendation(comparison({"random": [RANDOM, RANDOM], "mine": mine}, {"mine": "plrc"}))
    assert few.startswith("With 1 images per class: use mine")
    assert "better than random by +10.0 [+10.0, +10.0]" in few
    assert many.startswith("With 2 images per class: keep what you have")
    assert "too close to tell from random (+0.5 [" in many
    assert f"{more_seeds(paired_differences(mine[1], RANDOM))} more seeds would decide it" in many


def test_caveats() -> None:
    scores = {name: [series(20 + i, 1, 3)] for i, name in enumerate(["random", "mine", "theirs", "third"])}
    kinds = {"mine": "plrc", "theirs": "file", "third": "file"}
    plain = comparison({"random": [RANDOM], "theirs": [series(30, 1, 5)]}, kinds)
    assert len(recommendation(plain)) == 1
    content = comparison(scores, kinds, finished=False, done=7)
    one = content["results"]["mine"]["1 images per class"]
    one.update(edge="highest", diverged=[2])
    _, *caveats = recommendation(content)
    wanted = [
        "Only 7 of 12 runs",
        "3 seeds: the result is preliminary; use at least 5",
        "6 pairs",
        "the edge of the grid for mine",
    ]
    wanted += [
        "diverged and the score is 0 for mine with 1 images per class, seed 2",
        "Fewer pre-training runs than seeds: mine (1)",
    ]
    assert len(caveats) == len(wanted)
    assert all(part in line for part, line in zip(wanted, caveats, strict=True))


def test_one_seed_recommends_nothing() -> None:
    content = recommendation(comparison({"random": [[20.0]], "mine": [[40.0]]}, {"mine": "plrc"}))
    assert content[0].startswith("With 1 images per class: keep what you have: mine is not clearly better")
    assert "one seed gives no interval" in content[0]
    assert content[1].startswith("1 seed: the result is preliminary")


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
        "metric": "AP",
        "seeds": 5,
        "preliminary": False,
        "finished": True,
        "done": 15,
        "cells": 15,
        "lrs": [0.1],
        "inits": {name: {"kind": "random" if name == "random" else "plrc", "files": [name]} for name in scores},
        "labels": [{"name": "all", "text": "all labels"}],
        "results": results,
        "pairs": [],
    }
    assert recommendation(comparison)[0].startswith("With all labels: use B.")


def test_weights_are_compared_before_random_weights_have_a_result() -> None:
    """Other processes may finish the runs of random weights last."""
    content = comparison(
        {"random": [RANDOM], "mine": [series(30, 1, 5)], "theirs": [series(20, 1, 5)]}, {"mine": "plrc"}
    )
    content["results"]["random"]["1 images per class"]["n"] = 0
    assert recommendation(content)[0].startswith("With 1 images per class: use mine. mine has AP 30.0")
