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
from plrc.compare.recommendation import MIN_SEEDS, recommendation
from plrc.compare.runs import ComparisonRuns
from plrc.compare.statistics import format_interval, interval, paired_differences, summarize_differences
from plrc.machine import cores, processor
from plrc.text import columns

Results = dict[str, dict[str, dict[str, Any]]]
"""Name of the initial weights -> key of `ComparisonPlan.labels` -> result over the seeds."""


def summarize(runs: ComparisonRuns, commands: Sequence[str]) -> dict[str, Any]:
    """Return the content of comparison.json: dicts, lists, strings and finite numbers; None for a missing number.

    `results[init][labels]` has the learning rate, `scores[metric]` (one number per seed) with mean and interval, the
    difference to random weights with its verdict, and the validation curve. `pairs` has the paired difference a - b for
    every pair of initial weights, at each number of labels.

    Args:
        runs: The runs of the comparison.
        commands: Command lines that this comparison was started with.
    """
    comparison = runs.comparison
    num_done = runs.num_done
    is_finished = num_done == runs.num_runs
    results: Results = {}
    for init in comparison.inits:
        results[init] = {labels: _summarize_seeds(runs, init, labels) for labels in comparison.labels}
    pairs = _pairs(runs, results)
    # Random weights come first in `inits`, so in their pairs they are always "b".
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
        "preliminary": not is_finished or comparison.seeds < MIN_SEEDS,
        "inits": {init: _describe_init(runs, files) for init, files in comparison.inits.items()},
        "labels": [_describe_labels(runs, labels) for labels in comparison.labels],
        "results": results,
        "pairs": pairs,
        "settings": comparison.base.to_dict(),
        "provenance": _provenance(runs, commands),
    }
    return content | {"recommendation": recommendation(content)}


def _summarize_seeds(runs: ComparisonRuns, init: str, labels: str) -> dict[str, Any]:
    """Return the entry of `results` for initial weights at a number of labels, over the seeds that are finished."""
    comparison = runs.comparison
    metric = comparison.metric
    lr = runs.chosen_lr(init, labels)
    by_seed = _results_by_seed(runs, init, labels, lr)
    finished = [result for result in by_seed if result is not None]
    mean_and_interval: dict[str, Any] = {"mean": None, "low": None, "high": None, "n": 0}
    if finished:
        mean_and_interval = asdict(interval([result["metrics"][metric] for result in finished]))
    validation = runs.validation_scores(init, labels)
    return {
        **mean_and_interval,
        "versus_random": None,
        "scores": _scores(by_seed, metric),
        "lr": lr,
        "edge": _edge_of_lrs(lr, comparison.lrs),
        "val": {f"{tried_lr:g}": score for tried_lr, score in validation.items()},
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
    names = [metric]
    first = next((result for result in by_seed if result is not None), None)
    if first is not None:
        names += [name for name in first["metrics"] if name != metric]
    scores: dict[str, list[float | None]] = {}
    for name in names:
        scores[name] = []
        for result in by_seed:
            value = None if result is None else result["metrics"].get(name)
            scores[name].append(_finite(value))
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


def _edge_of_lrs(lr: float | None, lrs: Sequence[float]) -> str:
    """Return "lowest" or "highest" if `lr` is at an end of the tried learning rates, else "".

    Args:
        lr: The chosen learning rate.
        lrs: The learning rates that were tried, in rising order.
    """
    if len(lrs) > 1 and lr == lrs[0]:
        return "lowest"
    if len(lrs) > 1 and lr == lrs[-1]:
        return "highest"
    return ""


def _pairs(runs: ComparisonRuns, results: Results) -> list[dict[str, Any]]:
    """Return the paired difference a - b for every pair of initial weights, where both have finished the same seed."""
    comparison = runs.comparison
    pairs = []
    for labels in comparison.labels:
        # b comes before a in `inits`
        for b, a in itertools.combinations(comparison.inits, 2):
            scores_a = results[a][labels]["scores"][comparison.metric]
            scores_b = results[b][labels]["scores"][comparison.metric]
            differences = paired_differences(scores_a, scores_b)
            if differences:
                pairs.append({"labels": labels, "a": a, "b": b, **asdict(summarize_differences(differences))})
    return pairs


def _describe_init(runs: ComparisonRuns, files: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": weights_origin(files[0]),
        "files": list(files),
        "sha256": [runs.fingerprints[file] for file in files],
    }


def _describe_labels(runs: ComparisonRuns, labels: str) -> dict[str, Any]:
    """Describe a number of labels: its name, its settings, and how many training images it gives.

    `images` has this number, or the smallest and the largest if it differs between seeds.
    """
    # The settings of the data depend on the number of labels only, so any run will do.
    data = runs.run("random", labels, runs.comparison.lrs[0], seed=0).config.data
    counts = set()
    for run in runs.required_runs():
        result = runs.result(run)
        if run.config.data == data and result is not None:
            counts.add(result["train_images"])
    num_images = []
    if counts:
        num_images = sorted({min(counts), max(counts)})  # a single number if both are equal
    text = labels
    if num_images:
        noun = "image" if num_images == [1] else "images"
        text = f"{labels} ({' to '.join(map(str, num_images))} {noun})"
    return {"name": labels, "text": text, "fraction": data.fraction, "shots": data.shots, "images": num_images}


def _provenance(runs: ComparisonRuns, commands: Sequence[str]) -> dict[str, Any]:
    """Return when, where and with which software the results were computed."""
    versions: set[tuple[tuple[str, str], ...]] = set()  # items of dicts, because a dict cannot be in a set
    notes: set[str] = set()
    warnings: set[str] = set()
    reading: dict[str, Any] = {}  # that of any run: all read the same labels
    seconds = 0.0
    for run in runs.required_runs():
        result = runs.result(run)
        if result is not None:
            versions.add(tuple(result["versions"].items()))
            notes.update(result["notes"])
            warnings.update(result.get("warnings", ()))
            reading = result["reading"]
            seconds += result["seconds"]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commands": list(commands),
        "labels": runs.comparison.digest,
        "versions": [dict(items) for items in sorted(versions)],
        "notes": sorted(notes),
        "warnings": sorted(warnings),
        "reading": reading,
        "hours": round(seconds / 3600, 2),
        "machine": {"system": platform.platform(), "cpu": processor(), "cores": cores(), "gpus": gpus},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def table(content: Mapping[str, Any]) -> str:
    """Return scores with verdicts against random weights, then the recommendation, as text for a terminal.

    Args:
        content: Content of comparison.json.
    """
    rows = [["", *(labels["text"] for labels in content["labels"])]]
    for init, by_labels in content["results"].items():
        rows.append([init, *map(_cell_text, by_labels.values())])
    lines = [f"{content['metric']} of the test images: mean, 95 % interval over seeds; against random weights", ""]
    lines += [*columns(rows), ""]
    lines += [f"- {sentence}" for sentence in content["recommendation"]]
    return "\n".join(lines)


def _cell_text(result: Mapping[str, Any]) -> str:
    if not result["n"]:
        return "-"
    if result["versus_random"] is None:
        return format_interval(result)
    return f"{format_interval(result)} {result['versus_random']['verdict']}"
