"""The report of a run: the content of its folder as a page, RUN/report.html. It may be written during the run."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w
from matplotlib.axes import Axes

from plrc.config import Config, ObjectiveConfig
from plrc.data.manifest import read_manifest
from plrc.engine.budget import steps_of_run
from plrc.engine.checkpoint import checkpoints
from plrc.engine.health import COLLAPSED_RANK, COLLAPSED_STD
from plrc.engine.provenance import RANDOM, start_origin, teacher_origins
from plrc.files import write_text
from plrc.machine import plrc_version
from plrc.objectives import TERMS
from plrc.presets import PRESETS, preset
from plrc.visualize import charts
from plrc.visualize.page import render
from plrc.visualize.records import read_records
from plrc.visualize.verdict import Records, describe_progress, judge, last_step, of_kind

LOG_LINES = 40
"""Lines of log.txt that are shown, the last ones."""
_MAX_MARKERS = 30  # a line of more points is drawn without markers
_SIZE = (3.7, 2.1)  # inches of a chart

Plot = dict[str, Any]
"""A chart of the page: title, newest value, what it is compared with, and its SVG."""


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html of a run folder, finished or not. Raises PlrcError if `run` is not a run folder."""
    path = Path(run) / "report.html"
    write_text(path, run_report(run))
    return path


def run_report(run: str | Path) -> str:
    """Return the HTML of the report of a run folder, finished or not."""
    return render("report.html", run=run_section(run))


def run_section(run: str | Path) -> dict[str, Any]:
    """Collect what the section of a run shows: plain values and inline SVG.

    Another page shows the same section if its template, which extends base.html, gets this dict as `run` and contains
    `{% include "run.html" %}`.
    """
    run = Path(run)
    config = Config.load(run / "config.toml")
    manifest = read_manifest(run / "manifest.json")
    records = read_records(run / "metrics.jsonl")
    steps = steps_of_run(config, len(manifest["train"]), *_time_used(records))
    queue_fill_steps = math.ceil(config.objectives.queue / config.optim.batch_size)
    verdict = judge(records, steps, queue_fill_steps)
    return {
        "name": run.resolve().name,
        "done": last_step(records),
        "steps": steps,
        "verdict": verdict,
        "progress": describe_progress(records, steps, verdict),
        "facts": _facts(records, config, manifest),
        "groups": _groups(records, config.objectives, verdict.since),
        "changed": _changed_settings(config),
        "settings": tomli_w.dumps(config.to_dict()),
        "origin": _origin(run, config, manifest, records),
        "log": _last_log_lines(run),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "by": f"plrc {plrc_version()}",
    }


def _time_used(records: Records) -> tuple[int, float]:
    """Return the last step with its used part of the time budget; zeros without a budget."""
    lines = of_kind(records, "train")
    if not lines:
        return 0, 0.0
    return lines[-1]["step"], lines[-1].get("seconds_used", 0.0)


def training_seconds(records: Records, batch_size: int) -> float:
    """Return the seconds that the steps took, with the checks and checkpoints between them."""
    seconds = 0.0
    step = 0
    for line in of_kind(records, "train"):
        seconds += (line["step"] - step) * batch_size / line["images_per_second"]
        step = line["step"]
    return seconds


def health_share(records: Records, batch_size: int) -> float | None:
    """Return the share of the training time that the health checks took; None if it was not recorded."""
    checks: list[float] = [record["seconds"] for record in of_kind(records, "health") if "seconds" in record]
    total = training_seconds(records, batch_size)
    if not checks or not total:
        return None
    return sum(checks) / total


