"""Several initial weights under one protocol, several numbers of labels, several seeds: which to use?

Layer 5: imports engine and below, and this folder. None is favoured: each init and number of labels gets its own
learning rate from the same grid, chosen on validation images at seed 0; scores are those of the test images.
"""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import combinations
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from plrc.compare.cells import NAMED, Cells, Comparison, kind
from plrc.compare.statistics import FEW_SEEDS, difference, interval, paired, recommendation, shown
from plrc.data.manifest import read_manifest
from plrc.errors import PlrcError
from plrc.files import claim, parse_json, write_json
from plrc.machine import cores, processor
from plrc.runtime import StopRequest
from plrc.transfer.finetune import transfer
from plrc.transfer.initial import initial_backbone
from plrc.transfer.labels.splits import LabelledSet, read_labelled
from plrc.transfer.protocols import TransferConfig

__all__ = ["Comparison", "comparison_of", "run_comparison", "table"]

Runner = Callable[[TransferConfig], object]
"""Runs a cell to its result.json. Returns None if it was asked to stop, and saved."""

COMPARISON, MANIFEST = "comparison.json", "manifest.json"
LOOK = 0.5  # seconds between two looks at what other processes do
TELL = 30.0  # seconds between two lines of progress of the runs under way


def comparison_of(
    base: TransferConfig,
    inits: Sequence[str],
    fractions: tuple[float, ...],
    shots: tuple[int, ...],
    seeds: int,
    lrs: tuple[float, ...],
    processes: int,
) -> Comparison:
    """From what the command line takes: inits as random, torchvision, RUN, FILE or NAME=RUN,RUN; OUT is base.run.out.

    Each file is loaded into the backbone once, so that a wrong one is refused now and not after hours; the labels are
    read once, for their digest. Raises PlrcError for whatever the user can mend.
    """
    base.check_named()
    named: dict[str, tuple[str, ...]] = {"random": ("random",)}
    for text in inits:
        name, equals, files = text.partition("=")
        if not equals or Path(text).exists():
            name, files = text if text in NAMED else Path(os.path.abspath(text)).name, text
        group = tuple(files.split(",")) if name and equals and not Path(files).exists() else (files,)
        if not name or "" in group:
            raise PlrcError(f"--init {text} names no weights; write random, torchvision, RUN, FILE or NAME=RUN,RUN")
        if name in named and name != group[0]:
            raise PlrcError(f"two of the initial weights are called {name}; name one of them: --init NAME={files}")
        named[name] = group
    if base.data.val == "none":  # learning rates are chosen on validation images
        base = base.with_values({"data.val": ""})
    comparison = Comparison(
        base, named, fractions, shots, seeds, tuple(sorted(set(lrs))), Path(base.run.out), processes
    )
    backbone = base.model.backbone
    for file in sorted(
        {f for group in named.values() for f in group}, key=lambda f: (f in NAMED, not Path(f).is_dir())
    ):
        if file != "random":  # the first says which backbone it is, unless the user did; the others must fit
            backbone = initial_backbone(file, backbone, base.partial)[1].backbone
    splits = read_labelled(base.data, base.task)
    _refuse_seen(comparison, splits.test)
    return replace(comparison, base=base.with_values({"model.backbone": backbone}), digest=splits.digest())


def _refuse_seen(comparison: Comparison, test: LabelledSet) -> None:
    """Pre-training that saw test images would not be fair; the manifest of a run tells, by file name and size."""
    runs = [Path(file) for group in comparison.inits.values() for file in group if (Path(file) / MANIFEST).is_file()]
    sizes = {(os.path.basename(one.path), os.stat(one.path).st_size) for one in test.images}
    for run in runs:
        manifest = read_manifest(run / MANIFEST)
        names = manifest["train"] | manifest["held_out"]
        trained = {(os.path.basename(name), size) for name, size in names.items()}
        if seen := sorted(sizes & trained):
            raise PlrcError(
                f"{run} was pre-trained on {len(seen)} of the {len(test.images)} test images, such as {seen[0][0]}: "
                "pre-train without them (--data.exclude), or name another split with --data.test"
            )


def run_comparison(
    comparison: Comparison, run: Runner = transfer, say: Callable[[str], object] = print
) -> dict[str, Any] | None:
    """Run what has no result yet and return the content of OUT/comparison.json. None: asked to stop, all saved.

    Raises PlrcError for whatever the user can mend: a folder of another comparison, a run that cannot be computed, ...
    """
    commands = _open(comparison)
    cells = Cells.of(comparison)
    work = _Work(cells, run, say, commands, time.time(), cells.done)
    say(f"{cells.total} runs, {work.before} of them done; each is logged in {comparison.out / 'cells'}/*/log.txt")
    work.write()
    stop = StopRequest()
    try:
        _spawn(work, comparison.processes, stop) if comparison.processes > 1 else work.go(stop)
    finally:
        stop.restore()
    if cells.pending():
        say(f"stopped: {cells.done} of {cells.total} runs are done; repeat the command to go on")
        return None
    return work.write()


