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
import safetensors.torch
import torch
from tests.engine.runs import after_steps
from tests.without_locks import needs_filter

from plrc.cli import main
from plrc.config import Config
from plrc.errors import ConfigError, RunError
from plrc.files import read_json_lines
from plrc.model.backbone import build_backbone
from plrc.progress import OnProgress
from plrc.study import Study, curves, read_lines, run_study, slopes, summary, table
from plrc.study import run as study_run
from plrc.study.run import LINES, append_line
from plrc.transfer.dense import dense_probe
from plrc.transfer.finetune import Result, transfer
from plrc.transfer.protocols import TransferConfig

ARMS = """
[[grid]]
name = "as it is"
method = "plrc"
seed = [0, 1]

[[grid]]
name = "coarse regions"
preset = "small_r18"
method = "points"
seed = [0, 1]
"regions.grid" = 2
"optim.lr" = [1e-3, 2e-3]
"""
TRANSFER = """
[transfer]
preset = "small_detection"
fractions = [0.5, 1.0]
evaluations = 0
data = { source = "{out}/scenes", train = "labelled", val = "none", test = "test" }
input = { train_size = [64, 64], test_size = 64, max_size = 64 }
model = { width = 8, hidden = 16, rois_per_image = 8 }
optim = { steps = 2, batch_size = 2 }
run = { threads = 1 }
"""
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
model = { strides = [8], bn_groups = 1, contrast_hidden = 8, distill_hidden = 8 }
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
    monkeypatch.setenv("PLRC_TILES", "tiles")
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
        ('metric = "miou_8"', 'baseline = "regoin"', "no method 'regoin' in the grids; .* one of random, region, plrc"),
        ('"random", ', '"start", ', "method start scores the weights of model.init; set model.init"),
        ('method = "plrc"', 'method = "plrc"\nname = 3', "the name of a grid must be a string, got 3"),
        ("[[grid]]", '[[grid]]\nname = "many"', "the grid 'many' has several methods; write a grid for each"),
        ("[2, 8]", '4\nname = "again"', "method plrc, seed 0 and method again, seed 0 are the same run"),
        ("[2, 8]", '2\nname = "plrc"', 'two different runs are called "method plrc, seed 0"; give each grid a name'),
        ("[2, 8]", '2\npreset = "small"', "there is no preset 'small'"),
        ("[probe]", "[transfer]\nfractions = 0.1\n[probe]", "fractions must be a list such as .0.1, 0.5., got 0.1"),
        ("[probe]", "[transfer]\nfractions = [10]\n[probe]", "data.fraction must be > 0 and <= 1, got 10"),
        (
            "[probe]",
            '[transfer]\nfractions = [0.1]\n"data.fraction" = 0.5\n[probe]',
            "fractions and transfer.data.fraction are both set",
        ),
        ("[2, 8]", '4\n"transfer.optim.step" = 2', "no setting transfer.optim.step to vary; .* transfer.optim.steps"),
        ("[2, 8]", '4\n"transfer.data.train" = "test"', "there is no setting transfer.data.train to vary"),
        ("[2, 8]", '4\n"transfer.optim.steps" = 2', "a grid sets fine-tuning; write a table .transfer."),
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


def test_changed_labels_are_not_silently_reused(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "plrc.study")
    file.write_text(FILE[: FILE.index("[[grid]]")] + '[[grid]]\nmethod = ["random", "plrc"]\n')
    study, out = Study.load(file), tmp_path / "out"
    first = run_study(study, out)
    assert first is not None and first[0]["labels"] == first[1]["labels"] != ""

    annotations = out / "scenes" / "test" / "annotations.json"
    original = annotations.read_text(encoding="utf-8")
    table = json.loads(original)
    table["annotations"] = table["annotations"][::2]
    annotations.write_text(json.dumps(table), encoding="utf-8")
    second = run_study(study, out)
    assert second is not None and "the labelled data has changed; 2 runs are measured again" in caplog.messages
    assert second[0]["labels"] == second[1]["labels"] != first[0]["labels"]
    assert [line["scores"] for line in second] != [line["scores"] for line in first]
    assert [point["step"] for point in second[1]["curve"]] == [2, 4]
    assert list(read_lines(study, out).values()) == second  # what the table shows
    assert not list(read_lines(study, out, labels="others").values())

    annotations.write_text(original, encoding="utf-8")
    caplog.clear()
    assert run_study(study, out) == first
    assert len((out / LINES).read_text().splitlines()) == 4 and not caplog.messages  # nothing was repeated

    lines = [json.loads(text) for text in (out / LINES).read_text().splitlines()]
    without = [{key: value for key, value in line.items() if key != "labels"} for line in lines[:2]]
    (out / LINES).write_text("".join(json.dumps(line) + "\n" for line in without))  # as earlier versions wrote them
    assert run_study(study, out) == without


