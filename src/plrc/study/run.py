"""Executes the runs of a study: each is pre-trained, measured, and appended to OUT/lines.jsonl as one line.

A run is finished if it has a line that was measured on the present labels; it is not repeated if OUT/runs is deleted. A
study can be stopped at any point and resumed, and any number of processes may work on the same folder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from plrc.compare.grid import PROGRESS_SECONDS, log_start, log_stopped, run_grid
from plrc.engine.checkpoint import delete_old_checkpoints
from plrc.engine.pretrain import pretrain
from plrc.errors import RunError
from plrc.files import claim, hold_lock, parse_json, read_json_lines, without_nan, write_json, write_text
from plrc.machine import commit, versions
from plrc.progress import OnProgress
from plrc.runtime import StopRequest
from plrc.scenes import write_scenes
from plrc.study.plan import RANDOM, SCENE_SETTINGS, START, Study, StudyRun, digest, digest_with_labels
from plrc.transfer.dense import LEVELS, dense_probe, grouping_curve, read_most_detailed
from plrc.transfer.finetune import transfer
from plrc.transfer.labels.splits import read_labelled

logger = logging.getLogger(__name__)

LINES = "lines.jsonl"
SCENES = "scenes"

Line = dict[str, Any]
"""A line of lines.jsonl: "cell" (name of the run), "axes", "labels" (their digest), "scores", "curve", "steps",
"seconds" (of all starts of the run, without those that were killed or failed), "versions"."""


def run_study(study: Study, out: Path) -> list[Line] | None:
    """Execute the runs of a study that are not finished.

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
        grid = _StudyGrid(study, out, labels_digest(study, out))
        if grid.num_outdated:
            logger.info("the labelled data has changed; %d runs are measured again", grid.num_outdated)
        start = log_start(grid, log_pattern=f"{out / 'runs'}/*/pretrain/log.txt")
        if not run_grid(grid, start, stop, PROGRESS_SECONDS):
            log_stopped(grid)
            return None
    finally:
        stop.restore()
    return list(read_lines(study, out, grid.labels).values())


def labels_digest(study: Study, out: Path) -> str:
    """Return a hash of the labelled data that the runs of a study are measured on.

    Args:
        study: The study.
        out: Its folder.

    Raises:
        DataError: The labels cannot be used.
    """
    labels: dict[str, str] = {}
    if study.probe:
        labels["probe"] = read_most_detailed(study.labelled_config(out))[0].digest()
    if study.transfer:
        configs = study.transfer_configs(study.runs[0], "", out)
        first = next(iter(configs.values()))  # the others differ only in the share of the labels
        labels["transfer"] = read_labelled(first.data, first.task).digest()
    return digest(labels)


def read_lines(study: Study, out: Path, labels: str = "") -> dict[str, Line]:
    """Return the lines of the finished runs by the name of the run, in the order of the study.

    Several studies may share a folder. A run with the same name has the same results, so the line of another study is
    used too; its axes are replaced by those of this study. Lines that were measured on other labels are left out.

    Args:
        study: The study.
        out: Its folder.
        labels: Digest of the labels. Empty: that of the newest line. Lines of versions that did not record it are used
            in any case.
    """
    names = {run.name for run in study.runs}
    stored = [line for line in _stored_lines(out) if line["cell"] in names]
    if not labels:
        recorded = [line["labels"] for line in stored if "labels" in line]
        labels = recorded[-1] if recorded else ""
    usable = {line["cell"]: line for line in stored if line.get("labels", labels) == labels}
    lines = {}
    for run in study.runs:
        if run.name in usable:
            lines[run.name] = usable[run.name] | {"axes": run.axes}
    return lines


def _stored_lines(out: Path) -> list[Line]:
    """Return all complete lines of a folder. A line that a power failure cut short is ignored; its run is repeated."""
    lines = read_json_lines(out / LINES)
    return [line for line in lines if isinstance(line, dict) and {"cell", "axes", "scores"} <= line.keys()]


