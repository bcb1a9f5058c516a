"""A long training, watched from outside: do memory, open file handles and throughput stay flat?

    nice -n 12 taskset -c 0 python -m tests.soak.soak --minutes 60 --json soak.json

Runs `plrc pretrain` on generated scenes (a few of them truncated, so that the path of unreadable images is walked
too), with loader processes, checkpoints and health checks, and samples /proc every few seconds. The JSON holds all
samples and a verdict for each measure: its growth over the watched time with a 95 % interval, and what that says:
"flat" (the whole interval within the tolerance), "grows" (the whole interval beyond it) or "too noisy to tell" (watch
longer). It is written again at every sample; SIGTERM ends the watch early, with a verdict.
Linux only. Status 0: all flat; 1: not; 2: the training ended by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.report import machine
from tests.soak.processes import busy_seconds, children, use

from plrc.compare.statistics import t_quantile
from plrc.files import write_text
from plrc.scenes import write_scenes

BATCH = 16
BLOCKS = 24  # stretches of neighboring samples, nearly independent of each other
WARM = 0.15  # share of the watched time that is left out: loaders and caches fill, the allocator settles

# measure -> (largest growth in that unit or, below 1, as a share of the mean; the direction that is a fault)
MEASURES: dict[str, tuple[float, int]] = {
    "main_rss_mb": (0.02, 1),
    "workers_rss_mb": (0.02, 1),
    "main_handles": (5.0, 1),
    "workers_handles": (5.0, 1),
    "cpu_seconds_per_image": (0.1, 1),
    "images_per_second": (0.1, -1),
}
OF_THE_LOAD = ("cpu_seconds_per_image", "images_per_second")  # these change with what else the machine does


def command(images: Path, out: Path, save_every: int) -> list[str]:
    """A training that would take days, of a small network, with a checkpoint every `save_every` steps."""
    options = {
        "data": images, "out": out, "run.workers": 2, "run.threads": 1, "run.device": "cpu",
        "data.max-unreadable-fraction": 0.5,
        "views.size": 32, "optim.batch-size": BATCH, "optim.steps": 10_000_000, "objectives.queue": 128,
        "model.bn-groups": 2, "run.checkpoint-every-steps": save_every, "run.health-every-steps": 200,
        "run.log-every-steps": 1,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "plrc", "pretrain", "--preset", "debug_cpu", *words, "--run.no-stop-on-collapse"]


def prepare(folder: Path) -> Path:
    """240 scenes as JPEG files, of which 4 are truncated."""
    write_scenes(folder, {"train": 240}, seed=1, size=64)
    images = folder / "train" / "images"
    for path in sorted(images.iterdir())[::60]:
        path.write_bytes(path.read_bytes()[:300])
    return images


def last_step(metrics: Path) -> int:
    """The step of the last whole line; 0 before the first."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            whole = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{")]
    except FileNotFoundError:
        return 0
    return int(json.loads(whole[-1])["step"]) if whole else 0


def sample(pid: int, metrics: Path, started: float) -> dict[str, Any] | None:
    """What the training uses now; None when it has ended."""
    main = use(pid)
    workers = [found for child in children(pid) if (found := use(child))]
    if main is None:
        return None
    return {
        "seconds": round(time.monotonic() - started, 2),
        "images": last_step(metrics) * BATCH,
        "main_rss_mb": round(main.rss_mb, 2),
        "workers_rss_mb": round(sum(w.rss_mb for w in workers), 2),
        "main_handles": main.handles,
        "workers_handles": sum(w.handles for w in workers),
        "workers": len(workers),
        "cpu_seconds": round(main.cpu_s + sum(w.cpu_s for w in workers), 2),
        "machine_busy_seconds": round(busy_seconds(), 2),
        "load_1_minute": os.getloadavg()[0],
    }


