"""The short form of `broken_images`: fewer files, the same faults, in the process of the tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.soak.broken_files import FAULTS, OTHERS, bombs, no_files, write_folder
from tests.soak.broken_images import changes, decode_all
from torch import Tensor

from plrc.config import Config, DataConfig
from plrc.data.decode import decode, decode_bytes
from plrc.data.image_errors import DecodeError
from plrc.data.scan import scan
from plrc.engine.pretrain import pretrain
from plrc.errors import PlrcError

FILES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("broken") / "images"
    write_folder(path, FILES, seed=1)
    return path


def test_every_file_gives_pixels_or_one_sentence_and_nothing_leaks(folder: Path) -> None:
    found = decode_all(folder)
    assert found["faults"] == []
    refused = sum(count for outcome, count in found["outcomes"].items() if outcome != "pixels")
    assert refused > FILES / 2 and found["outcomes"]["pixels"] > FILES / 4
    kinds = {path.split("_")[1].rsplit(".")[0] for path in os.listdir(folder) if "_" in path}
    assert set(FAULTS) < kinds and {f"bomb-{name}" for name in bombs()} < kinds and len(kinds & set(OTHERS)) > 10


def test_scan_names_them(folder: Path) -> None:
    report = scan(DataConfig(source=str(folder)), workers=2)
    (folder / ".plrc-index.json").unlink()
    assert report.usable + len(report.unusable) == report.files > FILES
    assert all(reason and "\n" not in reason for _, reason in report.unusable)
    table = report.table()
    assert table.isascii() and "\x1b" not in table
    assert "folders named like an image, left out: 1 (folder.jpg)" in table
    assert "dangling links, left out: 5 (dangling.png, pipe.jpg, self.jpg, ...)" in table


@pytest.mark.slow
def test_training_goes_on_and_stops_above_the_limit(folder: Path, tiny: Callable[..., Config]) -> None:
    settings = {"data.source": str(folder), "run.workers": 1, "optim.steps": 12}
    run = pretrain(tiny().with_values(settings | {"data.max_unreadable_fraction": 1.0}))
    assert run.finished
    log = (run.path / "log.txt").read_text(encoding="utf-8")
    assert log.count("another image takes its place") > 20 and "\x1b" not in log
    stopped = tiny().with_values(settings | {"run.out": str(run.path.with_name("stopped"))})
    with pytest.raises(
        PlrcError, match=r"images cannot be read, more than data\.max_unreadable_fraction \(10%\), such as "
    ):
        pretrain(stopped)


def test_a_damaged_folder_below_the_limit_ends_no_run(scenes: Path, tiny: Callable[..., Config]) -> None:
    """Neighbours in the list: with the next image as substitute, the first of more than 100 would find none."""
    folder = Path(tiny().run.out).with_name("images")
    (folder / "a").mkdir(parents=True)
    for i in range(130):
        (folder / "a" / f"{i:03d}.jpg").write_bytes(b"lost")
    for i in range(20):
        (folder / f"{i:03d}.jpg").write_bytes(next(scenes.iterdir()).read_bytes())
    assert pretrain(tiny(data__source=str(folder), data__max_unreadable_fraction=0.9)).finished


@pytest.mark.slow
def test_images_that_change_while_a_training_runs(tmp_path: Path) -> None:
    assert changes(tmp_path / "changes", images=120, steps=18, seed=1)["faults"] == []


def test_what_is_no_file_does_not_hang_and_root_reads_the_forbidden(tmp_path: Path) -> None:
    """Pipes have no end until somebody writes, /dev/zero has none at all; a sparse file of 20 GB fills no memory."""
    no_files(tmp_path)
    reasons = {
        "folder.jpg": "is a folder",
        "loop": "is a folder",
        "self.jpg": "cannot be opened (Too many levels of symbolic links)",
        "dangling.png": "does not exist (or is a dangling link)",
        "zero.jpg": "is no file but a pipe, a socket or a device",
        "pipe.jpg": "is no file but a pipe, a socket or a device",
        "socket.jpg": "cannot be opened (No such device or address)",
        "sparse.jpg": "the file has 20 GB, more than data.max_megapixels = 200 can take",
    }
    if os.geteuid():  # permissions do not hold for root
        reasons["forbidden.jpg"] = "cannot be opened (Permission denied)"
    for name, reason in reasons.items():
        with pytest.raises(DecodeError) as caught:
            decode(tmp_path / name)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGSEGV, "a loader process crashed (SIGSEGV) while it was reading 000005.jpg: remove or replace"),
        (
            signal.SIGKILL,
            "killed while it was reading 000005.jpg, usually because memory ran out (SIGKILL); resume with --resume",
        ),
    ],
)
def test_a_decoder_that_crashes_names_the_image_and_the_run_can_be_resumed(
    number: signal.Signals,
    sentence: str,
    tiny: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Native code that crashes takes its loader process along; the run ends, and goes on once the image is removed."""
    images = tmp_path / "images"
    shutil.copytree(tiny().data.source, images)
    config = tiny(data__source=str(images), run__workers=2, run__checkpoint_every_steps=1, optim__steps=12)

    victim = (images / "000005.jpg").read_bytes()

    def crash(data: bytes, **options: Any) -> Tensor:
        if data == victim:
            os.kill(os.getpid(), number)
        return decode_bytes(data, **options)

    with monkeypatch.context() as patch:
        patch.setattr("plrc.data.sources.decode_bytes", crash)
        with pytest.raises(PlrcError) as caught:
            pretrain(config)
    assert sentence in str(caught.value)
    assert "reading 000005.jpg" in str(caught.value)
    (images / "000005.jpg").unlink()
    assert pretrain(config.with_values({"run.resume": True})).finished
