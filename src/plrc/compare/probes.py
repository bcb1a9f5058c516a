"""Linear probes of several initial weights over several seeds: intervals, differences to random weights, a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plrc.compare.statistics import format_interval, interval, paired_differences, summarize_differences
from plrc.machine import commit, versions
from plrc.text import columns
from plrc.transfer.dense import RANDOM, DenseResult

METRICS = ("miou", "accuracy", "grouping")


def summarize_probes(results: Sequence[DenseResult], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `plrc transfer probe` writes as JSON.

    `inits` has for each of the initial weights the mean and 95 % interval of each metric over the seeds, and
    `minus_random`, the paired difference to random weights, if these were probed too; `results` has every probe.

    Args:
        results: The results of `probe_seeds`.
        settings: The settings of the command.
    """
    by_init: dict[str, list[DenseResult]] = {}
    for result in results:
        by_init.setdefault(result.init, []).append(result)
    random = by_init.get(RANDOM)
    inits: dict[str, dict[str, Any]] = {}
    for init, of_init in by_init.items():
        inits[init] = {metric: _intervals(of_init, metric) for metric in METRICS}
        if random is not None and init != RANDOM:
            inits[init]["minus_random"] = {metric: _differences(of_init, random, metric) for metric in METRICS}
    return {
        "settings": dict(settings),
        "versions": versions() | {"commit": commit()},
        "inits": inits,
        "results": [dataclasses.asdict(result) for result in results],
    }


def probe_table(summary: Mapping[str, Any]) -> str:
    """Format the means and intervals of `summarize_probes` as a table."""
    rows = [["initial weights", "stride", "mIoU", "minus random", "accuracy", "grouping AUC"]]
    for init, metrics in summary["inits"].items():
        for stride, miou in metrics["miou"].items():
            minus_random = ""
            if "minus_random" in metrics:
                minus_random = format_interval(metrics["minus_random"]["miou"][stride], sign="+")
            grouping = metrics["grouping"][stride]
            rows.append(
                [
                    init,
                    stride,
                    format_interval(miou),
                    minus_random,
                    format_interval(metrics["accuracy"][stride]),
                    "" if grouping is None else format_interval(grouping, digits=3),
                ]
            )
    return "\n".join(columns(rows))


def _values(results: Sequence[DenseResult], metric: str, stride: int) -> list[float]:
    return [getattr(result, metric)[stride] for result in results]


def _intervals(results: Sequence[DenseResult], metric: str) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for stride in results[0].miou:
        values = _values(results, metric, stride)
        summary[str(stride)] = None
        if not any(math.isnan(value) for value in values):
            summary[str(stride)] = dataclasses.asdict(interval(values))
    return summary


def _differences(results: Sequence[DenseResult], random: Sequence[DenseResult], metric: str) -> dict[str, Any]:
    """Both have the same seeds in the same order."""
    summary: dict[str, Any] = {}
    for stride in results[0].miou:
        differences = paired_differences(_values(results, metric, stride), _values(random, metric, stride))
        summary[str(stride)] = None
        if not any(math.isnan(difference) for difference in differences):
            summary[str(stride)] = dataclasses.asdict(summarize_differences(differences))
    return summary