def append_line(path: Path, line: Line) -> None:
    """Append a line to a file that several processes write.

    If the last line was cut short and has no newline, the newline is written first.

    Args:
        path: The file.
        line: The line; NaN becomes null.
    """
    text = json.dumps(without_nan(line), allow_nan=False)
    with hold_lock(path.with_suffix(".lock")), open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))  # to read the last byte
        if size > 0 and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class _StudyGrid:
    """The runs of a study, for `run_grid`."""

    def __init__(self, study: Study, out: Path, labels: str) -> None:
        self.study = study
        self.out = out
        self.labels = labels

    @property
    def num_runs(self) -> int:
        return len(self.study.runs)

    @property
    def num_done(self) -> int:
        return len(self._lines())

    @property
    def num_outdated(self) -> int:
        """Number of runs that were measured on other labels, but not yet on these."""
        measured = {line["cell"] for line in _stored_lines(self.out)}
        return sum(run.name in measured for run in self.pending_runs())

    def pending_runs(self) -> list[StudyRun]:
        """Return the runs without a line: all of one seed before those of the next.

        So the lines of a study that is stopped early can be compared, paired by seed.
        """
        lines = self._lines()
        pending = [run for run in self.study.runs if run.name not in lines]
        return sorted(pending, key=lambda run: run.axes["seed"])

    def folder(self, run: StudyRun) -> Path:
        return self.out / "runs" / run.weights

    def is_finished(self, run: StudyRun) -> bool:
        return run.name in self._lines()

    def _lines(self) -> dict[str, Line]:
        return read_lines(self.study, self.out, self.labels)

    def execute(self, run: StudyRun, on_progress: OnProgress) -> str | None:
        pretrained = Path(self.study.pretrain_config(run, self.out).run.out)
        self._delete_if_outdated(run, pretrained)
        stored_seconds = self.folder(run) / f"seconds-{run.name}.txt"  # of the starts that were stopped
        seconds = 0.0
        if stored_seconds.exists():
            seconds = float(stored_seconds.read_text(encoding="utf-8"))
        started = time.perf_counter()
        line = _pretrain_and_measure(self.study, run, self.out, self.labels, on_progress)
        seconds += time.perf_counter() - started
        if line is None:
            write_text(stored_seconds, f"{seconds}")
            return None
        line["seconds"] = round(seconds, 1)
        append_line(self.out / LINES, line)
        stored_seconds.unlink(missing_ok=True)
        delete_old_checkpoints(pretrained, keep=1)
        return "  ".join(f"{name} {value:.3f}" for name, value in line["scores"].items() if value is not None)

    def _delete_if_outdated(self, run: StudyRun, pretrained: Path) -> None:
        """Delete the pre-training of a run whose curve is measured again, so that it is trained again.

        The curve needs all checkpoints, but a measured run has kept only the newest. A file in the run's folder holds
        the probe and labels for which this was done: a run that is stopped afterwards keeps its new checkpoints.
        """
        was_measured = any(line["cell"] == run.name for line in _stored_lines(self.out))
        if not was_measured or not self.study.probe.get("curve"):
            return
        trained_again = self.folder(run) / "trained-again.txt"
        probe = digest_with_labels(self.study.probe, self.labels)
        if trained_again.exists() and trained_again.read_text(encoding="utf-8") == probe:
            return
        shutil.rmtree(pretrained, ignore_errors=True)
        write_text(trained_again, probe)


def _render_scenes(study: Study, out: Path) -> None:
    """Render the scenes of a study into OUT/scenes, unless they exist; their settings are in OUT/scenes.json.

    An existing OUT/scenes is complete, because `write_scenes` creates the folder when everything is written.
    """
    splits = {key: num_images for key, num_images in study.scenes.items() if key not in SCENE_SETTINGS}
    if not splits:
        return
    with claim(out) as is_free:
        if (out / SCENES).exists():
            if parse_json((out / "scenes.json").read_text(encoding="utf-8")) != study.scenes:
                raise RunError(f"{out} contains scenes with other settings; name another --out")
            return
        if not is_free:
            raise RunError(f"another process renders the scenes of {out}; repeat the command when it is finished")
        write_json(out / "scenes.json", study.scenes)
        write_scenes(out / SCENES, splits, seed=study.scenes.get("seed", 0), size=study.scenes.get("size", 96))


def _pretrain_and_measure(study: Study, run: StudyRun, out: Path, labels: str, on_progress: OnProgress) -> Line | None:
    """Return the line of a run without its seconds, or None if it was asked to stop."""
    config = study.pretrain_config(run, out)
    steps = 0
    if run.method == RANDOM:
        init = RANDOM
    elif run.method == START:
        init = config.model.init
    else:
        trained = pretrain(config, on_progress=on_progress)
        if not trained.finished:
            return None
        init = config.run.out
        steps = trained.step
    scores: dict[str, float] = {}
    curve: list[dict[str, float]] = []
    if study.probe:
        with_curve = steps > 0 and bool(study.probe.get("curve"))
        probed = _probe_once(study, run, out, init, labels, with_curve)
        scores = probed["scores"]
        curve = probed["curve"]
    for ending, transfer_config in study.transfer_configs(run, init, out, labels).items():
        result = transfer(transfer_config, on_progress)
        if result is None:
            return None
        for metric, value in result.metrics.items():
            score = f"{metric.lower()}{ending}" if ending else metric  # AP; with `fractions` ap_10, ap_50, ...
            scores[score] = value
    return {
        "cell": run.name,
        "axes": run.axes,
        "labels": labels,
        "scores": scores,
        "curve": curve,
        "steps": steps,
        "versions": versions() | {"commit": commit()},
    }


def _probe_once(study: Study, run: StudyRun, out: Path, init: str, labels: str, with_curve: bool) -> dict[str, Any]:
    """Return the scores of the linear probe, and the curve of grouping during training, as JSON content.

    They are stored in the run's folder, so that a run that is stopped later does not probe again.
    """
    path = out / "runs" / run.weights / f"probe-{digest_with_labels(study.probe, labels)}.json"
    if path.exists():
        stored: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        return stored
    config = study.pretrain_config(run, out)
    labelled = study.labelled_config(out)
    seed = config.seed
    size = study.probe.get("size", 128)
    images = study.probe.get("images", 100)
    levels = tuple(study.probe.get("levels", LEVELS))
    result = dense_probe(labelled, [init], config.model.backbone, size, images, seed, levels)[0]
    scores = {}
    for metric, by_level in (("miou", result.miou), ("accuracy", result.accuracy), ("auc", result.grouping)):
        for level, value in by_level.items():
            scores[f"{metric}_{level}"] = value
    curve = []
    if with_curve:
        curve = grouping_curve(labelled, config, size, images, seed)
    probed = {"scores": scores, "curve": curve}
    write_json(path, probed)
    return probed
