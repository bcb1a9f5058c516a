"""The optimiser: fused SGD or AdamW, which skips a step on the device where the gradient is not finite.

Layer 4. `finite_gradient` gives the 0-dim bool that every owner of state (optimiser, teacher, queue, BN buffers) obeys,
so that a skipped step leaves no trace and the host never has to wait for the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plrc.config import OptimConfig


def build_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD decays every parameter (MoCo); AdamW spares biases and norms."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if config.name == "adamw":
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    sgd = torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    if config.momentum:
        for p in parameters:  # zeros, so that a skipped first step leaves a defined buffer
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def finite_gradient(network: nn.Module, clip_norm: float) -> tuple[Tensor, Tensor]:
    """(gradient norm, whether it is finite), both 0-dim on the device; clips if `clip_norm` is above 0."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm > 0:
        torch._foreach_mul_(gradients, torch.clamp(clip_norm / (norm + 1e-6), max=1.0))
    return norm, torch.isfinite(norm)


def guarded_step(optimizer: torch.optim.Optimizer, lr: float, keep: Tensor) -> None:
    """One update with this learning rate, or none at all where the 0-dim bool `keep` is False."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = (~keep).float()  # type: ignore[attr-defined]  # read by PyTorch's fused optimisers
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class BufferGuard:
    """Remembers the buffers (BatchNorm statistics) of networks and puts them back after a skipped step.

    All buffers of a dtype are joined, so that a GPU launches a handful of kernels instead of one for each.
    """

    def __init__(self, *networks: nn.Module) -> None:
        buffers = [b for network in networks for b in network.buffers()]
        dtypes = dict.fromkeys(b.dtype for b in buffers)
        self.groups = [[b for b in buffers if b.dtype == dtype] for dtype in dtypes]
        self.saved: list[Tensor] = []

    @torch.no_grad()
    def remember(self) -> None:
        self.saved = [torch.cat([b.flatten() for b in group]) for group in self.groups]

    @torch.no_grad()
    def restore_unless(self, keep: Tensor) -> None:
        for group, saved in zip(self.groups, self.saved, strict=True):
            chosen = torch.where(keep, torch.cat([b.flatten() for b in group]), saved)
            parts = chosen.split([b.numel() for b in group])
            torch._foreach_copy_(group, [part.view_as(b) for part, b in zip(parts, group, strict=True)])