def _facts(records: Records, config: Config, manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the few values to see first."""
    counts = manifest["counts"]
    facts = [
        {"name": "training images", "value": f"{counts['train']:,}", "note": f"{counts['held_out']} held out"},
        {"name": "backbone", "value": config.model.backbone, "note": f"{config.method}, {config.views.size} px"},
    ]
    lines = of_kind(records, "train")
    if not lines:
        return facts
    speed = median(line["images_per_second"] for line in lines)
    wait = median(line["data_wait_share"] for line in lines)
    skipped = sum(line["skipped_steps"] for line in lines)
    seconds = training_seconds(records, config.optim.batch_size)
    share = health_share(records, config.optim.batch_size)
    health_note = f"health checks {share:.1%} of it" if share is not None else ""
    return [
        *facts,
        {"name": "images per second", "value": f"{speed:.3g}", "note": "median"},
        {"name": "waiting for data", "value": f"{wait:.1%}", "note": "of the time, median"},
        {"name": "training time", "value": _duration(seconds), "note": health_note},
        {"name": "skipped steps", "value": f"{skipped:.0f}", "note": "gradient not finite"},
    ]


def _groups(records: Records, objectives: ObjectiveConfig, since: int | None) -> list[dict[str, Any]]:
    """Draw the charts by topic; `since` is marked in the charts of the health."""
    lines = of_kind(records, "train")
    checks = of_kind(records, "health")
    losses = [
        _plot(lines, f"{term.name}_kl", term.title.capitalize(), "chance", f"{term.name}_chance")
        for term in TERMS.values()
    ]
    health = [
        _plot(checks, "feature_std", "Feature standard deviation", "collapsed", COLLAPSED_STD, since),
        _plot(checks, "effective_rank", "Effective rank", "collapsed", COLLAPSED_RANK, since),
        _plot(checks, "point_match", "Points matched between views", "chance", "point_match_chance", since),
        _plot(checks, "grouping_auc", "Grouping of objects, AUC", "chance", 0.5, since),
        _plot(checks, "drift", "Distance from the initial weights"),
    ]
    schedules = [
        _plot(lines, "lr", "Learning rate"),
        _plot(lines, "teacher_momentum", "Momentum of the teacher"),
        _plot(lines, "teacher_temperature", "Temperature of the teacher"),
    ]
    steps = [
        _plot(lines, "gradient_norm", "Gradient norm"),
        _plot(lines, "images_per_second", "Images per second"),
        _plot(lines, "data_wait_share", "Share of time waiting for data"),
    ]
    temperatures = (
        f"Fixed temperatures: image contrast {objectives.image_temperature:g}, "
        f"point contrast {objectives.point_temperature:g}, student {objectives.student_temperature:g}."
    )
    groups = [
        _group(
            "Losses and their chance levels",
            "Divergence: the loss minus the entropy of its target, which no network can avoid.",
            losses,
        ),
        _group("Health of the features", "Measured on the held-out images, which are not trained on.", health),
        _group("Schedules", temperatures, schedules),
        _group("Steps", "The speed drops where a checkpoint is saved or the health is checked.", steps),
    ]
    return [group for group in groups if group["plots"]]


def _group(title: str, about: str, plots: Sequence[Plot | None]) -> dict[str, Any]:
    return {"title": title, "about": about, "plots": [plot for plot in plots if plot]}


def _plot(
    records: Records,
    name: str,
    title: str,
    reference_name: str = "",
    reference: str | float = "",
    since: int | None = None,
) -> Plot | None:
    """Draw a value over the steps, and what it is compared with: another value of the records, or a number."""
    shown = [record for record in records if record.get(name) is not None]
    if not shown:
        return None
    draw = partial(_draw_curve, records=shown, name=name, reference=reference, since=since)
    newest = f"{shown[-1][name]:.3g} at step {shown[-1]['step']}"
    drawn = charts.svg(draw, f"{title}: {newest}", _SIZE)
    return {"title": title, "newest": newest, "against": reference_name, "svg": drawn}


def _draw_curve(axes: Axes, records: Records, name: str, reference: str | float, since: int | None) -> None:
    steps = [record["step"] for record in records]
    values = [record[name] for record in records]
    marker = "o" if len(records) <= _MAX_MARKERS else ""
    axes.plot(*charts.thinned(steps, values), color=charts.page_color(1), lw=1.6, marker=marker, ms=3.5)
    reference_style: dict[str, Any] = {"color": charts.page_color(2), "lw": 1.4, "ls": "--"}
    if isinstance(reference, float):
        axes.axhline(reference, **reference_style)
    elif reference:
        compared = [record for record in records if record.get(reference) is not None]
        reference_steps = [record["step"] for record in compared]
        reference_values = [record[reference] for record in compared]
        axes.plot(*charts.thinned(reference_steps, reference_values), **reference_style)
    if since is not None:
        axes.axvline(since, color=charts.page_color(0), lw=1, ls=":")
    if 0 <= min(values) < 0.7 * max(values):
        axes.set_ylim(bottom=0)
    charts.label_steps(axes, "step")


def _changed_settings(config: Config) -> list[tuple[str, Any, Any]]:
    """List (setting, value of the run, value of its preset) where they differ."""
    if config.preset not in PRESETS:
        return []
    differences = config.differences(preset(config.preset, config.method))
    return [row for row in differences if row[0] != "data.source"]


def _origin(run: Path, config: Config, manifest: Mapping[str, Any], records: Records) -> list[tuple[str, str]]:
    """List (name, value) of the data, weights of others, starts, checkpoints and exports of a run."""
    counts = [f"{name.replace('_', ' ')} {number:,}" for name, number in manifest["counts"].items()]
    rows = [
        ("images", f"{manifest['root']} ({manifest['layout']}): {', '.join(counts)}"),
        ("manifest, SHA-256", manifest["sha256"]),
    ]
    rows += [("note", note) for note in manifest["notes"]]
    weights = start_origin(config, run)
    rows.append(("starting weights", str(weights) if weights else RANDOM))
    rows += [("frozen teacher", str(teacher)) for teacher in teacher_origins(config, run)]
    for start in of_kind(records, "start"):
        libraries = ", ".join(f"{name} {number}" for name, number in start["versions"].items() if number)
        processes = f"{start['processes']} processes on " if start["processes"] != "1" else ""
        place = f"{processes}{start['device']}"
        rows.append((f"started at step {start['step']}", f"{start['time']}; {place}; {libraries}"))
    saved = ", ".join(path.name for path in checkpoints(run))
    rows.append(("checkpoints", saved or "none"))
    return rows + _exports(run)


def _exports(run: Path) -> list[tuple[str, str]]:
    """List (name, value) of the backbones that were exported into the folder of a run."""
    rows = []
    for path in sorted((run / "exported").rglob("*.receipt.json")):
        receipt = json.loads(path.read_text(encoding="utf-8"))
        if "tensors" not in receipt:  # of a detector, not of the run's backbone
            continue
        name = "exported and verified"
        place = receipt["target"]
        remark = ""
        if receipt["note"]:
            name = "exported"
            place = "the file"
            remark = f"; {receipt['note']}"
        proof = f"{receipt['tensors']} tensors equal in {place}, step {receipt['step']}{remark}"
        rows.append((name, f"{receipt['file']}: {proof}"))
        rows.append(("SHA-256", receipt["sha256"]))
    return rows


def _last_log_lines(run: Path) -> list[str]:
    path = run / "log.txt"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as lines:
        return [line.rstrip("\n") for line in deque(lines, maxlen=LOG_LINES)]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