def table(comparison: dict[str, Any]) -> str:
    """The content of comparison.json for a terminal: scores with verdicts against random weights, then the advice."""
    head = ["", *(labels["text"] for labels in comparison["labels"])]
    rows = [[init, *map(_cell, by.values())] for init, by in comparison["results"].items()]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    title = f"{comparison['metric']} of the test images: mean, 95 % interval over seeds; against random weights"
    return "\n".join([title, "", *map(str.rstrip, lines), "", *(f"- {line}" for line in comparison["recommendation"])])


def _cell(one: dict[str, Any]) -> str:
    if not one["n"]:
        return "-"
    return f"{shown(one)} {one['versus_random']['verdict'] if one['versus_random'] else ''}".rstrip()


def _open(comparison: Comparison) -> list[str]:
    """Check that OUT is this comparison's or new; the commands so far, with this one."""
    out, path, command = comparison.out, comparison.out / COMPARISON, shlex.join(sys.argv)
    if out.exists() and not out.is_dir():
        raise PlrcError(f"{out} is a file; --out names a folder")
    if not path.exists():
        if out.exists() and any(entry.name != "cells" for entry in out.iterdir()):
            raise PlrcError(f"{out} is not empty and holds no comparison (no {COMPARISON}); name another --out")
        return [command]
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        changes = comparison.base.changes(TransferConfig.from_dict(stored["settings"]))
        lost, commands = set(stored["lrs"]) - set(comparison.lrs), stored["provenance"]["commands"]
    except (OSError, ValueError, KeyError) as error:
        raise PlrcError(f"cannot read {path} ({error!r}); remove it and repeat the command: no run is lost") from error
    text = [change for name, change in changes.items() if name != "optim.lr"]
    text += [f"lrs: stored {stored['lrs']}, now {list(comparison.lrs)}"] if lost else []
    if text:
        raise PlrcError(
            f"{out} was started with other settings ({'; '.join(text)}); name another --out "
            "(only more initial weights, numbers of labels, seeds and learning rates may be added)"
        )
    return list(dict.fromkeys([*commands, command]))


@dataclass
class _Work:
    """What a process needs to take part."""

    cells: Cells
    run: Runner
    say: Callable[[str], object]
    commands: list[str]
    started: float
    before: int
    """Runs that were done at the start."""

    def go(self, stop: StopRequest) -> None:
        """Run cells that nobody else runs, until all have a result or this process is asked to stop."""
        while not _asked(stop) and (pending := self.cells.pending()):
            if not any(self._take(name, config, stop) for name, config in pending):
                time.sleep(LOOK)

    def _take(self, name: str, config: TransferConfig, stop: StopRequest) -> bool:
        """Whether the cell was free and is done now."""
        if _asked(stop):
            return False
        with claim(Path(config.run.out)) as mine:
            if not mine or self.cells.result(config):
                return False
            self.cells.refuse_changed(config.init)
            progress = _Progress(name, self.say, TELL * self.cells.comparison.processes)
            with contextlib.redirect_stdout(progress):
                finished = self.run(config) is not None
        stop.asked |= not finished  # the run has had the signal
        if finished:
            self._tell(name, config)
        return finished

    def _tell(self, name: str, config: TransferConfig) -> None:
        cells, metric = self.cells, self.cells.comparison.metric
        score, done = cells.read(config)["metrics"][metric], cells.done
        left = round((time.time() - self.started) / (done - self.before) * (cells.total - done))
        self.say(f"[{done}/{cells.total}] {name}: {metric} {score:.1f}; left {timedelta(seconds=left)}")
        self.write()

    def write(self) -> dict[str, Any]:
        """OUT/comparison.json as things stand."""
        content = summary(self.cells, self.commands)
        write_json(self.cells.comparison.out / COMPARISON, content)
        return content


class _Progress(io.TextIOBase):
    """The output of a run, of which a line of its progress is told every so often; all of it is in its log.txt."""

    def __init__(self, name: str, say: Callable[[str], object], seconds: float) -> None:
        self.name, self.say, self.seconds = name, say, seconds
        self.screen, self.told = sys.stdout, time.monotonic()

    def write(self, text: str) -> int:
        if re.match(r"\d+/\d+ |validation ", text) and time.monotonic() >= self.told + self.seconds:
            with contextlib.redirect_stdout(self.screen):
                self.say(f"{self.name}: {text.strip()}")
            self.told = time.monotonic()
        return len(text)


def _asked(stop: StopRequest) -> bool:
    """Whether this process must stop: it was told to, or it is a worker whose command is gone."""
    parent = multiprocessing.parent_process()
    return stop.asked or (parent is not None and not parent.is_alive())


