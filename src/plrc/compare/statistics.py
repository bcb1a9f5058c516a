"""What a few scores say: means with 95 % intervals, paired differences, verdicts, and a recommendation in plain words.

Layer 5: imports nothing of ours. Scores are in percent, one a seed, in the order of the seeds; None where a seed is
missing. Differences are paired: seed s of two initial weights has the same labels, data order and random heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

Verdict = Literal["better", "worse", "too close to tell"]

CONFIDENCE = 0.95
MOST_SEEDS = 100  # more is no realistic number
FEW_SEEDS = 5  # fewer are a first look
MANY_PAIRS = 5  # from more, chance differences are to be expected


@dataclass(frozen=True)
class Interval:
    """Mean of `n` values and its 95 % t-interval; no interval (None) from one value."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference(Interval):
    """Of two initial weights, over the `n` seeds that both have."""

    verdict: Verdict
    more_seeds: int | None
    """Further seeds that would exclude 0 if mean and spread stay; None: no realistic number, or not known."""


@lru_cache
def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's T with `df` >= 1 degrees of freedom."""
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _share_within(middle, df) < confidence else (low, middle)
    return math.sqrt(df) * math.tan(middle)


def _share_within(angle: float, df: int) -> float:
    """P(|T| <= sqrt(df) tan(angle)): for whole df a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd, cos = df % 2, math.cos(angle)
    term, total = cos if odd else 1.0, 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= k / (k + 1) * cos * cos
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval of at least one value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, None, n)
    half = _half_width(float(np.std(values, ddof=1)), n)
    return Interval(mean, mean - half, mean + half, n)


def paired(scores: Iterable[float | None], baseline: Iterable[float | None]) -> list[float]:
    """scores - baseline, of the seeds that both have."""
    both = zip(scores, baseline, strict=True)
    return [mine - theirs for mine, theirs in both if mine is not None and theirs is not None]


def difference(differences: Sequence[float]) -> Difference:
    """What at least one paired difference says: better or worse if its interval excludes 0."""
    found = interval(differences)
    verdict: Verdict = "too close to tell"
    if found.low is not None and found.high is not None and not found.low <= 0 <= found.high:
        verdict = "better" if found.mean > 0 else "worse"
    return Difference(found.mean, found.low, found.high, found.n, verdict, seeds_to_tell(differences))


def seeds_to_tell(differences: Sequence[float], most: int = MOST_SEEDS) -> int | None:
    """How many more seeds would exclude 0 if mean and standard deviation stay as they are; 0 if it is excluded now.

    None: more than `most` in all, or the standard deviation is hardly known (fewer than three differences).
    """
    n = len(differences)
    if n < 3:
        return None
    mean, sd = abs(float(np.mean(differences))), float(np.std(differences, ddof=1))
    return next((m - n for m in range(n, max(n, most) + 1) if _half_width(sd, m) < mean), None)


def recommendation(comparison: dict[str, Any]) -> list[str]:
    """One sentence or two for each number of labels, in their order: what to start from; then what to beware of.

    `comparison` is the content of comparison.json (`compare.run_comparison`).
    """
    advice = [_advice(comparison, labels) for labels in comparison["labels"]]
    return [*advice, *_caveats(comparison)]


def shown(found: dict[str, Any], sign: str = "") -> str:
    """Mean and interval of an Interval or Difference as a dict, such as 41.2 [40.1, 42.3]."""
    ends = "" if found["low"] is None else f" [{found['low']:{sign}.1f}, {found['high']:{sign}.1f}]"
    return f"{found['mean']:{sign}.1f}{ends}"


def _half_width(sd: float, n: int) -> float:
    return t_quantile(n - 1) * sd / math.sqrt(n)


def _advice(comparison: dict[str, Any], labels: dict[str, Any]) -> str:
    """What to start from with so many labels: the best by its mean, unless what the user has is not clearly behind."""
    at, metric, inits = f"With {labels['text']}", comparison["metric"], comparison["inits"]
    found = {init: by[labels["name"]] for init, by in comparison["results"].items() if by[labels["name"]]["n"]}
    if len(found) < 2:
        return f"{at}: nothing to compare yet."
    scores = {init: one["scores"][metric] for init, one in found.items()}
    ranked = sorted(found, key=lambda init: found[init]["mean"], reverse=True)
    clear = [init for init in ranked if _beats(scores[init], scores.get("random", []))]
    best = next(iter(clear or ranked))  # a clear lead over random weights goes before a higher but uncertain mean
    rivals = [init for init in ranked if init != best]
    pairs = {rival: paired(scores[best], scores[rival]) for rival in rivals}
    leads = {rival: difference(values) for rival, values in pairs.items() if values}
    close = [rival for rival, lead in leads.items() if lead.verdict != "better"]
    owned = [rival for rival in close if inits[rival]["kind"] != "plrc"]
    if best == "random":
        action = "keep what you have: nothing has a higher mean than random weights"
    elif "random" in close:
        action = f"keep what you have: {best} is not clearly better than random weights"
    elif inits[best]["kind"] != "plrc":
        action = f"keep {best}"
    elif owned:
        action = f"keep {owned[0]}: {best} is not clearly better"
    else:
        action = f"use {best}"
    facts = [f"{best} has {metric} {shown(found[best])}", *(_lead(rival, lead) for rival, lead in leads.items())]
    return f"{at}: {action}. {'; '.join(facts)}."


def _beats(mine: Sequence[float | None], theirs: Sequence[float | None]) -> bool:
    values = paired(mine, theirs)
    return bool(values) and difference(values).verdict == "better"


def _lead(rival: str, lead: Difference) -> str:
    size = shown(vars(lead), "+")
    if lead.verdict == "better":
        return f"better than {rival} by {size}"
    if lead.more_seeds is None:
        few = "one seed has no interval" if lead.n < 2 else "two seeds do not say how many would tell"
        seeds = few if lead.n < 3 else "no realistic number of seeds would tell"
    else:
        seeds = f"{lead.more_seeds} more seed{'s' if lead.more_seeds != 1 else ''} would tell if this trend stays"
    return f"too close to tell from {rival} ({size}; {seeds})"


def _caveats(comparison: dict[str, Any]) -> list[str]:
    out, seeds, inits = [], comparison["seeds"], comparison["inits"]
    results = [(init, at, one) for init, by in comparison["results"].items() for at, one in by.items()]
    if not comparison["finished"]:
        out.append(f"Only {comparison['done']} of {comparison['cells']} runs are done: the numbers will change.")
    if seeds < FEW_SEEDS:
        out.append(f"{seeds} seed{'s' if seeds != 1 else ''}: a first look, not a headline; take 5 or more for that.")
    if len(comparison["pairs"]) > MANY_PAIRS:
        out.append(
            f"{len(comparison['pairs'])} pairs are compared, each at 95 %: of those that are equal, one in twenty will "
            "look different by chance. Trust a lead that holds at several numbers of labels."
        )
    edge = [f"{init} with {at} ({one['lr']:g}, the {one['edge']})" for init, at, one in results if one["edge"]]
    if edge:
        out.append(
            f"The best learning rate is at the edge of the grid for {', '.join(edge)}: more may be gained beyond it; "
            "add rates to --lrs and repeat the command."
        )
    diverged = [f"{init} with {at}, seed {seed}" for init, at, one in results for seed in one["diverged"]]
    if diverged:
        out.append(f"Training diverged and the score is 0 for {', '.join(diverged)}.")
    few = [f"{init} ({len(one['files'])})" for init, one in inits.items() if _is_short_of_runs(one, seeds)]
    if few:
        out.append(
            f"Fewer pre-training runs than seeds: {', '.join(few)}. The intervals miss part of the spread between runs."
        )
    return out


def _is_short_of_runs(init: dict[str, Any], seeds: int) -> bool:
    return init["kind"] == "plrc" and len(init["files"]) < seeds
