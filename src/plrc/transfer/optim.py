"""Optimizer and learning rate of fine-tuning."""

from __future__ import annotations

import torch
from torch import nn

from plrc.model.backbone import Backbone
from plrc.transfer.protocols import OptimConfig

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer; normalization layers get `norm_decay`, and the backbone `backbone_lr_factor`.

    Args:
        model: The network; parameters that require no gradient are left out.
        config: The settings.

    Returns:
        An optimizer. Each of its groups has the key "lr_factor", with which the caller multiplies the learning rate.
    """
    norm_ids = set()
    backbone_ids = set()
    for module in model.modules():
        if isinstance(module, NORMS):
            norm_ids |= {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(module, Backbone) and config.backbone_lr_factor != 1:
            backbone_ids |= {id(parameter) for parameter in module.parameters()}
    groups = []
    for in_backbone in (False, True):
        for is_norm in (False, True):
            chosen = []
            for parameter in model.parameters():
                kind = (id(parameter) in backbone_ids, id(parameter) in norm_ids)
                if parameter.requires_grad and kind == (in_backbone, is_norm):
                    chosen.append(parameter)
            if chosen:
                group = {
                    "params": chosen,
                    "weight_decay": config.norm_decay if is_norm else config.weight_decay,
                    "lr_factor": config.backbone_lr_factor if in_backbone else 1.0,
                }
                groups.append(group)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, config.lr, config.momentum)


def learning_rate(config: OptimConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then divided by 10 at each milestone."""
    warmup_steps = min(config.warmup_steps, config.total_steps // 10)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    passed = sum(step >= share * config.total_steps for share in config.lr_milestones)
    return config.lr * warmup * 0.1**passed


def has_finite_weights(model: nn.Module) -> bool:
    """Whether no weight is infinite or nan."""
    return bool(torch.nn.utils.get_total_norm(model.parameters()).isfinite())
