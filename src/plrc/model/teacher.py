"""The momentum teacher: a copy of the student that moves only by exponential moving average.

The teacher's BatchNorm buffers come from its own forward passes.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
DROP_RATES = ("p", "prob", "drop_prob")  # names of the rate in modules of PyTorch, torchvision and timm


def make_teacher(student: M) -> M:
    """Copy the student; the parameters of the copy never receive a gradient, and it drops no values and no paths."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    turn_off_dropping(teacher)
    return teacher


def turn_off_dropping(network: nn.Module) -> None:
    """Set the rates of dropout and of drop path (stochastic depth) to 0, so that they do nothing in training mode."""
    for module in network.modules():
        kind = type(module).__name__
        if "Drop" in kind or kind == "StochasticDepth":
            for rate in DROP_RATES:
                if isinstance(getattr(module, rate, None), (int, float)):
                    setattr(module, rate, 0.0)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float, keep: Tensor) -> None:
    """Compute teacher <- momentum * teacher + (1 - momentum) * student for all parameters at once.

    Args:
        teacher: Changed in place.
        student: The network that is trained.
        momentum: Share of the teacher that stays.
        keep: 0-dim bool on the parameters' device; False leaves the teacher as it is (a skipped step) without the host
            having to wait for it.
    """
    teacher_parameters: list[Tensor] = list(teacher.parameters())
    student_parameters: list[Tensor] = list(student.parameters())
    weight = (1.0 - momentum) * keep.to(teacher_parameters[0].dtype)
    if weight.device.type == "cpu":
        torch._foreach_lerp_(teacher_parameters, student_parameters, float(weight))
    else:
        # lerp with a weight on the device would launch one kernel per parameter
        step = torch._foreach_sub(student_parameters, teacher_parameters)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(teacher_parameters, step)
