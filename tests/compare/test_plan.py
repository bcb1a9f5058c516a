"""What may be compared, and its numbers of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plrc.compare.plan import ComparisonPlan
from plrc.compare.runs import ComparisonRuns
from plrc.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inits": {"random": ("random",)}}, "nothing to compare with random weights"),
        ({"inits": {"good": ("good.pt",), "random": ("random",)}}, "random weights must be the first"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"processes": 0}, "processes must be >= 1, got 0"),
        ({"lrs": ()}, "lrs must be > 0 and in rising order"),
        ({"lrs": (0.0, 0.1)}, "lrs must be > 0 and in rising order"),
        ({"lrs": (0.2, 0.1)}, "lrs must be > 0 and in rising order"),
        ({"fractions": ()}, "no number of labels given"),
        ({"fractions": (0.0,)}, "fractions must be > 0"),
        ({"shots": (0,)}, "shots must be >= 1"),
    ],
)
def test_comparisons_that_cannot_be_made(
    changes: dict[str, Any], message: str, build: Callable[..., ComparisonPlan]
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("data.fraction", 0.5, "a comparison takes --fractions or --shots"),
        ("data.shots", 3, "a comparison takes --fractions or --shots"),
        ("evaluations", 0, "to choose learning rates on validation images, got 0"),
    ],
)
def test_bases_that_cannot_be_used(
    setting: str, value: Any, message: str, build: Callable[..., ComparisonPlan]
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(base=build().base.with_values({setting: value}))


def test_shots_take_the_place_of_fractions(build: Callable[..., ComparisonPlan]) -> None:
    comparison = build(shots=(10, 5))
    assert comparison.labels == {"5 images per class": {"data.shots": 5}, "10 images per class": {"data.shots": 10}}
    assert ComparisonRuns(comparison).run("good", "5 images per class", 0.02, 0).config.data.shots == 5
