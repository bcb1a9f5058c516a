"""Affinity cross-entropy (ACE, METHOD section 3): the common primitive of all objectives, and the Term they return.

The arithmetic is in `kernels.py`.

    ACE(q; K, T, tau) = logsumexp_j(q . k_j / tau)  -  q . (sum_j T_j k_j) / tau
    d ACE / d q       = (sum_j softmax_j(q . K / tau) k_j  -  sum_j T_j k_j) / tau

The two sums over keys in the gradient (read-outs) are computed in the forward pass, so the backward pass only scales
them. Keys carry no gradient.

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
    """A loss term as sums over the valid queries: several processes add up their sums before they divide.

    Attributes:
        total: 0-dim, the sum of the affinity cross-entropy; carries the gradient.
        count: 0-dim, the number of valid queries, as a floating point number.
        entropy: 0-dim, the sum of the targets' entropies; no gradient.
    """

    total: Tensor
    count: Tensor
    entropy: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean cross-entropy; 0 with zero gradient if no query is valid."""
        return self.total / self.count.clamp(min=1)


def sum_valid(loss: Tensor, entropy: Tensor, valid: Tensor) -> Term:
    """Sum losses and entropies of queries into a Term.

    Args:
        loss: [...] cross-entropy of each query.
        entropy: [...] entropy of each query's target.
        valid: [...] bool; other queries are not counted.
    """
    total = torch.where(valid, loss, 0).sum()
    entropies = torch.where(valid, entropy.detach(), 0).sum()
    return Term(total, valid.sum().to(total.dtype), entropies)


def log_sum_exp(query: Tensor, keys: Tensor, temperature: float, backend: Backend = "auto") -> Tensor:
    """Compute logsumexp_j(q . k_j / temperature) with memory linear in N and M.

    Args:
        query: [B, N, D]; it alone receives gradient.
        keys: [B, M, D]; M may be 0.
        temperature: Affinities are divided by it.
        backend: Which kernel computes it.

    Returns:
        [B, N] in float32 or wider; -inf if there are no keys.
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
    """Compute ACE to the target T = softmax(target_query target_keys^T), which is never formed.

    Memory is linear in N and M.

    Args:
        query: [B, N, D]; it alone receives gradient.
        keys: [B, M, D].
        target_query: [B, N, E] with E >= D, already divided by the target's temperature.
        target_keys: [B, M, E], of which the first D features are those of `keys`.
        temperature: Affinities of query and keys are divided by it.
        backend: Which kernel computes it.

    Returns:
        (cross-entropy [B, N], entropy of T [B, N]).
    """
    query, keys, target_query, target_keys = same_dtype(query, keys, target_query, target_keys)
    loss_and_entropy: tuple[Tensor, Tensor] = _CompareAffinities.apply(
        query, keys, target_query, target_keys, 1 / temperature, backend
    )
    return loss_and_entropy


def dense_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute ACE by its definition, -sum_j T_j log softmax_j(logits), from two matrices [B, N, M]: [B, N].

    The other functions, which never form these matrices, must agree with it.
    """
    return -(targets * logits.log_softmax(-1)).sum(-1)


def same_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert tensors to a common dtype that holds the values of all of them."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def without_autocast(device: torch.device) -> torch.autocast:
    """Return a context in which mixed precision is off: objectives choose their own precision."""
    return torch.autocast(device.type, enabled=False)


def check(ok: bool, message: str) -> None:
    """Raise ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def check_options(backend: str, *temperatures: float) -> None:
    """Raise ValueError for an unknown backend or a temperature that is not above 0."""
    check(backend in BACKENDS, f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    check(min(temperatures) > 0, f"temperatures must be > 0, got {min(temperatures)}")


class _LogSumExp(torch.autograd.Function):
    """`log_sum_exp`: the gradient is the read-out of the keys, times the scale."""

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
    """`cross_entropy_to_affinities`: the gradient is the difference of the two read-outs, times the scale."""

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
    def backward(ctx: Any, grad: Tensor, _entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return (grad * ctx.scale)[..., None] * difference, None, None, None, None, None
