"""The Kullback-Leibler divergence of a loss term."""

from __future__ import annotations

from plrc.objectives.affinity import Term


def divergence(term: Term) -> float:
    """The mean cross-entropy without the entropy of the targets."""
    return ((term.total.detach() - term.entropy) / term.count.clamp(min=1)).item()
