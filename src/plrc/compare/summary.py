"""The content of comparison.json, from the results of the runs so far, and its table for a terminal."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import torch

from plrc.compare.inits import weights_origin
from plrc.compare.recommendation import FEW_SEEDS, recommendation
from plrc.compare.runs import ComparisonRuns
from plrc.compare.statistics import difference, format_interval, interval, paired
from plrc.machine import cores, processor

Results = dict[str, dict[str, dict[str, Any]]]
"""Name of the initial weights -> name of the number of labels -> result over the seeds."""


def summarize(runs: ComparisonRuns, commands: Sequence[str]) -> dict[str, Any]:
    """Return the content of comparison.json: dicts, lists, strings and finite numbers; None for a missing number.

    results[init][labels]: learning rate, scores[metric] with one number per seed, mean and interval, verdict, curve.
    pairs: the paired difference a - b of each two inits at each number of labels.

    Args:
        runs: The runs of the comparison.
        commands: Command lines that this comparison was started with.
    """
    comparison = runs.comparison
    num_done = runs.num_done
    is_finished = num_done == runs.num_runs
    results: Results = {}
    for init in comparison.inits:
        results[init] = {labels: _result(runs, init, labels) for labels in comparison.labels}
    pairs = _pairs(runs, results)
    for pair in pairs:
        if pair["b"] == "random":
            results[pair["a"]][pair["labels"]]["versus_random"] = pair
    content = {
        "task": comparison.base.task,
        "protocol": comparison.base.preset,
        "data": comparison.base.data.source,
        "metric": comparison.metric,
        "seeds": comparison.seeds,
        "lrs": list(comparison.lrs),
        "done": num_done,
        "cells": runs.num_runs,
        "finished": is_finished,
        "preliminary": not is_finished or comparison.seeds < FEW_SEEDS,
        "inits": {init: _init(runs, files) for init, files in comparison.inits.items()},
        "labels": [_labels(runs, labels) for labels in comparison.labels],
        "results": results,
        "pairs": pairs,
        "settings": comparison.base.to_dict(),
        "provenance": _provenance(runs, commands),
    }
    return content | {"recommendation": recommendation(content)}


def _result(runs: ComparisonRuns, init: str, labels: str) -> dict[str, Any]:
    """Return the result of initial weights at a number of labels, over the seeds that are finished."""
    comparison = runs.comparison
    metric = comparison.metric
    lr = runs.chosen_lr(init, labels)
    by_seed = _results_by_seed(runs, init, labels, lr)
    finished = [result for result in by_seed if result is not None]
    mean: dict[str, Any] = {"mean": None, "low": None, "high": None, "n": 0}
    if finished:
        mean = asdict(interval([result["metrics"][metric] for result in finished]))
    validation = runs.validation_scores(init, labels)
    return {
        **mean,
        "versus_random": None,
        "scores": _scores(by_seed, metric),
        "lr": lr,
        "edge": _edge(lr, comparison.lrs),
        "val": {f"{rate:g}": score for rate, score in validation.items()},
        "diverged": [seed for seed, result in enumerate(by_seed) if result is not None and result["diverged"]],
        "curve": _mean_curve(finished, metric),
    }


def _results_by_seed(runs: ComparisonRuns, init: str, labels: str, lr: float | None) -> list[dict[str, Any] | None]:
    """Return the content of result.json for each seed at the chosen learning rate; None if missing."""
    seeds = range(runs.comparison.seeds)
    if lr is None:
        return [None for _ in seeds]
    return [runs.result(runs.run(init, labels, lr, seed)) for seed in seeds]


def _scores(by_seed: Sequence[dict[str, Any] | None], metric: str) -> dict[str, list[float | None]]:
    """Return name of a score -> its value for each seed; the compared metric comes first."""
    scores: dict[str, list[float | None]] = {metric: []}
    for result in by_seed:
        if result is not None:
            scores = {name: [] for name in (metric, *result["metrics"])}
            break
    for name, values in scores.items():
        for result in by_seed:
            values.append(_finite(result["metrics"].get(name)) if result is not None else None)
    return scores


def _mean_curve(results: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return the mean validation score over seeds at each step."""
    by_step: dict[int, list[float]] = {}
    for result in results:
        for point in result["curve"]:
            by_step.setdefault(int(point["step"]), []).append(point[metric])
    curve = []
    for step, scores in sorted(by_step.items()):
        curve.append({"step": step, "mean": _finite(sum(scores) / len(scores)), "n": len(scores)})
    return curve


