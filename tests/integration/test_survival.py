"""The short form of tests/soak/kill_resume.py: one run, killed with -9 in its start, in saves, training, and after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "soak"


@pytest.mark.slow
def test_a_run_that_is_killed_four_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    command = [sys.executable, str(SOAK / "kill_resume.py"), "--kills", "4", "--seed", "2", "--out", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["kills"] == 4 and result["starts"] == 5 and sum(result["moments"].values()) == 4
    assert result["different"] == [] and result["left_over"] == []
