"""Affinity distillation in two steps: the teacher's affinities once, then any number of students against them.

Shapes: B images, N points, M positions of the reference grid, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plrc.objectives import kernels
from plrc.objectives.affinity import Term, log_sum_exp, same_dtype, sum_valid, without_autocast
from plrc.objectives.kernels import wide


@dataclass(frozen=True)
class AffinityTarget:
    """The teacher's affinities T [B, N, M], in the only form that the cross-entropy needs.

    Attributes:
        keys: r: the teacher's features on the reference grid, [B, M, D].
        readout: sum_j T_j r_j, [B, N, D].
        entropy: The entropy of T, [B, N].
    """

    keys: Tensor
    readout: Tensor
    entropy: Tensor


@torch.no_grad()
def affinity_target(teacher: Tensor, reference: Tensor, temperature: float | Tensor) -> AffinityTarget:
    """Compute T = softmax_j(t . r_j / temperature) for all points.

    Args:
        teacher: t: the teacher's features at points, of unit length, [B, N, D].
        reference: r: the teacher's features on a grid of the same image, of unit length, [B, M, D].
        temperature: A number or a 0-dim tensor.
    """
    with without_autocast(teacher.device):
        query, keys = same_dtype(wide(teacher), wide(reference))
        query = (query / temperature).to(keys.dtype)
        readout, log_sum = kernels.attend(query, keys, 1.0, "auto")
        return AffinityTarget(keys, readout, log_sum - (query * readout).sum(dim=-1))


def distillation_to_target(student: Tensor, target: AffinityTarget, temperature: float) -> Term:
    """Compute `affinity_distillation_term` for a target that was computed before.

    Args:
        student: s: the student's features at points, of unit length, [B, N, D].
        target: The teacher's affinities at the same points.
        temperature: The student's affinities are divided by it.
    """
    with without_autocast(student.device):
        student, keys, readout = same_dtype(wide(student), target.keys, target.readout)
        loss = log_sum_exp(student, keys, temperature) - (student * readout).sum(dim=-1) / temperature
        return sum_valid(loss, target.entropy, torch.ones_like(loss, dtype=torch.bool))
