"""Runs of a study: pre-train, measure, append one line. Stopped at any point, it goes on; no run is done twice.

Layer 6: imports transfer, engine and below. Writes OUT/lines.jsonl, which alone says what is done, and below OUT/runs,
which may be deleted. Any number of processes may work on the same folder, each on runs of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from plrc.engine.checkpoint import checkpoints
from plrc.engine.pretrain import pretrain
from plrc.errors import PlrcError
from plrc.files import claim, parse_json, without_nan, write_json
from plrc.machine import commit, versions
from plrc.runtime import StopRequest
from plrc.scenes import write_scenes
from plrc.study.plan import RANDOM, SCENES, Cell, Study
from plrc.transfer.dense import LEVELS, dense_probe, grouping_curve
from plrc.transfer.finetune import transfer

LINES = "lines.jsonl"


def run_study(study: Study, out: Path, say: Callable[[str], object] = print) -> list[dict[str, Any]] | None:
    """Run what has no line yet and return all lines of the study. None: asked to stop; repeat the call to go on."""
    out.mkdir(parents=True, exist_ok=True)
    cells, started, fresh = study.cells(), time.monotonic(), 0
    stop = StopRequest()
    try:
        _scenes(study, out)
        say(f"{len(cells)} runs, {len(done(study, out))} of them done")
        for cell in cells:
            with claim(out / "runs" / cell.name) as mine:
                if stop.asked:
                    say(_stopped(study, out))
                    return None
                if not mine or cell.name in done(study, out):
                    continue
                line = _run(study, cell, out)
                if line is None:
                    say(_stopped(study, out))
                    return None
                append(out / LINES, line)
                for old in checkpoints(Path(study.config(cell, out).run.out))[:-1]:
                    old.unlink()
            fresh += 1
            left = len(cells) - len(found := done(study, out))
            pace = timedelta(seconds=round((time.monotonic() - started) / fresh * left))
            scores = "  ".join(f"{name} {value:.3f}" for name, value in line["scores"].items() if value is not None)
            say(f"[{len(found)}/{len(cells)}] {cell}: {scores}; left {pace}")
    finally:
        stop.restore()
    return list(done(study, out).values())


def _stopped(study: Study, out: Path) -> str:
    return f"stopped: {len(done(study, out))} of {len(study.cells())} runs are done; repeat the command to go on"


def done(study: Study, out: Path) -> dict[str, dict[str, Any]]:
    """Name of a cell -> its line, of those cells of the study that have one, in the order of the study.

    A line of another study that computed the same is taken too, on the axes of this one.
    """
    path = out / LINES
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = {line["cell"]: line for line in map(_parsed, texts) if line is not None}
    return {cell.name: lines[cell.name] | {"axes": cell.axes} for cell in study.cells() if cell.name in lines}


def _parsed(text: str) -> dict[str, Any] | None:
    """A line; None for one that was cut short by a power failure: that run comes again."""
    with contextlib.suppress(ValueError):
        line = parse_json(text)
        return line if isinstance(line, dict) and {"cell", "axes", "scores"} <= line.keys() else None
    return None


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line as a whole, on a line of its own even where the last one was cut short."""
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = size > 0 and file.read(1) != b"\n"
        text = json.dumps(without_nan(line), allow_nan=False)
        file.write(b"\n" * torn + text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _scenes(study: Study, out: Path) -> None:
    """Render the study's scenes once; what stands at OUT/scenes is whole, and of the settings in OUT/scenes.json."""
    splits = {name: number for name, number in study.scenes.items() if name not in SCENES}
    if not splits:
        return
    with claim(out) as mine:
        if (out / "scenes").exists():
            if parse_json((out / "scenes.json").read_text(encoding="utf-8")) != study.scenes:
                raise PlrcError(f"{out} holds scenes of other settings; name another --out")
            return
        if not mine:
            raise PlrcError(f"another process renders the scenes of {out}; repeat the command when it is done")
        write_json(out / "scenes.json", study.scenes)
        write_scenes(out / "scenes", splits, seed=study.scenes.get("seed", 0), size=study.scenes.get("size", 96))


def _run(study: Study, cell: Cell, out: Path) -> dict[str, Any] | None:
    """The line of a cell; None if it was asked to stop."""
    config, began = study.config(cell, out), time.perf_counter()
    init, seed = RANDOM, cell.axes["seed"]
    steps = 0
    if cell.axes["method"] != RANDOM:
        run = pretrain(config)
        if not run.finished:
            return None
        init, steps = config.run.out, run.step
    scores: dict[str, float] = {}
    curve: list[dict[str, float]] = []
    if study.probe:
        labelled, size, images = study.labelled(out), study.probe.get("size", 128), study.probe.get("images", 100)
        levels = tuple(study.probe.get("levels", LEVELS))
        (found,) = dense_probe(labelled, [init], config.model.backbone, size, images, seed, levels)
        for name, by in (("miou", found.miou), ("accuracy", found.accuracy), ("auc", found.grouping)):
            scores |= {f"{name}_{level}": value for level, value in by.items()}
        if study.probe.get("curve") and steps:
            curve = grouping_curve(labelled, config, size, images, seed)
    if study.transfer:
        result = transfer(study.detector(cell, init, out))
        if result is None:
            return None
        scores |= result.metrics
    return {
        "cell": cell.name, "axes": cell.axes, "scores": scores, "curve": curve, "steps": steps,
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions() | {"commit": commit()},
    }  # fmt: skip
