"""Image contrast (MoCo v2): the query of an image against its own key and a queue of past keys.

Shapes: B images, K keys in the queue, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plrc.objectives.affinity import Term, check, check_options, log_sum_exp, same_dtype, sum_valid, without_autocast
from plrc.objectives.kernels import wide


def image_contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """Compute the mean cross-entropy of each image's affinities, with its own key as the only positive.

    This is InfoNCE as in He et al., "Momentum Contrast", CVPR 2020, equation 1 (METHOD section 3).

    Args:
        query: [B, D] the student's image features, of unit length.
        key: [B, D] the teacher's image features, of unit length; row b belongs to query b.
        queue: [K, D] keys of other images, of unit length; K may be 0.
        temperature: Affinities are divided by it.

    Returns:
        A scalar in float32 or wider. Only the query receives gradient.

    Raises:
        ValueError: If shapes do not match or the temperature is not above 0.

    Examples:
        >>> import torch
        >>> from plrc.objectives import image_contrast
        >>> query = torch.eye(2, 8)
        >>> queue = torch.eye(8)[2:]  # six keys, all orthogonal to both queries
        >>> loss = image_contrast(query, key=query, queue=queue, temperature=1.0)
        >>> print(f"{loss:.4f}")  # log(e + 6) - 1
        1.1654
    """
    return image_term(query, key, queue, temperature).mean


def image_term(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Term:
    """Compute `image_contrast` as a Term: every query is valid, and the entropy of the target is 0."""
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
