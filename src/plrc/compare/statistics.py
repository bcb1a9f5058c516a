"""Means with 95 % confidence intervals and paired differences of a few scores.

Scores are in percent, one per seed, in the order of the seeds; None where a seed is missing. Differences are paired:
seed s of two initial weights has the same labels, the same order of the data and the same random heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

Verdict = Literal["better", "worse", "too close to tell"]

CONFIDENCE = 0.95
MAX_SEEDS = 100  # a larger number of seeds is not realistic


@dataclass(frozen=True)
class Interval:
    """Mean of some values and its confidence interval.

    Attributes:
        mean: Mean of the values.
        low: Lower end of the 95 % t-interval; None for a single value.
        high: Upper end of the 95 % t-interval; None for a single value.
        n: Number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference(Interval):
    """Paired difference of two initial weights over the seeds that both have.

    Attributes:
        verdict: "better" or "worse" if the interval excludes 0.
        more_seeds: Further seeds after which the interval would exclude 0 if mean and standard deviation stay as they
            are; None if that is not a realistic number or cannot be estimated.
    """

    verdict: Verdict
    more_seeds: int | None


@lru_cache
def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """Return the t with P(|T| <= t) = confidence, where T has Student's t distribution.

    It is computed by bisection. The variable is the angle atan(t / sqrt(df)), because its range is finite.

    Args:
        df: Degrees of freedom, at least 1.
        confidence: Probability in (0, 1).
    """
    low = 0.0
    high = math.pi / 2
    while True:
        middle = (low + high) / 2
        if not low < middle < high:  # no floating-point number lies between them
            return math.sqrt(df) * math.tan(middle)
        if _t_probability(middle, df) < confidence:
            low = middle
        else:
            high = middle


def _t_probability(theta: float, df: int) -> float:
    """Return P(|T| <= sqrt(df) tan(theta)), for whole df a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    is_odd = df % 2 == 1
    cos = math.cos(theta)
    term = cos if is_odd else 1.0
    series = 0.0
    first = 2 if is_odd else 1
    for k in range(first, df, 2):
        series += term
        term *= k / (k + 1) * cos * cos
    if is_odd:
        return 2 / math.pi * (theta + math.sin(theta) * series)
    return math.sin(theta) * series


def interval(values: Sequence[float]) -> Interval:
    """Return the mean and its 95 % t-interval, mean +- t(n - 1) sd / sqrt(n).

    Args:
        values: At least one value.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Interval(mean, None, None, n)
    half = _half_width(float(np.std(values, ddof=1)), n)
    return Interval(mean, mean - half, mean + half, n)


def _half_width(sd: float, n: int) -> float:
    return t_quantile(n - 1) * sd / math.sqrt(n)


def paired_differences(scores: Iterable[float | None], baseline: Iterable[float | None]) -> list[float]:
    """Return scores - baseline for the seeds that both have.

    Args:
        scores: One score per seed, None where the seed is missing.
        baseline: Scores of the same seeds.
    """
    differences = []
    for score, base in zip(scores, baseline, strict=True):
        if score is not None and base is not None:
            differences.append(score - base)
    return differences


def summarize_differences(differences: Sequence[float]) -> Difference:
    """Return mean, interval and verdict of paired differences.

    Args:
        differences: At least one paired difference, see `paired_differences`.
    """
    summary = interval(differences)
    verdict: Verdict = "too close to tell"
    if summary.low is not None and summary.low > 0:
        verdict = "better"
    if summary.high is not None and summary.high < 0:
        verdict = "worse"
    return Difference(summary.mean, summary.low, summary.high, summary.n, verdict, more_seeds(differences))


def more_seeds(differences: Sequence[float], max_seeds: int = MAX_SEEDS) -> int | None:
    """Return after how many more seeds the interval excludes 0 if mean and standard deviation stay as they are.

    Args:
        differences: Paired differences, one per seed.
        max_seeds: Largest number of seeds that is realistic.

    Returns:
        0 if the interval excludes 0 already. None if more than `max_seeds` seeds would be needed, or if there are fewer
        than three differences, which give no reliable standard deviation.
    """
    n = len(differences)
    if n < 3:
        return None
    mean = abs(float(np.mean(differences)))
    sd = float(np.std(differences, ddof=1))
    # The present number of seeds is checked even if it is above `max_seeds`.
    for seeds in range(n, max(n, max_seeds) + 1):
        if _half_width(sd, seeds) < mean:
            return seeds - n
    return None


def format_interval(values: Mapping[str, Any], sign: str = "", digits: int = 1) -> str:
    """Return mean and interval as text, such as 41.2 [40.1, 42.3].

    Args:
        values: Fields of an `Interval` or a `Difference` by name.
        sign: "+" writes the sign of positive numbers too.
        digits: Digits after the point.
    """
    number_format = f"{sign}.{digits}f"
    text = format(values["mean"], number_format)
    if values["low"] is not None:
        text += f" [{values['low']:{number_format}}, {values['high']:{number_format}}]"
    return text
