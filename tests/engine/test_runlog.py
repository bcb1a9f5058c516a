"""The records of a run: what log.txt holds, and that nothing of a closed log is left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from plrc.config import Config
from plrc.engine import runlog
from plrc.engine.monitor import Monitor
from plrc.engine.pretrain import pretrain
from plrc.engine.runlog import RunLog

PLRC = logging.getLogger("plrc")
WINDOW = {"loss": 1.25, "images_per_second": 10.0}


@pytest.fixture
def silent() -> Iterator[None]:
    """An application that wants to hear errors only."""
    level = PLRC.level
    PLRC.setLevel(logging.ERROR)
    yield
    PLRC.setLevel(level)


def sentences(out: Path) -> list[str]:
    """The lines of log.txt without their times."""
    return [line[20:] for line in (out / "log.txt").read_text().splitlines()]


def test_log_txt_is_complete_whatever_the_application_wants_to_hear(tmp_path: Path, silent: None) -> None:
    with RunLog(tmp_path, 0, 10, main=True) as log:
        log.info("starting\x1b[31m")
        log.warning("a disk is full")
    assert sentences(tmp_path) == ["starting\\x1b[31m", "warning: a disk is full"]


def test_messages_reach_the_logger_and_those_of_other_modules_reach_log_txt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plrc")
    with RunLog(tmp_path, 0, 10, main=True) as log:
        log.info("starting")
        logging.getLogger("plrc.api").warning("no %s", "report")
    assert [record.getMessage() for record in caplog.records] == ["starting", "no report"]
    assert sentences(tmp_path) == ["starting", "warning: no report"]


def test_a_closed_log_leaves_no_handler(tmp_path: Path) -> None:
    """Also where a run is inside another, or ends with an error."""
    before = list(PLRC.handlers)
    with RunLog(tmp_path, 0, 10, main=True):
        with pytest.raises(RuntimeError, match="power cut"), RunLog(tmp_path, 0, 10, main=True):
            raise RuntimeError("power cut")
        assert len(PLRC.handlers) == len(before) + 1
    assert PLRC.handlers == before


def test_progress_goes_to_its_logger_and_the_callback_but_not_to_log_txt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plrc")
    calls: list[tuple[int, int, str]] = []
    with RunLog(tmp_path, 0, 10, main=True, on_progress=lambda *call: calls.append(call)) as log:
        log.log_training(5, WINDOW)
    (done, total, line), (record,) = calls[0], caplog.records
    assert (done, total) == (5, 10) and line.startswith("5/10  loss 1.250  10.0 img/s  left 0:")
    assert record.name == "plrc.progress" and record.getMessage() == line
    assert sentences(tmp_path) == []


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(runlog, "time", SimpleNamespace(perf_counter=self.now, strftime=time.strftime))

    def now(self) -> float:
        return self.seconds


def test_slow_steps_show_the_time_left_within_the_first_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plrc")
    clock = Clock(monkeypatch)
    calls: list[tuple[int, int, str]] = []
    with RunLog(tmp_path, 2, 100, main=True, on_progress=lambda *call: calls.append(call)) as log:
        clock.seconds = 1000.0  # checks and features before the first step
        log.start_clock(2)
        for step in range(3, 13):
            clock.seconds += 15.0
            if step % 10 == 0:
                log.log_training(step, WINDOW)
            else:
                log.log_step(step)
    lines = [line for _, _, line in calls]
    assert lines == [
        "4/100  left 24:00",
        "6/100  left 23:30",
        "8/100  left 23:00",
        "10/100  loss 1.250  10.0 img/s  left 22:30",  # from now on as often as run.log_every_steps says
    ]
    assert [record.getMessage() for record in caplog.records] == lines
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


def test_work_before_the_first_step_shows_its_own_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls: list[tuple[int, int, str]] = []
    with RunLog(tmp_path, 0, 10, main=True, on_progress=lambda *call: calls.append(call)) as log:
        clock.seconds = 500.0
        log.start_clock()
        for done in range(1, 8):
            clock.seconds += 8.0
            log.log_time_left(done, 40, f"features: {done}/40")
    assert calls == [(3, 40, "features: 3/40  left 4:56"), (6, 40, "features: 6/40  left 4:32")]


def test_the_health_check_before_training_is_not_part_of_the_time_left(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    measure = Monitor.check_health

    def slowly(self: Monitor, step: int) -> None:
        measure(self, step)
        clock.seconds += 3600.0

    monkeypatch.setattr(Monitor, "check_health", slowly)
    lines: list[str] = []
    config = tiny(optim__steps=3, run__log_every_steps=1, run__health_every_steps=3, run__workers=0)
    pretrain(config, on_progress=lambda done, total, line="": lines.append(line))
    assert [line.rpartition("  ")[2] for line in lines] == ["left 0:00"] * 3


def test_other_processes_write_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plrc")
    with RunLog(tmp_path, 0, 10, main=False) as log:
        log.info("starting")
        log.record(0, "start", {})
        log.log_step(4)
        log.log_training(5, WINDOW)
    assert list(tmp_path.iterdir()) == [] and caplog.records == []
