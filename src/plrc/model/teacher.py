"""The momentum teacher: a copy of the student that moves only by exponential moving average.

Layer 2: imports nothing of ours. The teacher's BatchNorm buffers come from its own forward passes.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A copy of the student whose parameters never receive a gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float, keep: Tensor) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for all parameters at once.

    `keep` is a 0-dim bool tensor on the parameters' device: False leaves the teacher as it is (a skipped step), without
    the host having to know.
    """
    mine: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    weight = (1.0 - momentum) * keep.to(mine[0].dtype)
    if weight.device.type == "cpu":
        torch._foreach_lerp_(mine, theirs, float(weight))
    else:
        step = torch._foreach_sub(theirs, mine)  # lerp with a weight on the device would launch a kernel a parameter
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(mine, step)
