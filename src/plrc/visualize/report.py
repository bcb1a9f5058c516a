"""The report of a run: what its folder holds, as a page. Reads the folder alone, and writes RUN/report.html.

Layer 5: imports config, data, engine and presets, and this folder. It may be made while the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
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
from plrc.engine.adapt import total_steps
from plrc.engine.checkpoint import checkpoints
from plrc.engine.health import COLLAPSED_RANK, COLLAPSED_STD
from plrc.files import parse_json, write_text
from plrc.machine import plrc_version
from plrc.objectives import TERMS
from plrc.presets import PRESETS, preset
from plrc.visualize import charts
from plrc.visualize.page import render
from plrc.visualize.verdict import Records, last_step, of_kind, standing, verdict

LOG_LINES = 40  # of log.txt, the last ones
FEW = 30  # values that are shown as points
SIZE = 3.7, 2.1  # of a plot, in inches at its own scale; the page fits it


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html, which appears whole or not at all. Raises PlrcError where `run` is no run folder."""
    path = Path(run) / "report.html"
    write_text(path, run_report(run))
    return path


def run_report(run: str | Path) -> str:
    """The HTML of the report of a run folder, finished or not."""
    return render("report.html", run=run_section(run))


def run_section(run: str | Path) -> dict[str, Any]:
    """What the section of a run shows: plain values and inline SVG.

    Another page shows the same section: it gives its template this dict under the name `run`, and the template, which
    extends base.html, says `{% include "run.html" %}` where the section shall stand.
    """
    run = Path(run)
    config, manifest = Config.load(run / "config.toml"), read_manifest(run / "manifest.json")
    records = read_records(run)
    steps = total_steps(config, len(manifest["train"]))
    filling = math.ceil(config.objectives.queue / config.optim.batch_size)
    found = verdict(records, steps, filling)
    return {
        "name": run.resolve().name,
        "done": last_step(records),
        "steps": steps,
        "verdict": found,
        "standing": standing(records, steps, found),
        "facts": _facts(records, config, manifest),
        "groups": _groups(records, config.objectives, found.since),
        "chosen": _chosen(config),
        "settings": tomli_w.dumps(config.to_dict()),
        "origin": _origin(run, manifest, records),
        "log": _log(run),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "by": f"plrc {plrc_version()}",
    }