def blocks(samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """BLOCKS stretches of time, without the warm-up: medians, so that it counts what is held and not whether a sample
    met a report, which holds figures for a second; rates are differences over a stretch."""
    span = samples[-1]["seconds"]
    kept = [s for s in samples if s["seconds"] >= WARM * span and s["workers"] and s["images"]]
    parts = [part for part in np.array_split(np.arange(len(kept)), BLOCKS) if len(part) >= 2]
    rows = []
    for part in parts:
        inside = [kept[i] for i in (*part, min(part[-1] + 1, len(kept) - 1))]
        first, last = inside[0], inside[-1]
        images, seconds = last["images"] - first["images"], last["seconds"] - first["seconds"]
        if not images or not seconds:
            continue
        cpu = last["cpu_seconds"] - first["cpu_seconds"]
        others = last["machine_busy_seconds"] - first["machine_busy_seconds"] - cpu
        row = {name: float(np.median([s[name] for s in inside])) for name in MEASURES if name in first}
        row |= {"cpu_seconds_per_image": cpu / images, "images_per_second": images / seconds}
        rows.append(row | {"hours": (first["seconds"] + last["seconds"]) / 7200, "others_cores": others / seconds})
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def verdicts(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """For each measure: mean, growth over the watched time by least squares with its 95 % t-interval, and the verdict.

    Throughput is regressed on time and on the cores that other processes keep busy, both together.
    """
    found = blocks(samples)
    hours = found.get("hours", np.empty(0))
    if len(hours) < 8:
        return {}
    span = float(hours[-1] - hours[0])
    out: dict[str, Any] = {}
    for name, (tolerance, direction) in MEASURES.items():
        load = [found["others_cores"] - found["others_cores"].mean()] if name in OF_THE_LOAD else []
        design = np.stack([np.ones_like(hours), (hours - hours.mean()) / span, *load], axis=1)
        inverse = np.linalg.pinv(design.T @ design)
        fit = inverse @ design.T @ found[name]
        free = len(hours) - design.shape[1]
        variance = float(np.square(found[name] - design @ fit).sum()) / free
        half = t_quantile(free) * float(np.sqrt(variance * inverse[1, 1]))
        mean, growth = float(fit[0]), float(fit[1])
        allowed = tolerance if tolerance >= 1 else tolerance * mean
        out[name] = {
            "mean": mean,
            "growth": growth,
            "interval": [growth - half, growth + half],
            "per_hour": growth / span,
            "allowed": allowed,
            "verdict": _verdict(direction * growth, half, allowed),
        }
    return out


def _verdict(growth: float, half: float, allowed: float) -> str:
    if growth + half <= allowed:
        return "flat"
    return "grows" if growth - half > allowed else "too noisy to tell"


def report(samples: list[dict[str, Any]], asked: float, ended: str) -> dict[str, Any]:
    """Everything that the JSON holds."""
    found = verdicts(samples) if samples else {}
    return {
        "machine": machine(),
        "minutes_asked": asked,
        "minutes_watched": round(samples[-1]["seconds"] / 60, 2) if samples else 0,
        "images": samples[-1]["images"] if samples else 0,
        "ended": ended,
        "flat": bool(found) and all(v["verdict"] == "flat" for v in found.values()),
        "verdicts": found,
        "mean_load_1_minute": float(np.mean([s["load_1_minute"] for s in samples])) if samples else None,
        "samples": samples,
    }


def watch(folder: Path, minutes: float, every: float, path: Path, save_every: int = 50) -> dict[str, Any]:
    """Train below `folder` for `minutes` from the first save on, which imports what saving needs, and for 2 BLOCKS
    steps where the machine is too busy for these, writing the report to `path` as it grows."""
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        asked = True

    images = prepare(folder / "scenes")
    out = folder / "run"
    with (folder / "output.txt").open("w") as output:
        training = subprocess.Popen(command(images, out, save_every), stdout=output, stderr=subprocess.STDOUT)
        theirs = signal.signal(signal.SIGTERM, stop)
        samples: list[dict[str, Any]] = []
        started = time.monotonic()
        steps = 0
        try:
            while training.poll() is None and not asked:
                if time.monotonic() - started >= 60 * minutes and steps >= 2 * BLOCKS:
                    break
                time.sleep(every)
                found = sample(training.pid, out / "metrics.jsonl", started)
                if found is None:
                    break
                if not (out / "report.html").exists():
                    started = time.monotonic()
                else:
                    samples.append(found)
                    steps = (found["images"] - samples[0]["images"]) // BATCH
                    write_text(path, json.dumps(report(samples, minutes, "still running"), indent=1))
        finally:
            signal.signal(signal.SIGTERM, theirs)
            alone = training.poll()
            if alone is None:
                training.terminate()  # it saves and ends
                training.wait(timeout=300)
    last = (folder / "output.txt").read_text().strip().splitlines()[-1:]
    ended = "stopped and saved" if alone is None and training.returncode == 75 else f"status {alone}: {last}"
    found = report(samples, minutes, ended)
    write_text(path, json.dumps(found, indent=1))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--json", type=Path, default=Path("soak.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plrc-soak-") as folder:
        found = watch(Path(folder), options.minutes, options.every, options.json)
    print(f"{found['minutes_watched']} minutes, {found['images']} images, {found['ended']}")
    for name, v in found["verdicts"].items():
        low, high = v["interval"]
        growth = f"{v['growth']:+.4g} ({low:+.4g} to {high:+.4g}), tolerance {v['allowed']:.4g}"
        print(f"{name:<24}mean {v['mean']:.5g}, growth {growth}: {v['verdict']}")
    if found["ended"] != "stopped and saved":
        return 2
    return 0 if found["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