def stop() -> None:
    """Ask this process to stop, as a batch system does."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_is_measured_again_is_resumed_after_a_stop(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped while it trains, and while its detector is fine-tuned; the time of all starts is counted."""
    pytest.importorskip("faster_coco_eval", reason="detection needs faster-coco-eval")
    head = FILE[: FILE.index("[[grid]]")] + TRANSFER.replace("run = {", "run = { log_every_steps = 1,")
    file.write_text(head.replace("[0.5, 1.0]", "[1.0]") + '[[grid]]\nmethod = "plrc"\n')
    study, out = Study.load(file), tmp_path / "out"
    (run,) = study.runs
    assert run_study(study, out)
    annotations = out / "scenes" / "test" / "annotations.json"
    content = json.loads(annotations.read_text(encoding="utf-8"))
    annotations.write_text(json.dumps(content | {"annotations": content["annotations"][::2]}), encoding="utf-8")

    with after_steps(3, stop):
        assert run_study(study, out) is None
    stored_seconds = out / "runs" / run.weights / f"seconds-{run.name}.txt"
    assert float(stored_seconds.read_text()) > 0
    stored_seconds.write_text("1000.0")

    def stopped_transfer(config: TransferConfig, on_progress: OnProgress) -> Result | None:
        return transfer(config, lambda *progress: stop())

    monkeypatch.setattr(study_run, "transfer", stopped_transfer)
    assert run_study(study, out) is None
    monkeypatch.undo()
    log = (out / "runs" / run.weights / "pretrain" / "log.txt").read_text()
    assert "resuming at step 3 of 4" in log
    checkpoints = sorted(out.glob("runs/*/pretrain/checkpoints/step_*.pt"))
    assert [path.stem for path in checkpoints] == ["step_00000002", "step_00000003", "step_00000004"]
    written = checkpoints[-1].stat().st_mtime_ns

    lines = run_study(study, out)
    assert lines is not None and [point["step"] for point in lines[0]["curve"]] == [2, 3, 4]
    assert lines[0]["seconds"] > 1000 and not stored_seconds.exists()
    assert [path.stem for path in out.glob("runs/*/pretrain/checkpoints/step_*.pt")] == ["step_00000004"]
    assert checkpoints[-1].stat().st_mtime_ns == written  # the training was not repeated


@needs_filter
def test_a_study_on_a_file_system_without_locks(file: Path, tmp_path: Path) -> None:
    file.write_text(FILE[: FILE.index("[[grid]]")] + '[[grid]]\nmethod = "random"\nseed = [0, 1]\n')
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.without_locks", "plrc", "study", str(file), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    warning = f"warning: the file system of {out} has no locks: do not start a second process in this folder\n"
    assert done.stdout.count("has no locks") == 1 and warning in done.stdout
    assert len(read_json_lines(out / LINES)) == 2


def test_what_a_study_sets_is_not_adapted(file: Path, tmp_path: Path) -> None:
    head = FILE[: FILE.index("[[grid]]")].replace('preset = "debug_cpu"', 'preset = "debug_cpu"\nadapt = true')
    file.write_text(head + '[[grid]]\nmethod = "plrc"\n[[grid]]\n"optim.teacher_momentum" = 0.99\n')
    study, out = Study.load(file), tmp_path / "out"
    assert run_study(study, out)
    adapted, own = (Config.load(out / "runs" / run.weights / "pretrain" / "config.toml").optim for run in study.runs)
    assert own.teacher_momentum == 0.99 != adapted.teacher_momentum < 0.99
    assert own.steps == adapted.steps == 4


