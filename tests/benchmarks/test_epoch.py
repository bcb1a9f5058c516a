"""The end-to-end benchmark runs the real loop, leaves out the first window, and gives the run's own figures."""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
from pathlib import Path

import pytest
from benchmarks import epoch

from plrc.config import Config
from plrc.errors import PlrcError

TINY = {"backbone": "resnet18", "size": 32, "batch": 2, "workers": 0, "device": "cpu"}


def test_figures_are_medians_of_the_windows_after_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = epoch.run(**TINY | {"workers": -1}, steps=2, repeats=2)
    assert [row["step"] for row in found.rows] == [4, 6]
    for name in ("data_wait_share", "images_per_second"):
        assert found.figures[name] == statistics.median(row[name] for row in found.rows)
        assert found.figures[name] > 0
    assert found.figures["data_wait_share"] < 1
    assert found.settings == TINY | {"steps": 2, "repeats": 2, "workers": 1}  # as many as the run took
    assert capsys.readouterr().out == ""  # standard output is for the table


def test_windows_are_read_from_the_metrics(tmp_path: Path) -> None:
    lines = [{"step": s, "kind": "train", "images_per_second": 10.0 * s, "data_wait_share": 0.1} for s in (1, 2, 3)]
    lines.insert(1, {"step": 1, "kind": "health", "feature_std": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = epoch.windows(Config().with_values({"run.out": str(tmp_path)}))
    assert [(row["step"], row["images_per_second"]) for row in rows] == [(2, 20.0), (3, 30.0)]


@pytest.mark.parametrize(("batch", "groups"), [(4, 1), (16, 2), (64, 8), (512, 8)])
def test_a_short_run_is_the_papers_recipe(tmp_path: Path, batch: int, groups: int) -> None:
    config = epoch.short_run(tmp_path, "resnet18", 64, batch, steps=3, repeats=4, workers=0, device="cpu")
    assert config.model.bn_groups == groups and config.optim.steps == 15
    assert {name for name, _, _ in config.differences(Config())} <= {
        "adapt", "data.source", "data.held_out", "views.size", "model.backbone", "model.bn_groups",
        "optim.batch_size", "optim.steps",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["batch", "steps", "repeats"])
def test_zero_sizes_are_refused(name: str) -> None:
    with pytest.raises(PlrcError, match=r"batch, steps and repeats must be >= 1, got .*0"):
        epoch.run(**TINY | {"steps": 1, "repeats": 1, name: 0})


def test_a_run_that_was_stopped_has_no_figures() -> None:
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # until the run's own handler is there
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(PlrcError, match="stopped before the last step"):
            epoch.run(**TINY, steps=100, repeats=1)
    finally:
        over.set()
        asking.join()
        signal.signal(signal.SIGTERM, before)
