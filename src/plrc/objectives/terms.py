"""The table of terms, and the loss that they add up to.

A new objective is a file of this folder, a row of `TERMS`, its weight among the settings `objectives`, and the call in
`Learner.compute_terms` that feeds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plrc.objectives.affinity import Term


@dataclass(frozen=True)
class TermInfo:
    """What the rest of the package knows about a term.

    Attributes:
        name: Its name in metrics.jsonl: NAME_loss, NAME_kl, NAME_chance.
        weight: The setting of `objectives` that holds its weight; 0 means that the term is not computed.
        title: Its name in reports.
    """

    name: str
    weight: str
    title: str


TERMS: dict[str, TermInfo] = {
    "image": TermInfo("image", "image_weight", "image contrast"),
    "point": TermInfo("point", "point_weight", "point contrast"),
    "distill": TermInfo("distill", "distill_weight", "affinity distillation"),
}


def total_loss(terms: Mapping[str, Term], weights: Mapping[str, float], counts: Tensor | None = None) -> Tensor:
    """Add up the terms by their weights, each as a mean over its valid queries (METHOD section 3, "Normaliser").

    Args:
        terms: The terms by name.
        weights: The weight of each of them.
        counts: [T] valid queries of each term over all processes (the sum of their `valid_counts`), in the order of
            `terms`. None: those of this process.

    Returns:
        A scalar that carries the gradient. With the counts of all processes it is this process's share of their loss.
    """
    if counts is None:
        counts = valid_counts(terms)
    counts = counts.clamp(min=1)
    shares = [weights[name] * term.total / count for (name, term), count in zip(terms.items(), counts, strict=True)]
    return torch.stack(shares).sum()


def valid_counts(terms: Mapping[str, Term]) -> Tensor:
    """Collect the number of valid queries of each term: [T], in the order of `terms`."""
    return torch.stack([term.count for term in terms.values()])
