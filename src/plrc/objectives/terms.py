"""The table of loss terms, and their weighted sum.

To add an objective: write its file in this folder, add a row to `TERMS` and a weight to `ObjectiveConfig`, call it in
`Level.compute_terms`, and give its number of keys in `Level.key_counts` (engine/level.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plrc.objectives.affinity import Term


@dataclass(frozen=True)
class TermInfo:
    """A row of the table of terms.

    Attributes:
        name: The key of the row; metrics.jsonl has the values NAME_loss, NAME_kl and NAME_chance.
        weight_setting: The name of the term's weight in `ObjectiveConfig`. A term of weight 0 is not computed.
        title: The term's name in reports.
    """

    name: str
    weight_setting: str
    title: str


TERMS: dict[str, TermInfo] = {
    "image": TermInfo("image", "image_weight", "image contrast"),
    "point": TermInfo("point", "point_weight", "point contrast"),
    "distill": TermInfo("distill", "distill_weight", "affinity distillation"),
    "frozen": TermInfo("frozen", "frozen_weight", "distillation from a frozen teacher"),
}


def total_loss(terms: Mapping[str, Term], weights: Mapping[str, float], counts: Tensor | None = None) -> Tensor:
    """Compute the sum over terms of weight * total / number of valid queries (METHOD section 3, "Normaliser").

    Args:
        terms: The terms by name.
        weights: The weight of each term.
        counts: The result of `valid_counts`, summed over all processes. None: the counts of this process.

    Returns:
        A scalar that carries the gradient. If `counts` are those of all processes, the scalars of all processes add up
        to the loss of the whole batch.
    """
    if counts is None:
        counts = valid_counts(terms)
    weighted_means = []
    for (name, term), count in zip(terms.items(), counts.clamp(min=1), strict=True):
        weighted_means.append(weights[name] * term.total / count)
    return torch.stack(weighted_means).sum()


def mean_over_levels(levels: Sequence[Mapping[str, Term]]) -> dict[str, Term]:
    """Average each term over the feature levels (METHOD section 6, "Several levels").

    Args:
        levels: The terms of each level by name; all levels have the same terms.

    Returns:
        Terms whose sums and counts are the means of those of the levels.
    """
    if len(levels) == 1:
        return dict(levels[0])
    means = {}
    for name in levels[0]:
        terms = [level[name] for level in levels]
        means[name] = Term(
            total=torch.stack([term.total for term in terms]).mean(),
            count=torch.stack([term.count for term in terms]).mean(),
            entropy=torch.stack([term.entropy for term in terms]).mean(),
        )
    return means


def valid_counts(terms: Mapping[str, Term]) -> Tensor:
    """Return the number of valid queries of each term: one number per term, in the order of `terms`."""
    return torch.stack([term.count for term in terms.values()])
