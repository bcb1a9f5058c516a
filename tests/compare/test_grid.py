"""What all grids of runs do: nothing is executed twice, others are waited for, stops and progress are logged."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from tests.compare.toy_grid import ToyGrid

from plrc.compare import grid
from plrc.compare.grid import GridStart, log_start, run_grid
from plrc.errors import DataError
from plrc.files import claim
from plrc.progress import OnProgress
from plrc.runtime import StopRequest

HOLD = """
import sys
from pathlib import Path
from plrc.files import claim
with claim(Path(sys.argv[1])) as has_lock:
    print(has_lock, flush=True)
    sys.stdin.read()
    {end}
"""


def hold(folder: Path, end: str = "pass") -> subprocess.Popen[bytes]:
    """Start a process that holds the lock of a folder until its standard input is closed, and does `end` then."""
    command = [sys.executable, "-c", HOLD.format(end=end), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"True\n"
    return process


def execute(toy: ToyGrid) -> bool:
    stop = StopRequest()
    try:
        return run_grid(toy, log_start(toy, log_pattern="*.txt"), stop, progress_seconds=100)
    finally:
        stop.restore()


def test_a_run_belongs_to_one_process_and_a_dead_one_gives_it_back(tmp_path: Path) -> None:
    with claim(tmp_path) as mine, claim(tmp_path) as theirs:
        assert (mine, theirs) == (True, False)
    with hold(tmp_path) as other:
        with claim(tmp_path) as mine:
            assert not mine
        other.kill()
    with claim(tmp_path) as mine:
        assert mine


def test_runs_are_executed_once_and_logged(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    assert execute(ToyGrid(tmp_path, 2))
    assert log.messages[0] == "2 runs, 0 of them done; each is logged in *.txt"
    assert [re.sub(r"\d:\d\d:\d\d", "TIME", line) for line in log.messages[1:]] == [
        "[1/2] 0: AP 0; left TIME",
        "[2/2] 1: AP 1; left TIME",
    ]
    log.clear()
    assert execute(ToyGrid(tmp_path, 3))
    assert log.messages[0] == "3 runs, 2 of them done; each is logged in *.txt"
    assert ToyGrid(tmp_path).executed() == [0, 1, 2]


def test_a_run_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "POLL_SECONDS", 0.01)
    toy = ToyGrid(tmp_path)
    with hold(toy.folder(1), end="(Path(sys.argv[1]) / 'result').touch()") as other:

        class Waiting(ToyGrid):
            def execute(self, run: int, on_progress: OnProgress) -> str | None:
                if run == 2 and other.stdin is not None:
                    other.stdin.close()
                return super().execute(run, on_progress)

        assert execute(Waiting(tmp_path))
    assert toy.executed() == [0, 2]
    assert toy.is_finished(1)


def test_a_request_to_stop_ends_the_work_after_the_run(tmp_path: Path) -> None:
    class Interrupted(ToyGrid):
        def execute(self, run: int, on_progress: OnProgress) -> str | None:
            if run == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().execute(run, on_progress)

    assert not execute(Interrupted(tmp_path))
    assert ToyGrid(tmp_path).executed() == [0, 1]


def test_a_run_that_was_stopped_stops_the_rest(tmp_path: Path) -> None:
    toy = ToyGrid(tmp_path, stopping=1)
    assert not execute(toy)
    assert toy.executed() == [0]


def test_progress_is_logged_now_and_then(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    assert run_grid(ToyGrid(tmp_path, 1), GridStart(time.time(), 0), stop, progress_seconds=0)
    assert log.messages[:2] == ["0: 1/2  loss 3", "0: 2/2"]
    log.clear()
    assert run_grid(ToyGrid(tmp_path, 2), GridStart(time.time(), 1), stop, progress_seconds=100)
    assert [line[:5] for line in log.messages] == ["[2/2]"]
    stop.restore()


def test_of_a_run_only_warnings_are_shown(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    class Talking(ToyGrid):
        def execute(self, run: int, on_progress: OnProgress) -> str | None:
            logger = logging.getLogger("plrc.engine.pretrain")
            logger.info("a line for log.txt")
            logger.warning("a warning")
            return super().execute(run, on_progress)

    assert execute(Talking(tmp_path, 1))
    assert [line[:5] for line in log.messages] == ["1 run", "a war", "[1/1]"]
    logging.getLogger("plrc.engine.pretrain").info("after the run")
    assert log.messages[-1] == "after the run"


def test_time_left_follows_from_the_runs_since_the_start() -> None:
    start = GridStart(time.time() - 60, num_done=2)
    assert start.time_left(num_done=5, num_runs=9) == timedelta(seconds=80)


def test_an_error_of_a_run_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run 1 cannot be executed"):
        execute(ToyGrid(tmp_path, failing=1))
    assert ToyGrid(tmp_path).executed() == [0]
