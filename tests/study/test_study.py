"""Studies: what a file declares, real runs that survive a kill at any point, and tables that come from lines alone."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plrc.cli import main
from plrc.config import Config
from plrc.errors import ConfigError, RunError
from plrc.study import Study, curves, read_lines, run_study, slopes, summary, table
from plrc.study.run import append_line

STUDIES = Path(__file__).parents[2] / "studies"
FILE = """
title = "tiny"
metric = "miou_8"

[scenes]
train = 12
labelled = 4
test = 4
size = 64

[pretrain]
preset = "debug_cpu"
data = { source = "{out}/scenes/train/images", held_out = 2 }
views = { size = 32 }
model = { stride = 8, bn_groups = 1, contrast_hidden = 8, distill_hidden = 8 }
objectives = { points = 8, distill_points = 8, queue = 8, image_weight = 0.0 }
optim = { batch_size = 4, steps = 4 }
run = { workers = 0, checkpoint_every_steps = 2, keep_checkpoints = 0 }

[probe]
source = "{out}/scenes"
train = "labelled"
test = "test"
size = 64
images = 4
levels = [8]
curve = true

[[grid]]
method = ["random", "region", "plrc"]
seed = [0, 1]

[[grid]]
method = "plrc"
seed = [0, 1]
"regions.grid" = [2, 8]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_study_of_the_project_is_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLRC_DATA", "data")
    study = Study.load(path)
    assert len(study.runs) >= 10 and study.title


def test_runs_are_all_combinations_once(file: Path, tmp_path: Path) -> None:
    study = Study.load(file)
    runs = study.runs
    assert len(runs) == 3 * 2 + 2 * 2
    assert len({run.name for run in runs}) == len(runs)
    assert runs[0].axes == {"method": "random", "seed": 0}
    config = study.pretrain_config(runs[-1], tmp_path)
    assert (config.regions.grid, config.seed, config.method, config.objectives.image_weight) == (8, 1, "plrc", 0)
    region = study.pretrain_config(runs[2], tmp_path)
    assert (region.objectives.contrast, region.objectives.distill_weight) == ("region", 0)
    file.write_text(FILE.replace('grid" = [2, 8]', 'grid" = [2, 8, 3]'))
    assert {run.name for run in runs} < {run.name for run in Study.load(file).runs}  # what was done stays done
    file.write_text(FILE.replace("steps = 4", "steps = 5"))
    changed = {run.name for run in Study.load(file).runs}
    assert len(changed & {run.name for run in runs}) == 2  # random weights have no steps
    file.write_text(FILE.replace("workers = 0", "workers = 1"))
    assert {run.name for run in Study.load(file).runs} == {run.name for run in runs}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[grid]]", "[grids]", "unknown table grids"),
        ('"regions.grid"', '"regions.grit"', "no setting regions.grit to vary; did you mean regions.grid"),
        ('"plrc"]', '"plcr"]', "no method 'plcr'"),
        ('metric = "miou_8"', 'baseline = "regoin"', "no method 'regoin'"),
        ("[2, 8]", "[2, 0]", "regions.grid must be >= 1, got 0"),
        ("[2, 8]", "[]", "regions.grid has no values"),
        ("levels", "level", "no setting probe.level; did you mean probe.levels"),
        ('{out}/scenes"', '$PLRC_NOWHERE/scenes"', r"environment variable that is not set"),
        ("steps = 4", "step = 4", "unknown setting optim.step; did you mean optim.steps"),
    ],
)
def test_an_error_in_a_file_is_one_sentence(file: Path, old: str, new: str, message: str) -> None:
    text = FILE.replace("[[grid]]", "[grids]", 1).replace("[[grid]]", "[more]") if new == "[grids]" else FILE
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        Study.load(file)


