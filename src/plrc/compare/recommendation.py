"""Which initial weights to use, in sentences, from the content of comparison.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plrc.compare.statistics import Difference, format_interval, paired_differences, summarize_differences

MIN_SEEDS = 5  # results of fewer seeds are preliminary
MANY_PAIRS = 5  # with more pairs, differences by chance are likely

Results = Mapping[str, dict[str, Any]]
"""Name of the initial weights -> their result at one number of labels."""


def recommendation(comparison: dict[str, Any]) -> list[str]:
    """Return the advice of a comparison.json for each number of labels, in their order, then what limits it."""
    sentences = [_advice(comparison, labels) for labels in comparison["labels"]]
    return sentences + _caveats(comparison)


def _advice(comparison: dict[str, Any], labels: dict[str, Any]) -> str:
    """Return which weights to use at a number of labels, and by how much they lead."""
    results = {}
    for init, by_labels in comparison["results"].items():
        if by_labels[labels["name"]]["n"]:
            results[init] = by_labels[labels["name"]]
    if len(results) < 2:
        return f"With {labels['text']}: nothing to compare yet."
    metric = comparison["metric"]
    best = _best_init(results, metric)
    leads = _leads(best, results, metric)
    action = _action(best, leads, comparison["inits"])
    facts = [f"{best} has {metric} {format_interval(results[best])}"]
    facts += [_describe_lead(rival, lead) for rival, lead in leads.items()]
    return f"With {labels['text']}: {action}. {'; '.join(facts)}."


def _best_init(results: Results, metric: str) -> str:
    """Return the highest mean of those clearly better than random weights, else the highest mean of all.

    A clear lead over random weights counts for more than a higher but uncertain mean.
    """
    ranked = _ranked(results)
    if "random" in results:
        for init in ranked:
            lead = _lead(results[init], results["random"], metric)
            if lead is not None and lead.verdict == "better":
                return init
    return ranked[0]


def _ranked(results: Results) -> list[str]:
    """Return the names of the initial weights by falling mean."""
    return sorted(results, key=lambda init: results[init]["mean"], reverse=True)


def _leads(best: str, results: Results, metric: str) -> dict[str, Difference]:
    """Return rival -> paired difference of `best` and the rival, by falling mean of the rivals."""
    leads = {}
    for rival in _ranked(results):
        lead = _lead(results[best], results[rival], metric)
        if rival != best and lead is not None:
            leads[rival] = lead
    return leads


def _lead(result: dict[str, Any], rival: dict[str, Any], metric: str) -> Difference | None:
    """Return the paired difference of two results, or None if they have no seed in common."""
    differences = paired_differences(result["scores"][metric], rival["scores"][metric])
    return summarize_differences(differences) if differences else None


def _action(best: str, leads: dict[str, Difference], inits: dict[str, Any]) -> str:
    """Return what to do: weights that the user has already are kept unless `best` is clearly better."""
    close = [rival for rival, lead in leads.items() if lead.verdict != "better"]
    close_and_available = [rival for rival in close if inits[rival]["kind"] != "plrc"]
    if best == "random":
        return "keep what you have: nothing has a higher mean than random weights"
    if "random" in close:
        return f"keep what you have: {best} is not clearly better than random weights"
    if inits[best]["kind"] != "plrc":
        return f"keep {best}"
    if close_and_available:
        return f"keep {close_and_available[0]}: {best} is not clearly better"
    return f"use {best}"


def _describe_lead(rival: str, lead: Difference) -> str:
    size = format_interval(vars(lead), "+")
    if lead.verdict == "better":
        return f"better than {rival} by {size}"
    if lead.more_seeds is not None:
        seeds = f"{_count(lead.more_seeds, 'more seed')} would decide it if mean and spread stay the same"
    elif lead.n == 1:
        seeds = "one seed gives no interval"
    elif lead.n == 2:
        seeds = "two seeds are too few to estimate how many are needed"
    else:
        seeds = "no realistic number of seeds would decide it"
    return f"too close to tell from {rival} ({size}; {seeds})"


def _caveats(comparison: dict[str, Any]) -> list[str]:
    """Return what limits the advice: missing runs, few seeds, many pairs, learning rates, divergence."""
    sentences = []
    num_seeds = comparison["seeds"]
    num_pairs = len(comparison["pairs"])
    if not comparison["finished"]:
        sentences.append(f"Only {comparison['done']} of {comparison['cells']} runs are done: the numbers will change.")
    if num_seeds < MIN_SEEDS:
        sentences.append(f"{_count(num_seeds, 'seed')}: the result is preliminary; use at least {MIN_SEEDS} seeds.")
    if num_pairs > MANY_PAIRS:
        sentences.append(
            f"{num_pairs} pairs are compared, each at the 95 % level: about one in twenty pairs of equal weights looks "
            "different by chance. Trust a lead that holds at several numbers of labels."
        )
    at_edge, diverged = [], []
    for init, by_labels in comparison["results"].items():
        for labels, result in by_labels.items():
            if result["edge"]:
                at_edge.append(f"{init} with {labels} ({result['lr']:g}, the {result['edge']})")
            diverged += [f"{init} with {labels}, seed {seed}" for seed in result["diverged"]]
    if at_edge:
        sentences.append(
            f"The best learning rate is at the edge of the grid for {', '.join(at_edge)}: a better one may lie beyond "
            "it; add rates to --lrs and repeat the command."
        )
    if diverged:
        sentences.append(f"Training diverged and the score is 0 for {', '.join(diverged)}.")
    few_runs = []
    for init, source in comparison["inits"].items():
        if source["kind"] == "plrc" and len(source["files"]) < num_seeds:
            few_runs.append(f"{init} ({len(source['files'])})")
    if few_runs:
        sentences.append(
            f"Fewer pre-training runs than seeds: {', '.join(few_runs)}. The intervals do not contain all of the "
            "variation between pre-training runs."
        )
    return sentences


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
