"""The verdict on real runs, and on parts of their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plrc.engine.health import has_collapsed
from plrc.files import read_json_lines
from plrc.visualize.verdict import describe_progress, health_checks, judge, of_kind

STEPS, FILLING = 70, 3
Runs = dict[str, Path]


def until(records: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [record for record in records if record["step"] <= step]


def test_a_healthy_run(runs: Runs) -> None:
    verdict = judge(read_json_lines(runs["healthy"] / "metrics.jsonl"), STEPS, FILLING)
    assert (verdict.level, verdict.headline, verdict.since) == ("good", "Healthy", None)
    point = next(reason for reason in verdict.reasons if reason.startswith("point contrast"))
    share = int(point.split("%")[0].split()[-1])
    assert "below chance level" in point and share >= 10
    assert not any("health check" in reason for reason in verdict.reasons)


def test_a_ruined_run_collapses_since_a_step(runs: Runs) -> None:
    records = read_json_lines(runs["ruined"] / "metrics.jsonl")
    verdict = judge(records, STEPS, FILLING)
    checks = health_checks(records)
    since = next(check.step for check in checks if has_collapsed(check, checks[0]))
    assert (verdict.level, verdict.headline, verdict.since) == ("bad", f"Features collapsed since step {since}", since)
    assert 0 < since < checks[-1].step and all(
        not has_collapsed(check, checks[0]) for check in checks if check.step < since
    )
    assert any("lower optim.lr" in reason for reason in verdict.reasons)
    assert not any("only the newest check" in reason for reason in verdict.reasons)
    once = judge(until(records, since), STEPS, FILLING)
    assert once.headline == verdict.headline and any("only the newest check" in reason for reason in once.reasons)
    assert "collapsed" not in judge(until(records, since - 1), STEPS, FILLING).headline


def test_a_run_without_learning_has_not_left_chance_level(runs: Runs) -> None:
    verdict = judge(read_json_lines(runs["idle"] / "metrics.jsonl"), STEPS, FILLING)
    assert (verdict.level, verdict.headline) == ("bad", "Still at chance level")
    assert any(reason.startswith("point contrast: at chance level") for reason in verdict.reasons)


@pytest.mark.parametrize("name", ["healthy", "idle"])
def test_the_beginning_of_a_run_is_too_early_to_judge(runs: Runs, name: str) -> None:
    records = read_json_lines(runs[name] / "metrics.jsonl")
    for step in (0, 1, 20, 48):
        verdict = judge(until(records, step), STEPS, FILLING)
        assert (verdict.level, verdict.headline) == ("open", "Too early to judge")
    assert judge([], STEPS, FILLING).headline == "Too early to judge"


def test_an_unfinished_run_says_how_to_go_on(runs: Runs) -> None:
    records = read_json_lines(runs["healthy"] / "metrics.jsonl")
    assert describe_progress(records, STEPS, judge(records, STEPS, FILLING)) == "finished: all 70 steps"
    part = until(records, 60)
    verdict = judge(part, STEPS, FILLING)
    assert verdict.headline == "Healthy so far"
    assert "step 60 of 70" in describe_progress(part, STEPS, verdict) and "--resume" in describe_progress(
        part, STEPS, verdict
    )
    ruined = read_json_lines(runs["ruined"] / "metrics.jsonl")  # a run with collapsed features should not be continued
    assert "--resume" not in describe_progress(ruined, STEPS, judge(ruined, STEPS, FILLING))


def test_few_checks_are_named_as_such(runs: Runs) -> None:
    records = read_json_lines(runs["healthy"] / "metrics.jsonl")
    sparse = [r for r in records if r["kind"] != "health" or r["step"] in (0, STEPS)]
    assert any("only 2 health checks" in reason for reason in judge(sparse, STEPS, FILLING).reasons)
    without = of_kind(records, "train")
    assert any("no health check" in reason for reason in judge(without, STEPS, FILLING).reasons)


def test_image_contrast_is_not_judged_while_its_queue_holds_random_keys(runs: Runs) -> None:
    records = [
        {name: value for name, value in r.items() if not name.startswith(("point_kl", "distill_kl"))}
        for r in read_json_lines(runs["healthy"] / "metrics.jsonl")
    ]
    early = [r for r in records if r["kind"] != "train" or r["step"] <= 2 * 5]
    late = [r | {"step": r["step"] + 60} for r in early]  # the same values, whose first ones are far below chance
    assert judge(late, 200, 0).headline == "Healthy so far"
    assert judge(late, 200, 80).headline == "Too early to judge"


def test_alarms_of_the_features_keep_a_run_from_being_called_healthy(runs: Runs) -> None:
    records = [dict(r) for r in read_json_lines(runs["healthy"] / "metrics.jsonl")]
    of_kind(records, "health")[-1]["effective_rank"] = 2.0  # type: ignore[index]
    verdict = judge(records, STEPS, FILLING)
    assert verdict.level == "open" and any("effective rank fell" in reason for reason in verdict.reasons)


def test_lines_that_are_damaged_are_left_out(runs: Runs, tmp_path: Path) -> None:
    text = (runs["healthy"] / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "ki\x00}\n' + text + '{"step": 71, "kind": "tra')
    assert read_json_lines(tmp_path / "metrics.jsonl") == read_json_lines(runs["healthy"] / "metrics.jsonl") != []
    assert read_json_lines(tmp_path / "nothing" / "metrics.jsonl") == []


def test_features_that_are_no_numbers_have_collapsed(runs: Runs) -> None:
    """metrics.jsonl has null for what was not finite; the run itself stops after two such checks."""
    records = [dict(r) for r in read_json_lines(runs["healthy"] / "metrics.jsonl")]
    of_kind(records, "health")[-1].update(feature_std=None, effective_rank=None)  # type: ignore[attr-defined]
    assert judge(records, STEPS, FILLING).headline == f"Features collapsed since step {STEPS}"


def test_steps_without_a_finite_gradient(runs: Runs) -> None:
    """The last windows hold skipped steps alone, as the loop records them."""
    records = [dict(r) for r in read_json_lines(runs["healthy"] / "metrics.jsonl")]
    for record in records:
        if record["kind"] == "train" and record["step"] > 30:
            record["skipped_steps"] = 2.0
    verdict = judge(records, STEPS, FILLING)
    assert (verdict.level, verdict.headline, verdict.since) == ("bad", "All steps skipped since step 30", 30)
    of_kind(records, "train")[-1]["skipped_steps"] = 1.0  # type: ignore[index]
    assert judge(records, STEPS, FILLING).level == "good"
