"""Affinity cross-entropy (ACE, METHOD section 3): the one primitive of all objectives, and the Term they return.

Layer 3: tensors in, terms out; knows no data set, process group or step number. The arithmetic is in `kernels.py`.

    ACE(q; K, T, tau) = logsumexp_j(q . k_j / tau)  -  q . (sum_j T_j k_j) / tau
    d ACE / d q       = (sum_j softmax_j(q . K / tau) k_j  -  sum_j T_j k_j) / tau

Both read-outs come out of the forward pass, so no attention backward is ever run, and keys carry no gradient.

Shapes: B images, N queries, M keys, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plrc.objectives import kernels
from plrc.objectives.kernels import Backend, wide

BACKENDS = ("auto", "fused", "chunked", "dense")


@dataclass(frozen=True)
class Term:
    """Sums over the valid queries, as 0-dim tensors, so that several processes can join them before they divide."""

    total: Tensor
    """Sum of the affinity cross-entropy. Carries the gradient."""
    count: Tensor
    """Number of valid queries, as a floating point number."""
    entropy: Tensor
    """Sum of the targets' entropy. No gradient."""

    @property
    def mean(self) -> Tensor:
        """Mean cross-entropy; 0 with zero gradient where no query is valid."""
        return self.total / self.count.clamp(min=1)

    @property
    def kl(self) -> Tensor:
        """Mean Kullback-Leibler divergence: the cross-entropy without the targets' entropy."""
        return (self.total.detach() - self.entropy) / self.count.clamp(min=1)


def sum_valid(loss: Tensor, entropy: Tensor, valid: Tensor) -> Term:
    """The Term of per-query losses and entropies, all three of one shape; what is not valid counts for nothing."""
    total, entropies = (torch.where(valid, x, 0).sum() for x in (loss, entropy.detach()))
    return Term(total, valid.sum().to(total.dtype), entropies)


def log_sum_exp(query: Tensor, keys: Tensor, temperature: float, backend: Backend = "auto") -> Tensor:
    """logsumexp_j(q . k_j / temperature): query [B, N, D], keys [B, M, D] -> [B, N]; memory linear in N and M.

    Only the query receives gradient. Without keys the result is -inf.
    """
    keys = keys.detach()
    if keys.shape[1] == 0:
        return wide(query).new_full(query.shape[:2], -torch.inf)
    query, keys = same_dtype(query, keys)
    lse: Tensor = _LogSumExp.apply(query, keys, 1 / temperature, backend)
    return lse


def cross_entropy_to_affinities(
    query: Tensor, keys: Tensor, target_query: Tensor, target_keys: Tensor, temperature: float, backend: Backend
) -> tuple[Tensor, Tensor]:
    """ACE to the target T = softmax(target_query target_keys^T), which is never formed; memory linear in N and M.

    query [B, N, D], keys [B, M, D], target_query [B, N, E], target_keys [B, M, E]; the first D of the E features of
    target_keys are those of keys, and target_query is divided by its temperature already.
    Returns (cross-entropy [B, N], entropy of T [B, N]). Only the query receives gradient.
    """
    query, keys, target_query, target_keys = same_dtype(query, keys, target_query, target_keys)
    both: tuple[Tensor, Tensor] = _CompareAffinities.apply(
        query, keys, target_query, target_keys, 1 / temperature, backend
    )
    return both


def dense_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """ACE in its first form: - sum_j T_j log softmax_j(logits), both [B, N, M] -> [B, N]. The reference in tests."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def same_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the widest of their dtypes."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def without_autocast(device: torch.device) -> torch.autocast:
    """Objectives choose their own precision: a context in which mixed precision is off."""
    return torch.autocast(device.type, enabled=False)


def check(ok: bool, message: str) -> None:
    """ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def check_options(backend: str, *temperatures: float) -> None:
    """ValueError for an unknown backend or a temperature that is not above 0."""
    check(backend in BACKENDS, f"backend is {backend!r}; write one of {', '.join(BACKENDS)}")
    check(min(temperatures) > 0, f"a temperature is {min(temperatures)}; write a number above 0")


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, scale: float, backend: Backend) -> Tensor:
        readout, lse = kernels.attend(query, keys, scale, backend)
        ctx.save_for_backward(readout)
        ctx.scale = scale
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (readout,) = ctx.saved_tensors
        return (grad * ctx.scale)[..., None] * readout, None, None, None


class _CompareAffinities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, target_query: Tensor, target_keys: Tensor, scale: float, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        loss, entropy, difference = kernels.compare(query, keys, target_query, target_keys, scale, backend)
        ctx.save_for_backward(difference)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return (grad * ctx.scale)[..., None] * difference, None, None, None, None, None
