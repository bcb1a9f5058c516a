"""Turns, peak memory, and the report of a benchmark."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from benchmarks import report
from benchmarks.report import Bench, interquartile_range, median, peak_bytes, ratios, time_interleaved

from plrc.errors import PlrcError

CPU = torch.device("cpu")
FLOATS = 250_000  # a megabyte
BENCH = Bench("step", {"batch": 8}, {"ratio": 1.25}, [{"variant": "a", "bytes": 12345}, {"variant": "bb", "part": "x"}])


def test_functions_take_turns_and_warm_up_rounds_are_left_out() -> None:
    calls: list[str] = []
    functions = {"fast": lambda: calls.append("fast"), "slow": lambda: (calls.append("slow"), time.sleep(0.02))}
    seconds = time_interleaved(functions, 3, CPU, warmup=2)
    assert calls == 5 * ["fast", "slow"]
    assert [len(durations) for durations in seconds.values()] == [3, 3]
    assert max(seconds["fast"]) < 0.02 <= min(seconds["slow"])


def test_zero_repeats_are_refused() -> None:
    with pytest.raises(PlrcError, match="repeats must be >= 1, got 0"):
        time_interleaved({}, 0, CPU)


def test_ratios_compare_neighbors_in_time() -> None:
    assert ratios("r", [2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == {"r": 2.0, "r_spread": 1.0}


def test_peak_is_what_is_alive_at_once_beyond_what_was_before() -> None:
    before = torch.ones(10 * FLOATS)

    def in_turn() -> None:
        for _ in range(3):
            torch.ones(FLOATS)

    def together() -> torch.Tensor:
        return torch.cat([before[:FLOATS], before[:FLOATS]]) + 1  # two results of two megabytes each

    assert [peak_bytes(in_turn, CPU) for _ in range(3)] == 3 * [4 * FLOATS]
    assert peak_bytes(together, CPU) == pytest.approx(16 * FLOATS, abs=64)  # and the number 1
    assert peak_bytes(lambda: None, CPU) == 0


def test_median_and_interquartile_range() -> None:
    assert median([4.0, 1.0, 2.0]) == 2 and interquartile_range([5.0, 1.0, 2.0, 3.0, 4.0]) == 2
    assert interquartile_range([7.0]) == 0


def test_table_aligns_columns_and_leaves_gaps() -> None:
    assert BENCH.table().splitlines() == [
        "step: batch 8",
        "",
        "variant   bytes  part",
        "a        12,345",
        "bb                  x",
        "",
        "ratio  1.25",
    ]


def test_json_holds_everything(tmp_path: Path) -> None:
    BENCH.save(tmp_path / "new" / "step.json")
    content = json.loads((tmp_path / "new" / "step.json").read_text())
    assert list(content) == ["kind", "date", "machine", "settings", "figures", "rows"]
    assert content["figures"] == {"ratio": 1.25} and content["rows"] == BENCH.rows
    assert content["machine"] == report.machine()
    assert content["machine"]["torch"] == torch.__version__ and content["machine"]["cpu"]


def test_an_unwritable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlrcError, match="name another --json FILE"):
        BENCH.save(tmp_path / "file" / "step.json")