def test_a_seed_is_finished_before_the_next(file: Path, tmp_path: Path) -> None:
    """The order of the lines is that of the work; the order of the table is that of the file."""
    head = FILE[: FILE.index("[[grid]]")].replace("curve = true", "")
    file.write_text(head + '[[grid]]\nmethod = ["random", "start"]\nseed = [0, 1]\n"model.init" = "WEIGHTS"\n')
    file.write_text(file.read_text().replace("WEIGHTS", str(tmp_path / "start.safetensors")))
    torch.manual_seed(5)
    safetensors.torch.save_file(build_backbone("resnet18").net.state_dict(), tmp_path / "start.safetensors")
    lines = run_study(Study.load(file), tmp_path / "out")
    assert lines is not None and [line["axes"]["seed"] for line in lines] == [0, 1, 0, 1]
    written = read_json_lines(tmp_path / "out" / LINES)
    assert [(line["axes"]["seed"], line["axes"]["method"]) for line in written] == [
        (0, "random"),
        (0, "start"),
        (1, "random"),
        (1, "start"),
    ]


def test_a_grid_has_a_name_and_a_preset(file: Path, tmp_path: Path) -> None:
    head = FILE[: FILE.index("[[grid]]")].replace("title =", 'baseline = "as it is"\ntitle =')
    file.write_text(head + ARMS)
    study = Study.load(file)
    axes = [run.axes for run in study.runs]
    assert axes[:2] == [{"method": "as it is", "seed": 0}, {"method": "as it is", "seed": 1}]
    assert axes[2:4] == [{"method": "coarse regions", "seed": 0, "optim.lr": lr} for lr in (1e-3, 2e-3)]
    config = study.pretrain_config(study.runs[3], tmp_path)
    assert (config.preset, config.method, config.regions.grid, config.optim.lr) == ("small_r18", "points", 2, 2e-3)
    assert (config.optim.base_batch_size, config.optim.steps) == (64, 4)  # of the preset, and of the file
    lines = [
        {"axes": run.axes, "scores": {"miou_8": 40.0 + 10 * (i > 1) + run.axes["seed"]}}
        for i, run in enumerate(study.runs)
    ]
    versus = [row["versus"] and row["versus"]["mean"] for row in summary(lines, "miou_8", study.baseline)]
    assert versus == [None, 10.0, 10.0]  # paired by seed with the arm of this name
    file.write_text(head + ARMS.replace("as it is", "usual").replace("2e-3", "3e-3").replace("coarse", "large"))
    with pytest.raises(ConfigError, match="no method 'as it is' in the grids; write baseline = one of usual, large"):
        Study.load(file)
    file.write_text(head.replace("as it is", "usual") + ARMS.replace("as it is", "usual"))
    assert [run.name for run in Study.load(file).runs] == [run.name for run in study.runs]  # a new name is no new run


def test_a_grid_varies_the_detector(file: Path, tmp_path: Path) -> None:
    head = FILE[: FILE.index("[[grid]]")] + TRANSFER
    file.write_text(head + '[[grid]]\nmethod = ["random", "plrc"]\nseed = [0, 1]\n')
    plain = Study.load(file).runs
    axis = '"transfer.preset" = ["small_detection", "small_rt_detr_v2"]\n"transfer.optim.steps" = [2, 3]\n'
    file.write_text(head + '[[grid]]\nmethod = ["random", "plrc"]\nseed = [0, 1]\n' + axis)
    study = Study.load(file)
    assert len({run.name for run in study.runs}) == 4 * len(plain)
    assert {run.weights for run in study.runs} == {run.weights for run in plain}  # no pre-training is repeated
    assert {run.name for run in plain} < {run.name for run in study.runs}
    last = study.runs[-1]
    assert last.axes == {
        "method": "plrc",
        "seed": 1,
        "transfer.preset": "small_rt_detr_v2",
        "transfer.optim.steps": 3,
    }
    tuned = study.transfer_configs(last, "", tmp_path)["_50"]
    assert (tuned.model.detector, tuned.optim.steps, tuned.optim.batch_size) == ("rt_detr_v2", 3, 2)


