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


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["scan", "--help"]])
def test_a_closed_pipe_ends_a_command_without_a_message(arguments: list[str], unbuffered: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)  # as after `| head -1` has its line
    try:
        result = subprocess.run(
            [sys.executable, "-m", "plrc", *arguments],
            stdout=write_end,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
            check=False,
        )
    finally:
        os.close(write_end)
    assert result.stderr == ""
    # argparse itself ignores that its help cannot be written at once, since Python 3.11
    ignored = unbuffered and arguments[0] == "scan" and sys.version_info >= (3, 11)
    assert result.returncode == (0 if ignored else 141)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_still_reported(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "plrc", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert "No space left on device" in result.stderr
