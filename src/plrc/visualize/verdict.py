"""Whether a run is learning, in plain sentences: a pure function of its records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from plrc.engine.health import COLLAPSE_ADVICE, Health, alarms, has_collapsed
from plrc.objectives import TERMS

MIN_STEPS = 50
MIN_LINES = 5
FEW_CHECKS = 3
LEARNED_SHARE = 0.05
"""A term has left its chance level once its divergence lies this share below it."""
LATE_SHARE = 0.2
"""Divergences are averaged over this share of the lines, the last ones."""

Records = Sequence[Mapping[str, Any]]
"""The lines of metrics.jsonl, thinned if there are very many (`read_records`)."""


@dataclass(frozen=True)
class Verdict:
    """The state of a run.

    Attributes:
        level: good, bad, or open (no fault is seen, but learning is not shown either).
        headline: The verdict in a few words.
        reasons: Sentences that explain it.
        since: The step since which it holds, if it has one.
    """

    level: Literal["good", "bad", "open"]
    headline: str
    reasons: tuple[str, ...]
    since: int | None = None


@dataclass(frozen=True)
class TermProgress:
    """How far a term has come over the last lines.

    Attributes:
        divergence: The loss minus the entropy of its target, which no network can avoid.
        chance: The divergence of uniform affinities.
    """

    divergence: float
    chance: float

    @property
    def share_below_chance(self) -> float:
        return 1 - self.divergence / max(self.chance, 1e-12)


def judge(records: Records, steps: int, queue_fill_steps: int = 0) -> Verdict:
    """Judge how a run is doing.

    Args:
        records: The content of metrics.jsonl.
        steps: Steps of the whole run; 0 if it has a time budget and no step so far.
        queue_fill_steps: Steps until the queue of image contrast holds only real keys; before, that term is not judged.
    """
    lines = of_kind(records, "train")
    checks = health_checks(records)
    done = last_step(records)
    failure = _skipped_steps(lines) or _collapse(checks)
    if failure:
        return failure
    if done < MIN_STEPS or len(lines) < MIN_LINES:
        return Verdict("open", "Too early to judge", (f"{done} steps and {len(lines)} lines of losses so far",))
    progress = _term_progress(lines, queue_fill_steps)
    if not progress:
        reason = f"the queue of image contrast holds random keys until step {queue_fill_steps}"
        return Verdict("open", "Too early to judge", (reason,))
    reasons = [_describe_term(name, term) for name, term in progress.items()]
    reasons += _describe_health(checks)
    # distillation follows the other terms, so it is judged only where it is trained alone
    judged = {name: term for name, term in progress.items() if name != "distill"} or progress
    if all(term.share_below_chance < LEARNED_SHARE for term in judged.values()):
        advice = "the learning rate may be too low, or the run too short: the terms should fall below chance early"
        return Verdict("bad", "Still at chance level", (*reasons, advice))
    raised = alarms(checks) if checks else []
    if raised:
        return Verdict("open", "Learning, but check the features", (*raised, *reasons), checks[-1].step)
    return Verdict("good", "Healthy" if done >= steps else "Healthy so far", tuple(reasons))


def describe_progress(records: Records, steps: int, verdict: Verdict) -> str:
    """Return how far the run is, with the way to continue it unless its verdict is bad."""
    done = last_step(records)
    if done >= steps > 0:
        return f"finished: all {steps} steps"
    position = f"step {done} of {steps}" if steps else f"step {done}"  # unknown at the start of a time budget
    progress = f"{position}, running or stopped"
    if verdict.level == "bad":
        return progress
    return f"{progress}; a stopped run continues with --resume"


def of_kind(records: Records, kind: str) -> list[Mapping[str, Any]]:
    """Return the records of a kind, such as "train", "health" or "start"."""
    return [record for record in records if record["kind"] == kind]


def last_step(records: Records) -> int:
    """Return the step of the last record; 0 before the first one."""
    return max((int(record["step"]) for record in records), default=0)


def health_checks(records: Records) -> list[Health]:
    """Return all health checks without their grouping; a measure that was not finite becomes nan."""
    names = [field.name for field in fields(Health) if field.default is MISSING]
    checks = []
    for line in of_kind(records, "health"):
        values: dict[str, Any] = {}
        for name in names:
            value = line.get(name)
            values[name] = math.nan if value is None else value
        checks.append(Health(**values))
    return checks


def _skipped_steps(lines: Records) -> Verdict | None:
    """Return a verdict if the last lines hold only steps that were skipped."""
    since = None
    for index in reversed(range(len(lines))):
        begin = int(lines[index - 1]["step"]) if index > 0 else 0
        if lines[index]["skipped_steps"] < lines[index]["step"] - begin:
            break
        since = begin
    if since is None:
        return None
    reasons = (
        f"no gradient has been finite since step {since}, so every step was skipped",
        "start again with a lower optim.lr, or with optim.precision float32",
    )
    return Verdict("bad", f"All steps skipped since step {since}", reasons, since)


def _collapse(checks: Sequence[Health]) -> Verdict | None:
    """Return a verdict if the last checks show collapsed features."""
    first = len(checks)
    while first > 0 and has_collapsed(checks[first - 1], checks[0]):
        first -= 1
    if first == len(checks):
        return None
    now = checks[-1]
    since = checks[first].step
    reasons = [f"feature std {now.feature_std:.3f}, effective rank {now.effective_rank:.1f} at step {now.step}"]
    if first > 0:
        reasons.append(f"the features were in order at the check before, at step {checks[first - 1].step}")
    if first == len(checks) - 1:
        reasons.append("only the newest check shows this; wait for the next one")
    reasons.append(COLLAPSE_ADVICE)
    return Verdict("bad", f"Features collapsed since step {since}", tuple(reasons), since)


def _term_progress(lines: Records, queue_fill_steps: int) -> dict[str, TermProgress]:
    """Average the divergence and the chance level of each term over the last lines."""
    count = max(MIN_LINES, round(LATE_SHARE * len(lines)))
    progress = {}
    for name in TERMS:
        divergences = []
        chances = []
        for line in lines[-count:]:
            divergence = line.get(f"{name}_kl")
            chance = line.get(f"{name}_chance")
            counts = name != "image" or line["step"] > queue_fill_steps
            if counts and divergence is not None and chance is not None:
                divergences.append(divergence)
                chances.append(chance)
        if divergences:
            progress[name] = TermProgress(sum(divergences) / len(divergences), sum(chances) / len(chances))
    return progress


def _describe_term(name: str, term: TermProgress) -> str:
    share = term.share_below_chance
    if share >= LEARNED_SHARE:
        place = f"{share:.0%} below"
    elif share > -LEARNED_SHARE:
        place = "at"
    else:
        place = f"{-share:.0%} above"
    values = f"divergence {term.divergence:.3g}, chance {term.chance:.3g}"
    return f"{TERMS[name].title}: {place} chance level ({values})"


def _describe_health(checks: Sequence[Health]) -> list[str]:
    if not checks:
        return ["no health check was made, because no image is held out (data.held_out)"]
    first = checks[0]
    now = checks[-1]
    times = now.point_match / max(now.point_match_chance, 1e-12)
    sentences = [
        f"effective rank of the features {now.effective_rank:.1f} ({first.effective_rank:.1f} at the start)",
        f"points are matched between views {times:.1f} times as often as by chance",
    ]
    if len(checks) < FEW_CHECKS:
        plural = "" if len(checks) == 1 else "s"
        sentences.append(f"only {len(checks)} health check{plural}: a lower run.health_every_steps measures more often")
    return sentences
