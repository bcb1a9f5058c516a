"""Grids in several processes: the same results, and log records, errors and requests to stop that get through."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.compare.simulation import OWN_LINE, compared, ran
from tests.compare.toy_grid import ToyGrid

from plrc.compare.grid import log_start
from plrc.compare.plan import ComparisonPlan
from plrc.compare.workers import run_grid_in_processes
from plrc.errors import RunError
from plrc.runtime import StopRequest

MAIN = """
import logging, pickle, sys
from pathlib import Path
from plrc.compare.run import run_comparison
from tests.compare.simulation import until_stopped
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sys.exit(run_comparison(pickle.loads(Path(sys.argv[1]).read_bytes()), until_stopped).finished)
"""


@pytest.mark.slow
def test_several_processes_find_what_one_finds(
    build: Callable[..., ComparisonPlan], tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    alone, shared = build(), build(out=tmp_path / "shared", processes=2)
    by_one = compared(alone)
    log.clear()
    by_two = compared(shared)
    del by_one["provenance"], by_two["provenance"]
    assert by_two == by_one
    assert sorted(ran(shared.out)) == sorted(ran(alone.out))
    lines = [line for line in log.messages if line.startswith("[")]
    assert len(lines) == 24 and lines[-1].startswith("[24/24] ")  # logged by the workers, handled here
    assert OWN_LINE not in log.messages


@pytest.mark.slow
def test_the_error_of_a_worker_is_raised(tmp_path: Path) -> None:
    toy, stop = ToyGrid(tmp_path, failing=1), StopRequest()
    try:
        with pytest.raises(RunError, match="run 1 cannot be executed"):
            run_grid_in_processes(toy, log_start(toy, log_pattern=""), stop, processes=2)
    finally:
        stop.restore()


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_each_saves(build: Callable[..., ComparisonPlan], tmp_path: Path) -> None:
    (tmp_path / "comparison.pickle").write_bytes(pickle.dumps(build(processes=2)))
    (tmp_path / "main.py").write_text(MAIN)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "comparison.pickle")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        cells = tmp_path / "out" / "cells"
        while len(list(cells.glob("*/begun"))) < 2:
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert output.splitlines()[-1] == "stopped: 0 of 24 runs are done; repeat the command to continue"
    assert len(list(cells.glob("*/saved"))) == 2