def read_records(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole; none where there is no such file yet."""
    path = run / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            records.append(parse_json(text))
    return records


def training_seconds(records: Records, batch_size: int) -> float:
    """Seconds that the steps took, with the checks and saves between them."""
    lines, before, seconds = of_kind(records, "train"), 0, 0.0
    for line in lines:
        seconds += (line["step"] - before) * batch_size / line["images_per_second"]
        before = line["step"]
    return seconds


def health_share(records: Records, batch_size: int) -> float | None:
    """Share of the training time that the health checks took; None where that was not recorded."""
    checks = [record["seconds"] for record in of_kind(records, "health") if "seconds" in record]
    whole = training_seconds(records, batch_size)
    return sum(checks) / whole if checks and whole else None


def _facts(records: Records, config: Config, manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers to see first."""
    counts, lines, batch = manifest["counts"], of_kind(records, "train"), config.optim.batch_size
    facts = [
        {"name": "training images", "value": f"{counts['train']:,}", "note": f"{counts['held_out']} held out"},
        {"name": "backbone", "value": config.model.backbone, "note": f"{config.method}, {config.views.size} px"},
    ]
    if lines:
        speed = [line["images_per_second"] for line in lines]
        wait = [line["data_wait_share"] for line in lines]
        facts += [
            {"name": "images a second", "value": f"{median(speed):.3g}", "note": "median"},
            {"name": "waiting for data", "value": f"{median(wait):.1%}", "note": "of the time, median"},
        ]
        skipped = sum(line["skipped_steps"] for line in lines)
        share = health_share(records, batch)
        note = f"health checks {share:.1%} of it" if share is not None else ""
        facts += [
            {"name": "training time", "value": _duration(training_seconds(records, batch)), "note": note},
            {"name": "steps skipped", "value": f"{skipped:.0f}", "note": "gradient not finite"},
        ]
    return facts


def _groups(records: Records, o: ObjectiveConfig, since: int | None) -> list[dict[str, Any]]:
    """Plots by what they are about. A dashed line is what a value is compared with; `since`: marked in the health."""
    lines, checks = of_kind(records, "train"), of_kind(records, "health")

    def group(title: str, about: str, plots: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
        drawn = [plot for plot in plots if plot]
        return [{"title": title, "about": about, "plots": drawn}] if drawn else []

    return [
        *group(
            "Losses and their chance levels",
            "Divergence: the loss less what no network could avoid, which is the entropy of its target.",
            [
                *(
                    _plot(lines, f"{t}_kl", term.title.capitalize(), "chance", f"{t}_chance")
                    for t, term in TERMS.items()
                ),
            ],
        ),
        *group(
            "Health of the features",
            "Of the images held out; nothing is trained on them.",
            [
                _plot(checks, "feature_std", "Feature standard deviation", "collapsed", COLLAPSED_STD, since),
                _plot(checks, "effective_rank", "Effective rank", "collapsed", COLLAPSED_RANK, since),
                _plot(checks, "point_match", "Points found again", "chance", "point_match_chance", since),
                _plot(checks, "grouping_auc", "Grouping of objects, AUC", "chance", 0.5, since),
                _plot(checks, "drift", "Distance from the initial weights"),
            ],
        ),
        *group(
            "Schedules",
            f"Fixed temperatures: image contrast {o.image_temperature:g}, point contrast {o.point_temperature:g}, "
            f"student {o.student_temperature:g}.",
            [
                _plot(lines, "lr", "Learning rate"),
                _plot(lines, "teacher_momentum", "Momentum of the teacher"),
                _plot(lines, "teacher_temperature", "Temperature of the teacher"),
            ],
        ),
        *group(
            "Steps",
            "A dip in the speed is a save or a check of the health.",
            [
                _plot(lines, "gradient_norm", "Gradient norm"),
                _plot(lines, "images_per_second", "Images a second"),
                _plot(lines, "data_wait_share", "Share of time waiting for data"),
            ],
        ),
    ]


def _plot(
    records: Records,
    name: str,
    title: str,
    against: str = "",
    reference: str | float = "",
    since: int | None = None,
) -> dict[str, Any] | None:
    """A value over the steps, and what it is compared with: another value of the same record, or a number."""
    shown = [record for record in records if record.get(name) is not None]
    if not shown:
        return None
    draw = partial(_curve, shown=shown, name=name, reference=reference, since=since)
    newest = f"{shown[-1][name]:.3g} at step {shown[-1]['step']}"
    return {"title": title, "newest": newest, "against": against, "svg": charts.svg(draw, f"{title}: {newest}", SIZE)}


def _curve(axes: Axes, shown: Records, name: str, reference: str | float, since: int | None) -> None:
    steps = [record["step"] for record in shown]
    look: dict[str, Any] = {"marker": "o", "ms": 3.5} if len(shown) <= FEW else {}
    axes.plot(*charts.thinned(steps, [record[name] for record in shown]), color=charts.color(1), lw=1.6, **look)
    if isinstance(reference, float):
        axes.axhline(reference, color=charts.color(2), lw=1.4, ls="--")
    elif reference:
        pairs = [(record["step"], record[reference]) for record in shown if record.get(reference) is not None]
        axes.plot(*charts.thinned(*zip(*pairs, strict=True)), color=charts.color(2), lw=1.4, ls="--")
    if since is not None:
        axes.axvline(since, color=charts.color(0), lw=1, ls=":")
    low, high = min(record[name] for record in shown), max(record[name] for record in shown)
    if 0 <= low < 0.7 * high:
        axes.set_ylim(bottom=0)
    charts.steps_axis(axes, "step")


def _chosen(config: Config) -> list[tuple[str, Any, Any]]:
    """(setting, here, in the preset) where they differ."""
    if config.preset not in PRESETS:
        return []
    return [row for row in config.differences(preset(config.preset, config.method)) if row[0] != "data.source"]


def _origin(run: Path, manifest: Mapping[str, Any], records: Records) -> list[tuple[str, str]]:
    """(what, where from)."""
    counts, rows = manifest["counts"], []
    names = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in counts.items())
    rows += [("images", f"{manifest['root']} ({manifest['layout']}): {names}")]
    rows += [("manifest, SHA-256", manifest["sha256"])]
    rows += [("note", note) for note in manifest["notes"]]
    for start in of_kind(records, "start"):
        versions = ", ".join(f"{name} {number}" for name, number in start["versions"].items() if number)
        processes = f"{start['processes']} processes on " if start["processes"] != "1" else ""
        rows += [(f"started at step {start['step']}", f"{start['time']}; {processes}{start['device']}; {versions}")]
    saved = checkpoints(run)
    rows += [("checkpoints", ", ".join(path.name for path in saved) or "none")]
    for path in sorted((run / "exported").glob("*.receipt.json")):
        receipt = json.loads(path.read_text(encoding="utf-8"))
        proof = f"{receipt['tensors']} tensors equal in {receipt['target']}, step {receipt['step']}"
        rows += [("exported, and proven", f"{receipt['file']}: {proof}"), ("SHA-256", receipt["sha256"])]
    return rows


def _log(run: Path) -> list[str]:
    path = run / "log.txt"
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