def test_a_small_study_runs_and_refuses_other_scenes(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "plrc")
    few = FILE[: FILE.index("[[grid]]")] + '[[grid]]\nmethod = ["random", "plrc"]\n'
    few = few.replace(
        "[probe]", '[pretrain.regions]\nsource = "coco"\nmaps = "{out}/scenes/train/annotations.json"\n[probe]'
    )
    file.write_text(few)
    study, out = Study.load(file), tmp_path / "out"
    lines = run_study(study, out)
    assert lines is not None
    assert [line["axes"]["method"] for line in lines] == ["random", "plrc"]
    assert all(line["scores"]["miou_8"] > 0 for line in lines)
    assert [point["step"] for point in lines[1]["curve"]] == [2, 4]
    assert all(point["regions"] > 0.9 for point in lines[1]["curve"])  # these regions are the objects themselves
    assert len(list(out.glob("runs/*/pretrain/checkpoints/step_*.pt"))) == 1
    logs = f"each is logged in {out}/runs/*/pretrain/log.txt"
    assert caplog.messages[0] == f"2 runs, 0 of them done; {logs}"
    assert caplog.messages[-1].startswith("[2/2] method plrc, seed 0: miou_8 ")
    assert run_study(study, out) == lines
    assert caplog.messages[-1] == f"2 runs, 2 of them done; {logs}"
    file.write_text(few.replace("size = 64", "size = 72", 1))
    with pytest.raises(RunError, match="contains scenes with other settings"):
        run_study(Study.load(file), out)


