"""How a run is doing, in plain words: a pure function of its records.

Layer 5: imports the engine's health alarms. Thresholds are held against real runs in tests/visualize/test_verdict.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from plrc.engine.health import COLLAPSE_ADVICE, Health, alarms
from plrc.objectives import TERMS

SHORT_STEPS, SHORT_LINES, FEW_CHECKS = 50, 5, 3
LEFT = 0.05  # a term has left its chance level once its divergence lies this share below it
LATE = 0.2  # share of the lines, the last ones, over which divergences are averaged

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """level: good, bad, or open (nothing is wrong that can be seen, but it is not shown to be right).

    since: the step since which it is so, where there is one.
    """

    level: Literal["good", "bad", "open"]
    headline: str
    reasons: tuple[str, ...]
    since: int | None = None


def verdict(records: Records, steps: int, filling: int = 0) -> Verdict:
    """`records`: the content of metrics.jsonl; `steps`: of the whole run; `filling`: steps until the queue of image
    contrast holds real keys only, before which that term says nothing."""
    lines, checks = of_kind(records, "train"), health_checks(records)
    done = last_step(records)
    found = _not_finite(lines) or _collapsed(checks)
    if found:
        return found
    if done < SHORT_STEPS or len(lines) < SHORT_LINES:
        return Verdict("open", "Too short to tell", (f"{done} steps, {len(lines)} lines of losses so far",))
    gains = _gains(lines, filling)
    if not gains:
        return Verdict("open", "Too short to tell", (f"the queue of image contrast is filled at step {filling}",))
    reasons = [_about(name, *gain) for name, gain in gains.items()] + list(_about_health(checks))
    judged = {name: gain for name, gain in gains.items() if name != "distill"} or gains
    if all(share < LEFT for share, _, _ in judged.values()):
        advice = "the learning rate may be too low, or the run too short: the terms should fall below chance early on"
        return Verdict("bad", "Has not left chance level", (*reasons, advice))
    raised = alarms(checks) if checks else []
    if raised:
        return Verdict("open", "Learning, but look at the features", (*raised, *reasons), checks[-1].step)
    return Verdict("good", "Healthy" if done >= steps else "Healthy so far", tuple(reasons))


def standing(records: Records, steps: int, found: Verdict) -> str:
    """How far the run is; with a verdict that is not bad, also how it goes on."""
    done = last_step(records)
    if done >= steps:
        return f"finished: all {steps} steps"
    where = f"stopped at, or on its way through, step {done} of {steps}"
    return where if found.level == "bad" else f"{where}; if it is not under way, go on with --resume"


def of_kind(records: Records, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def last_step(records: Records) -> int:
    """Of the last line of losses or check of health; 0 before there is one."""
    return max((int(record["step"]) for record in records), default=0)


def health_checks(records: Records) -> list[Health]:
    """All checks (grouping needs masks, and is left out); a measure that was not finite is nan."""
    names = [field.name for field in fields(Health) if field.default is MISSING]
    measured: list[dict[str, Any]] = [
        {name: math.nan if line.get(name) is None else line[name] for name in names}
        for line in of_kind(records, "health")
    ]
    return [Health(**values) for values in measured]


def _not_finite(lines: Records) -> Verdict | None:
    """The last lines hold no step that counted."""
    since, begins = None, [0, *(int(line["step"]) for line in lines[:-1])][: len(lines)]
    for line, began in zip(reversed(lines), reversed(begins), strict=True):
        if line["skipped_steps"] < line["step"] - began:
            break
        since = began
    if since is None:
        return None
    why = (
        f"since step {since} no gradient was finite, so every step was skipped",
        "start again with a lower optim.lr, or with optim.precision float32",
    )
    return Verdict("bad", f"No step counts since step {since}", why, since)


def _collapsed(checks: Sequence[Health]) -> Verdict | None:
    """The last checks found collapsed features."""
    bad = 0
    while bad < len(checks) and checks[-1 - bad].collapsed:
        bad += 1
    if not bad:
        return None
    first, now = checks[-bad], checks[-1]
    once = ("only the newest check says so; the next one will tell",) if bad == 1 else ()
    measured = f"feature std {now.feature_std:.3f}, effective rank {now.effective_rank:.1f} at step {now.step}"
    whole = checks[:-bad]
    before = (f"at step {whole[-1].step}, the check before, they were in order",) if whole else ()
    reasons = (measured, *before, *once, COLLAPSE_ADVICE)
    return Verdict("bad", f"Collapsing since step {first.step}", reasons, first.step)


def _gains(lines: Records, filling: int) -> dict[str, tuple[float, float, float]]:
    """Term -> (share below chance, divergence, chance), over the last lines."""
    late = lines[-max(SHORT_LINES, round(LATE * len(lines))) :]
    found = {}
    for name in TERMS:
        pairs = [(line[f"{name}_kl"], line[f"{name}_chance"]) for line in late if _judged(line, name, filling)]
        if pairs:
            now, chance = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
            found[name] = (1 - now / max(chance, 1e-12), now, chance)
    return found


def _judged(line: Mapping[str, Any], name: str, filling: int) -> bool:
    known = line.get(f"{name}_kl") is not None and line.get(f"{name}_chance") is not None
    return known and (name != "image" or line["step"] > filling)


def _about(name: str, share: float, now: float, chance: float) -> str:
    where = f"{share:.0%} below" if share >= LEFT else "at" if share > -LEFT else f"{-share:.0%} above"
    return f"{TERMS[name].title}: {where} chance level (divergence {now:.3g}, chance {chance:.3g})"


def _about_health(checks: Sequence[Health]) -> Iterator[str]:
    if not checks:
        yield "no health check was made (no image is held out: data.held_out)"
        return
    first, now = checks[0], checks[-1]
    yield f"effective rank of the features {now.effective_rank:.1f} ({first.effective_rank:.1f} at the start)"
    times = now.point_match / max(now.point_match_chance, 1e-12)
    yield f"points are found again in another view {times:.1f} times as often as by chance"
    if len(checks) < FEW_CHECKS:
        many = "1 check" if len(checks) == 1 else f"{len(checks)} checks"
        yield f"only {many} of the features: a lower run.health_every_steps says more"
