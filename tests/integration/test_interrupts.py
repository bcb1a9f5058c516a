"""Ctrl-C at any moment: no traceback, nothing half-made, and a run continues with --resume. The signals are real."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.processes import HANGS
from tests.tiny import TINY

from plrc.cli import main
from plrc.files import LOCK, PARTIAL

# Sends the signal when a module is imported, and runs the command.
SIGNAL_AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1] and self in sys.meta_path:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell leaves it ignored
sys.meta_path.insert(0, Finder())
from plrc.cli import main
sys.exit(main(sys.argv[2:]))
"""


def pretrain_arguments(scenes: Path, out: Path) -> list[str]:
    settings = TINY | {"data.source": scenes, "data.held_out": 4, "run.out": out, "optim.steps": 3}
    arguments = ["pretrain", "--preset", "debug_cpu", "--model.strides", "8"]
    for name, value in settings.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


@pytest.fixture
def interrupts() -> Iterator[None]:
    """The handler with which Python starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("module", ["plrc.cli.commands", "plrc.config", "numpy", "torch.nn", "plrc.engine.setup"])
def test_ctrl_c_while_importing(module: str, scenes: Path, tmp_path: Path) -> None:
    arguments = pretrain_arguments(scenes, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AT_IMPORT, module, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert (done.returncode, done.stderr, done.stdout) == (130, "plrc: interrupted\n", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("interrupts")  # a background shell leaves the signal ignored
def test_ctrl_c_in_the_first_half_second(scenes: Path, tmp_path: Path) -> None:
    """At any time; before code of plrc runs, the interpreter ends by the signal or with a traceback of its own."""
    arguments = pretrain_arguments(scenes, tmp_path / "run")
    for wait in (0.05, 0.1, 0.2, 0.3, 0.5):
        process = subprocess.Popen([sys.executable, "-m", "plrc", *arguments], stderr=subprocess.PIPE, text=True)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=HANGS)[1]
        ours = [line for line in errors.splitlines() if f"plrc{os.sep}" in line]
        assert not ours, errors
        assert process.returncode in (130, -signal.SIGINT)
        assert not (tmp_path / "run").exists()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int = 1) -> None:
    """Send this process SIGINT when a function is called for the n-th time, before it does anything."""
    module, _, name = place.rpartition(".")
    owner = importlib.import_module(module)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


def unfinished_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if PARTIAL.fullmatch(path.name) or "partial" in path.name]


@pytest.mark.parametrize(
    ("place", "status", "left"),
    [
        ("plrc.engine.setup.find_images", 130, None),
        ("plrc.data.sources.list_images", 130, None),
        ("plrc.engine.setup.remove_partial", 130, [LOCK]),
        ("plrc.engine.setup.write_manifest", 130, ["config.toml", LOCK]),
        ("plrc.engine.pretrain.prepare_teacher", 75, None),
        ("plrc.engine.pretrain.log_start", 75, None),
        ("plrc.visualize.report.run_report", 0, None),
    ],
)
def test_ctrl_c_before_and_during_the_training(
    place: str,
    status: int,
    left: list[str] | None,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interrupts: None,
) -> None:
    out = tmp_path / "run"
    arguments = pretrain_arguments(scenes, out)
    with monkeypatch.context() as patch:
        interrupt_at(patch, place)
        assert main(arguments) == status
    errors = capsys.readouterr().err
    assert errors == ("plrc: interrupted\n" if status == 130 else "")
    assert unfinished_files(tmp_path) == []
    if status == 130:
        assert (sorted(path.name for path in out.iterdir()) if out.exists() else None) == left
    else:
        assert list((out / "checkpoints").glob("*.pt"))
    assert main([*arguments, "--resume"]) == 0
    assert (out / "exported" / "backbone.safetensors").exists() and (out / "report.html").exists()


@pytest.mark.parametrize(
    ("place", "call", "arguments"),
    [
        ("plrc.scenes.render_scene", 3, ["demo", "--out", "{out}/demo"]),
        ("plrc.data.scan._scan_image", 3, ["scan", "{images}", "--workers", "1"]),
        ("plrc.data.shard_writer._write_shard", 1, ["shard", "{images}", "--out", "{out}/shards"]),
        (
            "plrc.cli.visualize.write_text",
            1,
            ["visualize", "{run}", "--images", "{images}", "--out", "{out}/page.html"],
        ),
    ],
)
def test_ctrl_c_while_listing_and_rendering(
    place: str,
    call: int,
    arguments: list[str],
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interrupts: None,
) -> None:
    images = tmp_path / "images"
    shutil.copytree(scenes, images)
    before = sorted(images.iterdir())
    values = {"out": tmp_path / "out", "images": images, "run": tmp_path / "run"}
    arguments = [argument.format(**values) for argument in arguments]
    if "visualize" in arguments:
        assert main(pretrain_arguments(scenes, tmp_path / "run")) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt_at(patch, place, call)
        assert main(arguments) == 130
    assert capsys.readouterr().err == "plrc: interrupted\n"
    assert unfinished_files(tmp_path) == [] and sorted(images.iterdir()) == before
    assert not list(tmp_path.glob("out/*/*.tar")) and not list(tmp_path.glob("out/*.html"))
    if "demo" not in arguments:
        assert main(arguments) == 0