def test_what_a_study_sets_is_not_adapted(file: Path, tmp_path: Path) -> None:
    head = FILE[: FILE.index("[[grid]]")].replace('preset = "debug_cpu"', 'preset = "debug_cpu"\nadapt = true')
    file.write_text(head + '[[grid]]\nmethod = "plrc"\n[[grid]]\n"optim.teacher_momentum" = 0.99\n')
    study, out = Study.load(file), tmp_path / "out"
    assert run_study(study, out)
    adapted, own = (Config.load(out / "runs" / run.name / "pretrain" / "config.toml").optim for run in study.runs)
    assert own.teacher_momentum == 0.99 != adapted.teacher_momentum < 0.99
    assert own.steps == adapted.steps == 4


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_with_the_same_table(file: Path, tmp_path: Path) -> None:
    file.write_text(FILE[: FILE.index("[[grid]]")] + '[[grid]]\nmethod = ["random", "plrc"]\nseed = [0, 1, 2]\n')
    study = Study.load(file)
    whole = run_study(study, tmp_path / "whole")
    assert whole is not None and len(whole) == 6
    out, kills = tmp_path / "killed", 0
    command = [sys.executable, "-m", "plrc", "study", str(file), "--out", str(out)]
    while len(read_lines(study, out)) < 6:
        before = len(read_lines(study, out))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 240
        while (
            process.poll() is None and len(read_lines(study, out)) < min(before + 2, 6) and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        time.sleep(0.3 * kills)  # another point of the run each time
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert kills < 10
        with open(out / "lines.jsonl", "a") as lines:
            lines.write('{"cell": "torn')
    assert kills >= 2
    lines = run_study(study, out)
    assert lines is not None
    assert table(lines, "miou_8", "random") == table(whole, "miou_8", "random")
    assert [line["scores"] for line in lines] == [line["scores"] for line in whole]
    assert [line["curve"] for line in lines] == [line["curve"] for line in whole]
    curve = next(line["curve"] for line in whole if line["axes"]["method"] == "plrc")
    assert [point["step"] for point in curve] == [2, 4]
    assert all(0 < point[name] < 1 for point in curve for name in ("student", "teacher", "regions"))


def line(method: str, seed: int, score: float | None, **axes: Any) -> dict[str, Any]:
    return {"cell": f"{method}{seed}{axes}", "axes": {"method": method, "seed": seed, **axes}, "scores": {"s": score}}


def test_rows_pair_runs_of_one_seed() -> None:
    lines = [line("random", s, 40.0 + s) for s in range(3)] + [line("plrc", s, 42.0 + 2 * s) for s in (2, 0, 1)]
    rows = {row["axes"]["method"]: row for row in summary(lines, "s", "random")}
    assert rows["random"]["versus"] is None
    assert rows["plrc"]["mean"] == pytest.approx(44)
    assert rows["plrc"]["versus"]["mean"] == pytest.approx(3)  # 2, 3, 4
    assert rows["plrc"]["versus"]["low"] == pytest.approx(3 - 4.303 / 3**0.5, abs=1e-3)
    assert "| plrc | 3 | 44.0" in table(lines, "s", "random")


def test_rows_pair_with_the_baseline_of_the_same_place() -> None:
    base = {"points": 50.0, "region": 49.0}
    combinations = itertools.product(base, (0, 1), (0.0, 0.5))
    lines = [line(m, seed, base[m] + seed - x, **{"regions.reassign": x}) for m, seed, x in combinations]
    rows = summary(lines, "s", "region")
    assert [row["versus"]["mean"] for row in rows if row["axes"]["method"] == "points"] == [1.0, 1.0]
    bare = [line("plrc", s, 60.0 + s) for s in (0, 1)] + [
        line("plrc", s, 58.0 + s, **{"optim.lr": 0.1}) for s in (0, 1)
    ]
    ablated = summary(bare, "s", "plrc")
    assert [row["versus"] and row["versus"]["mean"] for row in ablated] == [None, -2.0]
    assert len(summary([line("plrc", 0, 1.0, **{"views.scale": [0.2, 1.0]})], "s", "plrc")) == 1
    lines.append(line("points", 0, None))
    assert len(summary(lines, "s", "region")) == 4


def test_slopes_are_least_squares_in_each_seed() -> None:
    noise = {0.0: 0.1, 0.25: -0.2, 0.5: 0.1}
    lines = [line("points", s, 50 - 8 * x - s + noise[x], **{"regions.reassign": x}) for s in (0, 1) for x in noise]
    lines.append(line("points", 2, 3.0, **{"regions.reassign": 0.0}))  # one value has no slope
    slope = slopes(lines, "s", "regions.reassign")["points"]
    assert (slope.n, slope.mean) == (2, pytest.approx(-8))
    assert "slope of points along regions.reassign: -8.0 [-8.0, -8.0], 2 seeds" in table(lines, "s", "random")


def test_curves_are_means_over_seeds_at_each_step() -> None:
    lines = [line("plrc", s, 50.0) for s in (0, 1)] + [line("random", 0, 40.0)]
    for s in (0, 1):
        points = ((10, 0.5 + 0.1 * s), (20, 0.7 + 0.1 * s))
        lines[s]["curve"] = [{"step": float(n), "regions": 0.6, "student": auc, "teacher": None} for n, auc in points]
    (row,) = curves(lines)
    assert (row["axes"], row["network"], row["regions"]["mean"]) == ({"method": "plrc"}, "student", 0.6)
    assert [(step, one["mean"], one["n"]) for step, one in row["steps"].items()] == [(10, 0.55, 2), (20, 0.75, 2)]
    assert "| plrc | student | 0.550 [" in table(lines, "s", "random")


def test_a_torn_line_is_followed_by_a_whole_one(file: Path, tmp_path: Path) -> None:
    study, path = Study.load(file), tmp_path / "lines.jsonl"
    nan = {"s": float("nan")}
    first, second = ({"cell": run.name, "axes": run.axes, "scores": nan} for run in study.runs[:2])
    append_line(path, first)
    with open(path, "a") as lines:
        lines.write('{"cell": ')
    append_line(path, second)
    assert list(read_lines(study, tmp_path)) == [first["cell"], second["cell"]]
    assert all(json.loads(text)["scores"] == {"s": None} for text in path.read_text().splitlines() if "axes" in text)


def test_show_uses_the_lines_alone(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    for i, run in enumerate(Study.load(file).runs[:6]):
        measured = {"cell": run.name, "axes": run.axes, "scores": {"miou_8": 40.0 + i}}
        append_line(tmp_path / "out" / "lines.jsonl", measured)
    picture = tmp_path / "plot.svg"
    assert main(["study", str(file), "--out", str(tmp_path / "out"), "--show", "--plot", str(picture)]) == 0
    output = capsys.readouterr().out
    assert "tiny: 6 of 10 runs" in output
    assert "| random | 2 | 40.5" in output
    assert picture.read_text().startswith("<?xml")
    assert "study.html" in output and "40.5" in (tmp_path / "out" / "study.html").read_text(encoding="utf-8")
    assert main(["study", str(file), "--out", str(tmp_path / "out"), "--show", "--metric", "auc8"]) == 2
    assert "no run has a score auc8; write --metric with one of miou_8" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
