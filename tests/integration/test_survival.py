"""Whole runs that survive: the short form of tests/soak/kill_resume.py, and two processes that go back together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.processes import HANGS, run_group

from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint

SOAK = Path(__file__).parents[1] / "soak"


@pytest.mark.slow
def test_a_run_that_is_killed_four_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    command = [sys.executable, str(SOAK / "kill_resume.py"), "--kills", "4", "--seed", "2", "--steps-a-kill", "10"]
    command += ["--out", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["kills"] == 4 and result["starts"] == 5 and sum(result["moments"].values()) == 4
    assert result["different"] == [] and result["left_over"] == []


@pytest.mark.slow
def test_processes_go_back_together(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Gradients that are not finite in one of two processes; both skip the steps, go back and finish."""
    settings = {"optim__name": "sgd", "optim__lr": 0.01, "optim__steps": 12, "model__bn_groups": 1}
    config = tiny(**settings, run__checkpoint_every_steps=3)
    config.save(tmp_path / "settings.toml")
    run_group(2, "tests.integration.diverging", str(tmp_path / "settings.toml"))
    log = (Path(config.run.out) / "log.txt").read_text()
    assert log.count("gradients were not finite: back to step_00000003.pt with 10%") == 1
    newest = newest_checkpoint(Path(config.run.out))
    assert newest is not None
    saved = load_checkpoint(newest)
    assert saved["step"] == 12 and saved["lr_factor"] == pytest.approx(0.1)
