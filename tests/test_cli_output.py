"""What the command line shows of log records and progress, and that no output device can stop a command."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plrc.cli.output import console, progress, screen

Capture = pytest.CaptureFixture[str]


def log_something() -> None:
    logging.getLogger("plrc.engine.pretrain").info("48 images [bold]%s", "a\x1b[31m.jpg")
    logging.getLogger("plrc.data.scan").warning("one image cannot be read")
    logging.getLogger("plrc.progress").info("10/20  loss 1.5")
    logging.getLogger("plrc.engine").debug("detail")
    logging.getLogger("other.library").warning("noise")


def test_records_are_bare_sentences_and_progress_lines(capsys: Capture) -> None:
    """Without a terminal: one line each; control characters of names are escaped, markup is not interpreted."""
    with screen():
        log_something()
    log_something()  # nothing is shown afterwards
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["48 images [bold]a\\x1b[31m.jpg", "warning: one image cannot be read", "10/20  loss 1.5"]


def test_only_the_first_process_shows_records(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with screen():
        log_something()
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_instead_of_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with screen(), progress("steps") as on_progress:
        on_progress(5, 20)
        on_progress(10, 20, "10/20  loss 1.5")
        logging.getLogger("plrc.progress").info("10/20  loss 1.5 as a line")
        logging.getLogger("plrc.engine").info("a sentence")
    shown = terminal.getvalue()
    assert "10/20  loss 1.5" in shown and "a sentence" in shown and "━" in shown
    assert "as a line" not in shown


def test_without_a_terminal_there_is_no_bar(capsys: Capture) -> None:
    with screen(), progress("steps") as on_progress:
        on_progress(5, 20)
    assert capsys.readouterr().out == ""


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("device", [Full, Closed])
def test_output_that_cannot_be_written_stops_nothing(
    device: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", device())
    with screen():
        log_something()
    console.cache_clear()


def test_a_terminal_that_cannot_write_a_name_shows_its_code(tmp_path: Path) -> None:
    code = """
import logging
import os
from plrc.cli.output import screen
with screen():
    logging.getLogger("plrc").info("left out \\u56fe.jpg")
    print("done \\u56fe.jpg")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    assert done.stdout == "left out \\u56fe.jpg\ndone \\u56fe.jpg\n"
