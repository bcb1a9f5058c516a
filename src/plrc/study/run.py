"""Executes the runs of a study: each is pre-trained, measured, and appended to OUT/lines.jsonl as one line.

A run is finished if it has a line; you may delete OUT/runs. A study can be stopped at any point and resumed, and any
number of processes may work on the same folder.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from plrc.compare.grid import PROGRESS_SECONDS, log_start, log_stopped, run_grid
from plrc.engine.checkpoint import checkpoints
from plrc.engine.pretrain import pretrain
from plrc.errors import RunError
from plrc.files import claim, parse_json, without_nan, write_json
from plrc.machine import commit, versions
from plrc.progress import OnProgress
from plrc.runtime import StopRequest
from plrc.scenes import write_scenes
from plrc.study.plan import RANDOM, SCENE_SETTINGS, START, Study, StudyRun, digest
from plrc.transfer.dense import LEVELS, dense_probe, grouping_curve
from plrc.transfer.finetune import transfer

LINES = "lines.jsonl"
SCENES = "scenes"

Line = dict[str, Any]
"""A line of lines.jsonl: cell (name of the run), axes, scores, curve, steps, seconds, versions."""


def run_study(study: Study, out: Path) -> list[Line] | None:
    """Execute the runs of a study that have no line yet.

    Args:
        study: The study.
        out: Its folder.

    Returns:
        The lines of all runs, or None if the process was asked to stop; repeat the call to continue.

    Raises:
        PlrcError: The folder contains scenes with other settings, or a run cannot be executed.
    """
    out.mkdir(parents=True, exist_ok=True)
    stop = StopRequest()
    try:
        _render_scenes(study, out)
        grid = _StudyGrid(study, out)
        start = log_start(grid, log_pattern=f"{out / 'runs'}/*/pretrain/log.txt")
        if not run_grid(grid, start, stop, PROGRESS_SECONDS):
            log_stopped(grid)
            return None
    finally:
        stop.restore()
    return list(read_lines(study, out).values())


def read_lines(study: Study, out: Path) -> dict[str, Line]:
    """Return name of a run -> its line, for the finished runs of a study, in the order of the study.

    Several studies may share a folder. A run with the same name has the same results, so the line of another study is
    used too; its axes are replaced by those of this study.

    Args:
        study: The study.
        out: Its folder.
    """
    path = out / LINES
    if not path.exists():
        return {}
    stored = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = _parse_line(text)
        if line is not None:
            stored[line["cell"]] = line
    lines = {}
    for run in study.runs:
        if run.name in stored:
            lines[run.name] = stored[run.name] | {"axes": run.axes}
    return lines


def _parse_line(text: str) -> Line | None:
    """Return a line, or None if a power failure cut it short; that run is repeated."""
    try:
        line = parse_json(text)
    except ValueError:
        return None
    if isinstance(line, dict) and {"cell", "axes", "scores"} <= line.keys():
        return line
    return None


def append_line(path: Path, line: Line) -> None:
    """Append a line to a file that several processes write.

    If the last line was cut short and has no newline, the newline is written first.

    Args:
        path: The file.
        line: The line; NaN becomes null.
    """
    text = json.dumps(without_nan(line), allow_nan=False)
    with FileLock(path.with_suffix(".lock"), fallback_to_soft=False), open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))  # to read the last byte
        if size > 0 and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class _StudyGrid:
    """The runs of a study as a grid."""

    def __init__(self, study: Study, out: Path) -> None:
        self.study = study
        self.out = out

    @property
    def num_runs(self) -> int:
        return len(self.study.runs)

    @property
    def num_done(self) -> int:
        return len(read_lines(self.study, self.out))

    def pending_runs(self) -> list[StudyRun]:
        lines = read_lines(self.study, self.out)
        return [run for run in self.study.runs if run.name not in lines]

    def folder(self, run: StudyRun) -> Path:
        return self.out / "runs" / run.weights

    def is_finished(self, run: StudyRun) -> bool:
        return run.name in read_lines(self.study, self.out)

    def execute(self, run: StudyRun, on_progress: OnProgress) -> str | None:
        line = _pretrain_and_measure(self.study, run, self.out, on_progress)
        if line is None:
            return None
        append_line(self.out / LINES, line)
        # The newest checkpoint is enough once the run is finished.
        for old in checkpoints(Path(self.study.pretrain_config(run, self.out).run.out))[:-1]:
            old.unlink()
        return "  ".join(f"{name} {value:.3f}" for name, value in line["scores"].items() if value is not None)


def _render_scenes(study: Study, out: Path) -> None:
    """Render the scenes of a study once. If OUT/scenes exists, it is complete; OUT/scenes.json has its settings."""
    splits = {key: num_images for key, num_images in study.scenes.items() if key not in SCENE_SETTINGS}
    if not splits:
        return
    with claim(out) as has_lock:
        if (out / SCENES).exists():
            if parse_json((out / "scenes.json").read_text(encoding="utf-8")) != study.scenes:
                raise RunError(f"{out} contains scenes with other settings; name another --out")
            return
        if not has_lock:
            raise RunError(f"another process renders the scenes of {out}; repeat the command when it is finished")
        write_json(out / "scenes.json", study.scenes)
        write_scenes(out / SCENES, splits, seed=study.scenes.get("seed", 0), size=study.scenes.get("size", 96))


def _pretrain_and_measure(study: Study, run: StudyRun, out: Path, on_progress: OnProgress) -> Line | None:
    """Return the line of a run, or None if it was asked to stop."""
    started = time.perf_counter()
    config = study.pretrain_config(run, out)
    init = RANDOM
    steps = 0
    if run.method == START:
        init = config.model.init
    elif run.method != RANDOM:
        trained = pretrain(config, on_progress=on_progress)
        if not trained.finished:
            return None
        init = config.run.out
        steps = trained.step
    scores: dict[str, float] = {}
    curve: list[dict[str, float]] = []
    if study.probe:
        probed = _probe_once(study, run, out, init, with_curve=bool(steps and study.probe.get("curve")))
        scores = probed["scores"]
        curve = probed["curve"]
    for ending, transfer_config in study.transfer_configs(run, init, out).items():
        result = transfer(transfer_config, on_progress)
        if result is None:
            return None
        for metric, value in result.metrics.items():
            scores[f"{metric.lower()}{ending}" if ending else metric] = value
    return {
        "cell": run.name,
        "axes": run.axes,
        "scores": scores,
        "curve": curve,
        "steps": steps,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions() | {"commit": commit()},
    }


def _probe_once(study: Study, run: StudyRun, out: Path, init: str, with_curve: bool) -> dict[str, Any]:
    """Return the scores of the linear probe and the curve while training.

    They are kept in the run's folder, so that a run that is stopped later does not probe again.
    """
    path = out / "runs" / run.weights / f"probe-{digest(study.probe)}.json"
    if path.exists():
        kept: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        return kept
    config = study.pretrain_config(run, out)
    labelled = study.labelled_config(out)
    seed = config.seed
    size = study.probe.get("size", 128)
    images = study.probe.get("images", 100)
    levels = tuple(study.probe.get("levels", LEVELS))
    probe = dense_probe(labelled, [init], config.model.backbone, size, images, seed, levels)[0]
    scores = {}
    by_metric = {"miou": probe.miou, "accuracy": probe.accuracy, "auc": probe.grouping}
    for metric, by_level in by_metric.items():
        for level, value in by_level.items():
            scores[f"{metric}_{level}"] = value
    curve = []
    if with_curve:
        curve = grouping_curve(labelled, config, size, images, seed)
    probed = {"scores": scores, "curve": curve}
    write_json(path, probed)
    return probed
