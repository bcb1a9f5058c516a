"""Exports to the same file at the same time, by real processes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.export.runs import names, saved_run

from plrc import export
from plrc.errors import ExportError
from plrc.files import FolderLock
from plrc.model.backbone import build_backbone

EXPORT = """
import sys
import time
from pathlib import Path
import plrc
from plrc.export import write
run, out = Path(sys.argv[1]), sys.argv[2]
(run / "ready").touch()
while len(list(run.parent.glob("*/ready"))) < 2:
    time.sleep(0.001)
for _ in range(2):
    plrc.export_backbone(run, "safetensors", out)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two run folders with different weights, at steps 1 and 2."""
    folders = []
    root = tmp_path_factory.mktemp("runs")
    for step in (1, 2):
        torch.manual_seed(step)
        net = build_backbone("resnet18")
        folders.append(saved_run(root / str(step), names(net), step=step))
    return folders


def images_seen(file: Path) -> str:
    """The row of the model card that names the step."""
    card = file.with_name(f"{file.name}.card.md").read_text(encoding="utf-8")
    return next(line for line in card.splitlines() if "images seen" in line)


def test_the_file_is_one_of_the_two_whole_exports(runs: list[Path], tmp_path: Path) -> None:
    """Two exports in a row by each of two processes that start at once: each waits for the other."""
    out = tmp_path / "both.safetensors"
    command = [sys.executable, "-c", EXPORT]
    processes = [subprocess.Popen([*command, str(run), str(out)], stderr=subprocess.PIPE, text=True) for run in runs]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    receipt = json.loads(out.with_name(f"{out.name}.receipt.json").read_text(encoding="utf-8"))
    assert receipt["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    alone = tmp_path / "alone" / "both.safetensors"
    export.export_backbone(runs[receipt["step"] - 1], "safetensors", alone)
    assert images_seen(out) == images_seen(alone)
    stored, expected = load_file(out), load_file(alone)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in stored)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["alone", "both.safetensors", "both.safetensors.card.md", "both.safetensors.receipt.json"]


def test_an_export_that_never_ends_is_named(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plrc.unproven.LOCK_SECONDS", 0.3)
    out = tmp_path / "busy.safetensors"
    lock = FolderLock()
    assert lock.take(tmp_path / ".unproven.busy.safetensors")
    with pytest.raises(ExportError, match=r"another process has been writing .*busy\.safetensors for 0 s"):
        export.export_backbone(runs[0], "safetensors", out)
    lock.release()
    export.export_backbone(runs[0], "safetensors", out)  # what a killed process left is used again, and removed
    assert out.exists() and not list(tmp_path.glob(".unproven*"))
