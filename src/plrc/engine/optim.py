"""The optimizer: fused SGD or AdamW, which skips a step on the device if the gradient is not finite.

`finite_gradient` gives the 0-dim bool that every owner of state (optimizer, teacher, queue, BatchNorm buffers) obeys,
so that a skipped step leaves no trace and the host does not wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plrc.config import OptimConfig
from plrc.errors import RunError

LR_FACTOR = "lr_factor"
"""Key of a parameter group of the optimizer: the factor of its learning rate. Groups without it have the factor 1."""


def build_optimizer(network: nn.Module, config: OptimConfig, factors: Mapping[str, float]) -> torch.optim.Optimizer:
    """Build the optimizer of a network: SGD decays every parameter (MoCo); AdamW leaves out biases and norms.

    Args:
        network: The network; parameters that require no gradient are left out.
        config: The settings.
        factors: Name of a parameter -> factor of its learning rate, for those whose factor is not 1. Each factor has
            groups of its own, with the key `LR_FACTOR`.
    """
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for factor, members in by_factor.items():
        own = {} if factor == 1 else {LR_FACTOR: factor}
        if config.name == "adamw":
            groups.append({"params": [p for p in members if p.ndim > 1], "weight_decay": config.weight_decay, **own})
            groups.append({"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0, **own})
        else:
            groups.append({"params": members, **own})
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
    if config.momentum:
        for group in groups:
            for p in group["params"]:  # zeros, so that a skipped first step leaves a defined buffer
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore the state of an optimizer from a checkpoint; it keeps its own settings, such as the weight decay.

    Args:
        optimizer: An optimizer of `build_optimizer`.
        saved: What `state_dict` returned.

    Raises:
        RunError: The parameters are grouped in another way.
    """
    own_settings = [dict(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise RunError(
            "the optimizer in the checkpoint groups the parameters in another way; give optim.name, optim.layer_decay "
            "and model.trainable_stages the values that they have in the run's config.toml, or start a new run with "
            "another --out"
        ) from error
    for group, settings in zip(optimizer.param_groups, own_settings, strict=True):
        group.clear()
        group.update(settings)


def finite_gradient(network: nn.Module, max_norm: float) -> tuple[Tensor, Tensor]:
    """Measure and clip the gradient of a network.

    Args:
        network: Its parameters hold gradients.
        max_norm: The largest norm after clipping; 0: no clipping.

    Returns:
        (gradient norm before clipping, whether it is finite), both 0-dim on the device.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm, torch.isfinite(norm)


def guarded_step(optimizer: torch.optim.Optimizer, lr: float, keep: Tensor) -> None:
    """Make an update, or none.

    Args:
        optimizer: A fused optimizer of PyTorch.
        lr: The learning rate of this step, before the factors of groups.
        keep: 0-dim bool on the device; False leaves weights and optimizer as they are.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_FACTOR, 1.0)
    optimizer.found_inf = (~keep).float()  # type: ignore[attr-defined]  # read by PyTorch's fused optimizers
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class BufferGuard:
    """Saves the buffers (BatchNorm statistics) of networks before a step, and restores them if it is skipped.

    All buffers of a dtype are joined, so that a GPU launches a few kernels instead of one per buffer.
    """

    def __init__(self, *networks: nn.Module) -> None:
        buffers = [b for network in networks for b in network.buffers()]
        dtypes = dict.fromkeys(b.dtype for b in buffers)
        self.groups = [[b for b in buffers if b.dtype == dtype] for dtype in dtypes]
        self.saved: list[Tensor] = []

    @torch.no_grad()
    def save(self) -> None:
        """Copy all buffers."""
        self.saved = [torch.cat([b.flatten() for b in group]) for group in self.groups]

    @torch.no_grad()
    def restore_unless(self, keep: Tensor) -> None:
        """Restore the saved buffers if the 0-dim bool `keep` is False, without waiting for the device."""
        for group, saved in zip(self.groups, self.saved, strict=True):
            chosen = torch.where(keep, torch.cat([b.flatten() for b in group]), saved)
            parts = chosen.split([b.numel() for b in group])
            torch._foreach_copy_(group, [part.view_as(b) for part, b in zip(parts, group, strict=True)])