def _spawn(work: _Work, processes: int, stop: StopRequest) -> None:
    """Share the work between processes; what one of them complains of stops all and is raised."""
    context = multiprocessing.get_context("spawn")
    complaints = context.SimpleQueue()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))  # for the workers, not for this process
    workers = [context.Process(target=_worker, args=(work, complaints)) for _ in range(processes)]
    try:
        for worker in workers:
            worker.start()
        while alive := [worker for worker in workers if worker.is_alive()]:
            if stop.asked or any(worker.exitcode for worker in workers):
                for worker in alive:
                    worker.terminate()  # SIGTERM: save and end. Told more than once, since it may come too early
            wait([worker.sentinel for worker in alive], timeout=LOOK)
    finally:
        for worker in workers:
            worker.terminate()
    if not complaints.empty():
        raise PlrcError(complaints.get())
    if not stop.asked and any(worker.exitcode for worker in workers):
        raise PlrcError("a worker process failed (its message is above); mend that and repeat the command")


def _worker(work: _Work, complaints: Any) -> None:
    try:
        work.go(StopRequest())
    except PlrcError as error:
        complaints.put(str(error))
        sys.exit(2)


def summary(cells: Cells, commands: Sequence[str]) -> dict[str, Any]:
    """The content of comparison.json: plain dicts, lists, strings and finite numbers; None where there is no number.

    results[init][labels]: learning rate, scores[metric] with one number a seed, mean and interval, verdict, curve.
    pairs: the paired difference a - b of each two inits at each number of labels.
    """
    comparison, done = cells.comparison, cells.done
    found = {i: {at: _result(cells, i, at) for at in comparison.labels} for i in comparison.inits}
    scores = {(i, at): one["scores"][comparison.metric] for i, by in found.items() for at, one in by.items()}
    pairs = [
        {"labels": at, "a": a, "b": b, **asdict(difference(values))}
        for at in comparison.labels
        for b, a in combinations(comparison.inits, 2)
        if (values := paired(scores[a, at], scores[b, at]))
    ]
    for pair in pairs:
        if pair["b"] == "random":
            found[pair["a"]][pair["labels"]]["versus_random"] = pair
    results = [result for _, config in cells.known() if (result := cells.result(config))]
    content = {
        "task": comparison.base.task, "protocol": comparison.base.preset, "data": comparison.base.data.source,
        "metric": comparison.metric, "seeds": comparison.seeds, "lrs": list(comparison.lrs),
        "done": done, "cells": cells.total, "finished": done == cells.total,
        "preliminary": done < cells.total or comparison.seeds < FEW_SEEDS,
        "inits": {
            init: {"kind": kind(group[0]), "files": list(group), "sha256": [cells.prints[file] for file in group]}
            for init, group in comparison.inits.items()
        },
        "labels": [_labels(cells, at) for at in comparison.labels],
        "results": found, "pairs": pairs, "settings": comparison.base.to_dict(),
        "provenance": {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commands": list(commands),
            "labels": comparison.digest,
            "versions": [dict(v) for v in sorted({tuple(result["versions"].items()) for result in results})],
            "notes": sorted({note for result in results for note in result["notes"]}),
            "hours": round(sum(result["seconds"] for result in results) / 3600, 2), "machine": _machine(),
        },
    }  # fmt: skip
    return content | {"recommendation": recommendation(content)}


def _result(cells: Cells, init: str, labels: str) -> dict[str, Any]:
    """One init with one number of labels, over the seeds that are done."""
    comparison, lr = cells.comparison, cells.chosen(init, labels)
    seeds = range(comparison.seeds)
    results = [None if lr is None else cells.result(cells.config(init, labels, lr, seed)) for seed in seeds]
    done = [result for result in results if result]
    names = [comparison.metric, *(name for result in done[:1] for name in result["metrics"])]
    scores = {name: [_finite(r["metrics"].get(name)) if r else None for r in results] for name in names}
    curve: dict[int, list[float]] = {}
    for point in (point for result in done for point in result["curve"]):
        curve.setdefault(int(point["step"]), []).append(point[comparison.metric])
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    edge = {comparison.lrs[0]: "lowest", comparison.lrs[-1]: "highest"} if len(comparison.lrs) > 1 else {}
    return {
        **(asdict(interval([r["metrics"][comparison.metric] for r in done])) if done else nothing),
        "versus_random": None, "scores": scores,
        "lr": lr, "edge": edge.get(lr or 0, ""),
        "val": {f"{rate:g}": score for rate, score in cells.validation(init, labels).items()},
        "diverged": [seed for seed, result in enumerate(results) if result and result["diverged"]],
        "curve": [{"step": step, "mean": _finite(sum(v) / len(v)), "n": len(v)} for step, v in sorted(curve.items())],
    }  # fmt: skip


def _labels(cells: Cells, labels: str) -> dict[str, Any]:
    """A number of labels; `images`: their number, or the fewest and the most over the seeds."""
    comparison = cells.comparison
    at = cells.config("random", labels, comparison.lrs[0], 0).data
    results = [cells.result(config) for _, config in cells.known() if config.data == at]
    images = [result["train_images"] for result in results if result]
    ends = sorted({min(images), max(images)}) if images else []
    text = f"{labels} ({' to '.join(map(str, ends))} image{'' if ends == [1] else 's'})" if ends else labels
    return {"name": labels, "text": text, "fraction": at.fraction, "shots": at.shots, "images": ends}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"system": platform.platform(), "cpu": processor(), "cores": cores(), "gpus": gpus}
