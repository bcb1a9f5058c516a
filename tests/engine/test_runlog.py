"""The records of a run: what log.txt holds, and that nothing of a closed log is left behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def test_other_processes_write_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plrc")
    with RunLog(tmp_path, 0, 10, main=False) as log:
        log.info("starting")
        log.record(0, "start", {})
        log.log_training(5, WINDOW)
    assert list(tmp_path.iterdir()) == [] and caplog.records == []
