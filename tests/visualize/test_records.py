"""The records of a run, thinned: numbers stay what they are, and memory does not grow with the length of the log."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from plrc.files import read_json_lines
from plrc.visualize.records import MAX_LINES, read_records
from plrc.visualize.report import _last_log_lines, health_share, training_seconds
from plrc.visualize.verdict import judge, last_step, of_kind

BATCH = 64


def training_line(number: int, total: int) -> dict[str, Any]:
    """A run that learns: the divergence falls from chance to a tenth of it; every hundredth step is skipped."""
    chance = 4.0
    line = {
        "step": 10 * number,
        "kind": "train",
        "point_loss": 5.0,
        "point_kl": chance * (1 - 0.9 * number / total),
        "point_chance": chance,
        "skipped_steps": number % 10 == 0,
        "images_per_second": 100.0 + number % 50,
        "data_wait_share": 0.1,
        "gradient_norm": None if number % 3 else 1.0,
    }
    return line | {"skipped_steps": int(line["skipped_steps"])}


def health_line(step: int) -> dict[str, Any]:
    health = {"feature_std": 0.9, "effective_rank": 40.0, "point_match": 0.5, "point_match_chance": 0.1}
    return {"step": step, "kind": "health", "drift": 0.2, "seconds": 1.5, **health}


def write_metrics(folder: Path, lines: int) -> Path:
    path = folder / f"{lines}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"step": 0, "kind": "start", "versions": {}}) + "\n")
        for number in range(1, lines + 1):
            file.write(json.dumps(training_line(number, lines)) + "\n")
            if number % 10 == 0:
                file.write(json.dumps(health_line(10 * number)) + "\n")
        file.write('{"step": 10, "ki')  # cut by a power failure
    return path


def test_a_short_log_is_returned_as_it_is(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, MAX_LINES - 1)
    records = read_records(path)
    for kind in ("start", "train", "health"):
        assert of_kind(records, kind) == of_kind(read_json_lines(path), kind)
    assert read_records(tmp_path / "missing.jsonl") == []


@pytest.mark.parametrize("lines", [MAX_LINES, 3 * MAX_LINES + 5, 20_000])
def test_a_long_log_gives_the_same_verdict_and_sums(lines: int, tmp_path: Path) -> None:
    path = write_metrics(tmp_path, lines)
    full = read_json_lines(path)
    thinned = read_records(path)
    trained = of_kind(thinned, "train")
    assert MAX_LINES / 2 <= len(trained) <= MAX_LINES
    assert len(of_kind(thinned, "health")) <= MAX_LINES
    assert last_step(thinned) == last_step(full) == 10 * lines
    assert training_seconds(thinned, BATCH) == pytest.approx(training_seconds(full, BATCH), rel=1e-3)
    assert health_share(thinned, BATCH) == pytest.approx(health_share(full, BATCH), rel=1e-3)
    for kind in ("start", "health"):
        assert of_kind(thinned, kind)[0] == of_kind(full, kind)[0]
        assert last_step(of_kind(thinned, kind)) == last_step(of_kind(full, kind))
    skipped = sum(line["skipped_steps"] for line in trained)
    assert skipped == sum(line["skipped_steps"] for line in of_kind(full, "train"))
    assert {line["gradient_norm"] for line in trained} <= {1.0, None}
    assert judge(thinned, 10 * lines).headline == judge(full, 10 * lines).headline == "Healthy"
    reasons = [judge(records, 10 * lines).reasons[0].partition(" (")[0] for records in (thinned, full)]
    assert reasons[0] == reasons[1]


def peak_bytes(path: Path) -> int:
    tracemalloc.start()
    read_records(path)
    _last_log_lines(path.parent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    peaks = []
    for lines in (12 * MAX_LINES, 48 * MAX_LINES):
        (tmp_path / "log.txt").write_text("2026-01-01 00:00:00 a line of the log\n" * lines, encoding="utf-8")
        peaks.append(peak_bytes(write_metrics(tmp_path, lines)))
    assert peaks[1] < 1.1 * peaks[0] < 10e6
    assert len(_last_log_lines(tmp_path)) == 40
