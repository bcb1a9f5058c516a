"""Stages of a backbone, and which of its parameters are trained at which rate.

The stage of a parameter is found by differentiation, so that it is known for every network: it is the finest level
whose features depend on the parameter. The blocks of a plain vision transformer, which has a single level, count as
levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plrc.errors import ConfigError
from plrc.model.backbone import Backbone
from plrc.model.modes import evaluation_mode


@dataclass(frozen=True)
class TrainedParameters:
    """Which parameters of a backbone are trained, and how fast.

    Attributes:
        remark: A sentence for the user.
        factors: Name of a parameter -> factor of the learning rate; only those whose factor is not 1.
    """

    remark: str
    factors: dict[str, float]


def choose_trained(
    backbone: Backbone, size: int, largest_stride: int, trainable_stages: int, layer_decay: float
) -> TrainedParameters:
    """Freeze the parameters that are not to be trained, and choose the learning rates of the others.

    Args:
        backbone: The student's backbone; `requires_grad` of its parameters is set in place.
        size: Side of the views in pixels.
        largest_stride: The coarsest level that is trained; layers after it are not.
        trainable_stages: -1: all; else only the last so many stages, and the normalization layers of all stages.
        layer_decay: Factor of the learning rate per stage below the top one.

    Raises:
        ConfigError: There are not so many stages.
    """
    stages = stages_of(backbone, size, largest_stride)
    count = max(stages.values(), default=-1) + 1
    if trainable_stages > count:
        raise ConfigError(
            f"model.trainable_stages is {trainable_stages}; {backbone.name} has {count} stages up to stride "
            f"{largest_stride}: write 0 to {count}, or -1 for all"
        )
    norms = norm_parameters(backbone)
    trained = 0
    total = 0
    factors = {}
    for name, parameter in backbone.named_parameters():
        total += parameter.numel()
        stage = stages.get(name)  # None: no trained level depends on it, so it has no gradient
        if trainable_stages >= 0:
            is_trained = stage is not None and (stage >= count - trainable_stages or name in norms)
            parameter.requires_grad_(is_trained)
        if stage is not None and parameter.requires_grad:
            trained += parameter.numel()
            factor = layer_decay ** (count - 1 - stage)
            if factor != 1:
                factors[name] = factor
    remark = f"training {trained:,} of {total:,} parameters of the backbone"
    if 0 <= trainable_stages < count:
        stage_text = f"the last {trainable_stages} of {count} stages and all" if trainable_stages else "only the"
        remark += f": {stage_text} normalization layers"
    if factors:
        remark += f"; learning rate x {layer_decay:g} per stage below the top one ({count} stages)"
    return TrainedParameters(remark, factors)


def stages_of(backbone: Backbone, size: int, largest_stride: int) -> dict[str, int]:
    """Find the stage of each parameter: 0 for the finest level, and so on.

    Args:
        backbone: The backbone; it is left as it was.
        size: Side of the images to run, in pixels.
        largest_stride: The coarsest level to look at.

    Returns:
        Name of a parameter -> number of its stage. Frozen parameters, and those that no such level depends on, are
        left out.
    """
    parameters = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    names = list(parameters)
    device = next(iter(parameters.values())).device
    stages: dict[str, int] = {}
    with evaluation_mode(backbone), torch.random.fork_rng(devices=[]), torch.enable_grad():
        levels = _levels(backbone, torch.zeros(1, backbone.in_channels, size, size, device=device), largest_stride)
        for stage, features in enumerate(levels):
            if not features.requires_grad:
                continue
            gradients = torch.autograd.grad(
                features.sum(), list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    stages.setdefault(name, stage)
    return stages


def norm_parameters(backbone: nn.Module) -> set[str]:
    """Return the names of the scales and shifts of normalization layers of any kind."""
    names = set()
    for path, module in backbone.named_modules():
        if "norm" in type(module).__name__.lower():
            names |= {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return names


def _levels(backbone: Backbone, images: Tensor, largest_stride: int) -> list[Tensor]:
    """Features from fine to coarse; of a network with a single level, the outputs of its blocks, if it has any."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(output)

    hooks = []
    blocks = getattr(backbone.net, "blocks", None)
    if len(backbone.channels) == 1 and isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        features = backbone(images, largest_stride)
    finally:
        for hook in hooks:
            hook.remove()
    if outputs:
        return [*outputs[:-1], features[largest_stride]]  # what follows the last block belongs to it
    return [features[stride] for stride in sorted(features)]