def test_a_list_is_one_value_where_the_setting_is_a_list(file: Path) -> None:
    head = FILE[: FILE.index("[[grid]]")]
    for scales, number_of_runs in (("[0.2, 0.9]", 1), ("[[0.2, 0.9], [0.3, 1.0]]", 2)):
        file.write_text(head + f'[[grid]]\n"views.scale" = {scales}\n')
        assert len(Study.load(file).runs) == number_of_runs


def test_start_weights_are_scored_as_they_are(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    torch.manual_seed(5)
    network = build_backbone("timm:tf_efficientnet_lite0").net
    safetensors.torch.save_file(network.state_dict(), tmp_path / "start.safetensors")
    head = FILE[: FILE.index("[[grid]]")].replace("levels = [8]\ncurve = true", "levels = [8, 16, 32]")
    arm = f'name = "given"\n"model.init" = "{tmp_path}/start.safetensors"'
    backbone = '"model.backbone" = "timm:tf_efficientnet_lite0"\n"model.layer4_stride" = 2'
    file.write_text(
        head + f'[[grid]]\nmethod = "random"\n{backbone}\n[[grid]]\nmethod = "start"\nseed = [0, 1]\n{arm}\n{backbone}'
    )
    study = Study.load(file)
    first = study.runs[1]
    assert first.axes == {"method": "given", "seed": 0}
    lines = run_study(study, tmp_path / "out")
    assert lines is not None and [line["steps"] for line in lines] == [0, 0, 0]
    scores = [line["scores"] for line in lines]
    assert {"miou_8", "miou_16", "miou_32"} < scores[0].keys() == scores[1].keys()
    assert scores[0] != scores[1] != scores[2]  # the seed chooses the pixels that the probe is fitted on
    assert not (tmp_path / "out" / "runs" / first.weights / "pretrain").exists()
    direct = dense_probe(
        study.labelled_config(tmp_path / "out"),
        [str(tmp_path / "start.safetensors")],
        "timm:tf_efficientnet_lite0",
        size=64,
        images=4,
        seed=0,
    )[0]
    assert [direct.miou[level] for level in (8, 16, 32)] == [scores[1][f"miou_{level}"] for level in (8, 16, 32)]


def test_what_a_run_has_measured_is_not_repeated(file: Path, tmp_path: Path) -> None:
    """A run without its line is what a kill leaves; each measurement is kept on its own."""
    pytest.importorskip("faster_coco_eval", reason="detection needs faster-coco-eval")
    text = FILE[: FILE.index("[[grid]]")] + TRANSFER + '[[grid]]\nmethod = "plrc"\n'
    file.write_text(text)
    study, out = Study.load(file), tmp_path / "out"
    first = run_study(study, out)
    assert first is not None
    assert {"ap_50", "ap_100", "ap50_50", "miou_8"} < first[0]["scores"].keys()
    folder = out / "runs" / study.runs[0].weights
    files = [
        *folder.glob("pretrain/checkpoints/*.pt"),
        *folder.glob("probe-*.json"),
        *folder.glob("transfer*/result.json"),
    ]
    kept = {path: path.stat().st_mtime_ns for path in files}
    assert len(kept) == 4  # the newest checkpoint, the probe, and two detectors
    (out / LINES).unlink()
    again = run_study(study, out)
    assert again is not None
    assert (again[0]["scores"], again[0]["curve"]) == (first[0]["scores"], first[0]["curve"])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    file.write_text(text.replace("[0.5, 1.0]", "[0.25, 0.5, 1.0]"))
    more = run_study(Study.load(file), out)
    assert more is not None and more[0]["scores"].items() > first[0]["scores"].items()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert more[0]["scores"]["ap_25"] is not None


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
