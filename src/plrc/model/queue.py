"""The queue of past image keys (MoCo): the negatives of image contrast. Owns its state; part of every checkpoint.

Layer 2: imports nothing of ours. Shapes: K keys in the queue, B new keys, D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """`keys` [K, D], unit length, oldest overwritten first; filled with random directions at the start."""

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor, keep: Tensor) -> None:
        """Store keys [B, D] (the last K of them if B > K). Where the 0-dim bool `keep` is False nothing changes."""
        size = len(self.keys)
        new = keys[-size:].to(self.keys.dtype)
        slots = (self.position + torch.arange(len(new), device=new.device)) % size
        self.keys[slots] = torch.where(keep, new, self.keys[slots])
        self.position.copy_(torch.where(keep, (self.position + len(new)) % size, self.position))
