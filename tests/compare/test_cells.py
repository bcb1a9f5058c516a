"""Cells: who owns one, and what initial weights are and hold. How they make a comparison: test_compare.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from plrc.compare.cells import fingerprint, kind
from plrc.errors import PlrcError
from plrc.files import claim


def test_a_cell_belongs_to_one_process_and_a_dead_one_gives_it_back(tmp_path: Path) -> None:
    with claim(tmp_path) as mine, claim(tmp_path) as theirs:
        assert (mine, theirs) == (True, False)
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        with claim(tmp_path) as mine:
            assert not mine
        other.kill()
    with claim(tmp_path) as mine:
        assert mine


def test_kinds_and_fingerprints_of_initial_weights(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, ours, {"format": "plrc"})
    safetensors.torch.save_file({"a": torch.zeros(1)}, theirs)
    (tmp_path / "plain.pt").write_bytes(b"anything")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    inits = ["random", "torchvision", str(ours), str(theirs), str(tmp_path / "plain.pt"), str(run)]
    assert [kind(init) for init in inits] == ["random", "torchvision", "plrc", "file", "file", "plrc"]
    with pytest.raises(PlrcError, match="neither a weights file nor a run folder with a checkpoint"):
        fingerprint(str(run))
    for step in ("step_00000010.pt", "step_00000020.pt"):
        (run / "checkpoints" / step).write_text(step)
    assert fingerprint(str(run)) == fingerprint(str(run / "checkpoints" / "step_00000020.pt"))
