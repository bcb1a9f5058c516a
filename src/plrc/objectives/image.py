"""Image contrast (MoCo v2): an image's query against its own key and a queue of past keys.

Layer 3: tensors in, a term out; keeps no state (the queue belongs to `plrc.model`).

Shapes: B images, K keys in the queue, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plrc.objectives.affinity import Term, check, check_options, log_sum_exp, same_dtype, sum_valid, without_autocast
from plrc.objectives.kernels import wide


def image_contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """Mean affinity cross-entropy with a one-hot target on the own image's key (METHOD section 3; He et al., MoCo).

    query [B, D], key [B, D] (row b: the own key of query b), queue [K, D] with K >= 0, all of unit length: the caller
    sees to that. Returns a scalar in float32 or wider; only the query receives gradient. Raises ValueError where
    shapes do not match.
    """
    return image_term(query, key, queue, temperature).mean


def image_term(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Term:
    """`image_contrast` as a Term; every query is valid and the target's entropy is 0."""
    check_options("auto", temperature)
    check(
        query.ndim == 2 and query.shape == key.shape,
        f"query and key must both be [B, D]; they are {list(query.shape)} and {list(key.shape)}",
    )
    check(
        queue.ndim == 2 and queue.shape[1] == query.shape[1],
        f"queue must be [K, {query.shape[1]}] to match the query; it is {list(queue.shape)}",
    )
    with without_autocast(query.device):
        query, key, queue = same_dtype(query, key.detach(), queue.detach())
        own = (wide(query) * wide(key)).sum(-1) / temperature
        others = log_sum_exp(query[None], queue[None], temperature)[0]
        loss = torch.logaddexp(own, others) - own
        return sum_valid(loss, torch.zeros_like(loss), torch.ones_like(loss, dtype=torch.bool))
