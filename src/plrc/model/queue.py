"""The queue of past image keys (MoCo): the negatives of image contrast. Its state is part of every checkpoint.

Shapes: K keys in the queue, B new keys, D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """A ring of past keys, filled with random directions at the start; the oldest are overwritten first.

    Args:
        size: Number of keys K.
        dim: Feature width D.
        generator: Random numbers for the first keys.

    Attributes:
        keys: [K, D], of unit length.
        position: 0-dim, the slot that is overwritten next.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor, keep: Tensor) -> None:
        """Store new keys, the last K of them if there are more.

        Args:
            keys: [B, D], of unit length.
            keep: 0-dim bool; False leaves the queue as it is (a skipped step).
        """
        size = len(self.keys)
        new = keys[-size:].to(self.keys.dtype)
        slots = (self.position + torch.arange(len(new), device=new.device)) % size
        self.keys[slots] = torch.where(keep, new, self.keys[slots])
        self.position.copy_(torch.where(keep, (self.position + len(new)) % size, self.position))