def _edge(lr: float | None, lrs: Sequence[float]) -> str:
    """Return "lowest" or "highest" if the learning rate is the first or last of several, else ""."""
    if len(lrs) > 1 and lr == lrs[0]:
        return "lowest"
    if len(lrs) > 1 and lr == lrs[-1]:
        return "highest"
    return ""


def _pairs(runs: ComparisonRuns, results: Results) -> list[dict[str, Any]]:
    """Return the paired difference of each two inits at each number of labels, where they share a finished seed."""
    comparison = runs.comparison
    pairs = []
    for labels in comparison.labels:
        for b, a in itertools.combinations(comparison.inits, 2):
            scores_a = results[a][labels]["scores"][comparison.metric]
            scores_b = results[b][labels]["scores"][comparison.metric]
            differences = paired(scores_a, scores_b)
            if differences:
                pairs.append({"labels": labels, "a": a, "b": b, **asdict(difference(differences))})
    return pairs


def _init(runs: ComparisonRuns, files: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": weights_origin(files[0]),
        "files": list(files),
        "sha256": [runs.fingerprints[file] for file in files],
    }


def _labels(runs: ComparisonRuns, labels: str) -> dict[str, Any]:
    """Return a number of labels; `images`: number of training images, or the smallest and largest over the seeds."""
    data = runs.run("random", labels, runs.comparison.lrs[0], seed=0).config.data
    counts = set()
    for run in runs.required_runs():
        result = runs.result(run)
        if run.config.data == data and result is not None:
            counts.add(result["train_images"])
    images = sorted({min(counts), max(counts)}) if counts else []
    text = labels
    if images:
        noun = "image" if images == [1] else "images"
        text = f"{labels} ({' to '.join(map(str, images))} {noun})"
    return {"name": labels, "text": text, "fraction": data.fraction, "shots": data.shots, "images": images}


def _provenance(runs: ComparisonRuns, commands: Sequence[str]) -> dict[str, Any]:
    versions: set[tuple[tuple[str, str], ...]] = set()
    notes: set[str] = set()
    seconds = 0.0
    for run in runs.required_runs():
        result = runs.result(run)
        if result is not None:
            versions.add(tuple(result["versions"].items()))
            notes.update(result["notes"])
            seconds += result["seconds"]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commands": list(commands),
        "labels": runs.comparison.digest,
        "versions": [dict(items) for items in sorted(versions)],
        "notes": sorted(notes),
        "hours": round(seconds / 3600, 2),
        "machine": {"system": platform.platform(), "cpu": processor(), "cores": cores(), "gpus": gpus},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def table(comparison: Mapping[str, Any]) -> str:
    """Return scores with verdicts against random weights, then the advice, as text for a terminal.

    Args:
        comparison: Content of comparison.json.
    """
    rows = [["", *(labels["text"] for labels in comparison["labels"])]]
    for init, by_labels in comparison["results"].items():
        rows.append([init, *map(_entry, by_labels.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{comparison['metric']} of the test images: mean, 95 % interval over seeds; against random weights", ""]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        lines.append(line.rstrip())
    lines.append("")
    lines += [f"- {sentence}" for sentence in comparison["recommendation"]]
    return "\n".join(lines)


def _entry(result: Mapping[str, Any]) -> str:
    if not result["n"]:
        return "-"
    if result["versus_random"] is None:
        return format_interval(result)
    return f"{format_interval(result)} {result['versus_random']['verdict']}"
