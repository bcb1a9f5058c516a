"""Relational affinity distillation: student and teacher each compare their points with their own reference features.

Shapes: B images, N points, M positions of the reference grid, D features of the student, E features of the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plrc.objectives.affinity import (
    Term,
    check,
    check_options,
    cross_entropy_to_affinities,
    sum_valid,
    without_autocast,
)
from plrc.objectives.kernels import wide


def relational_distillation(
    student: Tensor,
    student_reference: Tensor,
    teacher: Tensor,
    teacher_reference: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.07,
) -> Tensor:
    """Compute the mean over points of the cross-entropy between affinities of two networks of any widths.

    For each point i, the target is T_i, a distribution over the grid positions j, and the student's prediction is P_i:

        T_i = softmax_j(t_i . r_j / teacher_temperature)
        P_i = softmax_j(s_i . m_j / student_temperature)

    This is the relational form of distillation from a frozen teacher (METHOD section 6). In `affinity_distillation`
    both are compared with the teacher's features; here the widths may differ.

    Args:
        student: s in the formula: the student's features at points, of unit length, [B, N, D].
        student_reference: m: features of the student's moving average on a grid of the same image, of unit length,
            [B, M, D].
        teacher: t: the teacher's features at the same physical points, of unit length, [B, N, E].
        teacher_reference: r: the teacher's features at the same grid positions, of unit length, [B, M, E].
        student_temperature: The student's affinities are divided by it.
        teacher_temperature: The teacher's affinities are divided by it; a number or a 0-dim tensor.

    Returns:
        A scalar in float32 or wider. Only `student` receives gradient.

    Raises:
        ValueError: If shapes do not match or a temperature is not above 0.

    Examples:
        >>> import torch
        >>> from plrc.objectives import relational_distillation
        >>> teacher = torch.eye(4)[None]  # one image, four points, and a grid of four positions
        >>> student = torch.eye(3)[None, [0, 1, 2, 2]]  # three features
        >>> print(f"{relational_distillation(student, student, teacher, teacher, 1.0, 1.0):.4f}")
        1.3223
    """
    return relational_distillation_term(
        student, student_reference, teacher, teacher_reference, student_temperature, teacher_temperature
    ).mean


def relational_distillation_term(
    student: Tensor,
    student_reference: Tensor,
    teacher: Tensor,
    teacher_reference: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.07,
) -> Term:
    """Compute `relational_distillation` as a Term, with memory linear in N and M."""
    check_options("auto", student_temperature)
    if not isinstance(teacher_temperature, Tensor):  # a tensor is not checked: reading it waits for the device
        check_options("auto", teacher_temperature)
    _check_shapes(student, student_reference, teacher, teacher_reference)
    with without_autocast(student.device):
        keys = wide(student_reference.detach())
        # zeros in front leave the target's affinities as they are, with keys that both sides share
        zeros = torch.zeros_like(student, dtype=keys.dtype)
        target_query = torch.cat([zeros, wide(teacher.detach()) / teacher_temperature], dim=-1)
        target_keys = torch.cat([keys, wide(teacher_reference.detach())], dim=-1)
        loss, entropy = cross_entropy_to_affinities(
            wide(student), keys, target_query, target_keys, student_temperature, "auto"
        )
        return sum_valid(loss, entropy, torch.ones_like(loss, dtype=torch.bool))


def _check_shapes(student: Tensor, student_reference: Tensor, teacher: Tensor, teacher_reference: Tensor) -> None:
    shapes = {
        "student": student,
        "student_reference": student_reference,
        "teacher": teacher,
        "teacher_reference": teacher_reference,
    }
    for name, tensor in shapes.items():
        check(tensor.ndim == 3, f"{name} must have three dimensions; it is {list(tensor.shape)}")
    images, points, width = student.shape
    positions = student_reference.shape[1]
    check(
        student_reference.shape == (images, positions, width) and positions > 0,
        f"student_reference must be [{images}, M, {width}] with M >= 1; it is {list(student_reference.shape)}",
    )
    teacher_width = teacher.shape[2]
    check(
        teacher.shape[:2] == (images, points),
        f"teacher must be [{images}, {points}, E]; it is {list(teacher.shape)}",
    )
    check(
        teacher_reference.shape == (images, positions, teacher_width),
        f"teacher_reference must be [{images}, {positions}, {teacher_width}]; it is {list(teacher_reference.shape)}",
    )
