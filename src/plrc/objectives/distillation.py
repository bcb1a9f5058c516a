"""Point affinity distillation: the student's affinities to a grid of the image learn from those of the teacher.

The running mean of the center belongs to the engine.

Shapes: B images, N points, M positions of the reference grid, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plrc.objectives.affinity import (
    Term,
    check,
    check_options,
    cross_entropy_to_affinities,
    dense_cross_entropy,
    same_dtype,
    sum_valid,
    without_autocast,
)
from plrc.objectives.kernels import Backend, wide


def affinity_distillation(
    student: Tensor,
    teacher: Tensor,
    reference: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.07,
    center: Tensor | None = None,
    valid: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute the mean cross-entropy from the teacher's affinities to the student's:

        T_i = softmax_j((t_i . k_j - c_j) / teacher_temperature), against softmax_j(s_i . k_j / student_temperature)

    This is the affinity distillation of Bai et al., "Point-Level Region Contrast for Object Detection Pre-Training",
    CVPR 2022, section 3.2 (METHOD section 3).

    Args:
        student: s, [B, N, D] the student's features at points, of unit length.
        teacher: t, [B, N, D] the teacher's features at the same physical points in another view, of unit length.
        reference: k, [B, M, D] the teacher's features on a grid of the same image, of unit length.
        student_temperature: The student's affinities are divided by it.
        teacher_temperature: The teacher's affinities are divided by it; a number or a 0-dim tensor.
        center: c, [M] is subtracted from the teacher's affinities; None: nothing is.
        valid: [B, N] bool; other points are left out of the mean. None: all are valid.
        backend: "dense" forms the full matrices (the reference), "fused" needs memory linear in the number of points,
            "auto" is fused, "chunked" is fused without private operators of PyTorch. If all features are half
            precision, a GPU uses its half kernel. The gradient is then a difference of rounded read-outs, which is too
            coarse for a student that is close to its teacher; pass float32 features to avoid that.

    Returns:
        A scalar in float32 or wider; 0 with zero gradient if no point is valid. Only the student receives gradient.

    Raises:
        ValueError: If shapes do not match, the backend is unknown or a temperature is not above 0.

    Example:
        >>> import torch
        >>> from plrc.objectives import affinity_distillation
        >>> teacher = torch.eye(4)[None]  # one image, four points, and a grid of four positions
        >>> same = affinity_distillation(teacher, teacher, teacher, 1.0, 1.0)
        >>> other = affinity_distillation(teacher.flip(1), teacher, teacher, 1.0, 1.0)
        >>> print(f"{same:.4f} {other:.4f}")  # the entropy of the target, and a larger cross-entropy
        1.2683 1.5688
    """
    return affinity_distillation_term(
        student, teacher, reference, student_temperature, teacher_temperature, center, valid, backend
    ).mean


def affinity_distillation_term(
    student: Tensor,
    teacher: Tensor,
    reference: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.07,
    center: Tensor | None = None,
    valid: Tensor | None = None,
    backend: Backend = "auto",
) -> Term:
    """Compute `affinity_distillation` as a Term, without waiting for the device."""
    check_options(backend, student_temperature)
    if not isinstance(teacher_temperature, Tensor):  # to look at the value of a tensor is to wait for the device
        check_options(backend, teacher_temperature)
    _check_shapes(student, teacher, reference, center, valid)
    if valid is None:
        valid = student.new_ones(student.shape[:2], dtype=torch.bool)
    with without_autocast(student.device):
        student, teacher, reference = same_dtype(student, teacher.detach(), reference.detach())
        target_query, target_keys = _centered(teacher, reference, teacher_temperature, center)
        if backend == "dense":
            logits = wide(student) @ wide(reference).mT / student_temperature
            log_targets = (wide(target_query) @ wide(target_keys).mT).log_softmax(-1)
            targets = log_targets.exp()
            return sum_valid(dense_cross_entropy(logits, targets), -(targets * log_targets).sum(-1), valid)
        loss, entropy = cross_entropy_to_affinities(
            student, reference, target_query, target_keys, student_temperature, backend
        )
        return sum_valid(loss, entropy, valid)


@torch.no_grad()
def mean_affinity(teacher: Tensor, reference: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute the mean of the teacher's affinities over queries, which the center follows.

    Several processes join their means by sum(mean * number) / sum(number).

    Args:
        teacher: t, [B, N, D] features at points, of unit length.
        reference: k, [B, M, D] features on a grid of the same image, of unit length.
        valid: [B, N] bool; None: all are valid.

    Returns:
        (mean of t . k_j over the valid queries [M], number of valid queries, 0-dim); both 0 if no query is valid.

    Raises:
        ValueError: If shapes do not match.
    """
    _check_shapes(teacher, teacher, reference, None, valid)
    if valid is None:
        valid = teacher.new_ones(teacher.shape[:2], dtype=torch.bool)
    with without_autocast(teacher.device):
        teacher, reference = same_dtype(wide(teacher), wide(reference))
        count = valid.sum().to(teacher.dtype)
        sums = torch.where(valid[..., None], teacher, 0).sum(1)
        return torch.einsum("bmd,bd->m", reference, sums) / count.clamp(min=1), count


def _centered(
    teacher: Tensor, reference: Tensor, temperature: float | Tensor, center: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Build queries and keys whose plain product is (t . k_j - c_j) / temperature: the center is one more feature."""
    query = wide(teacher)
    if center is not None:
        query = torch.cat([query, query.new_full((*query.shape[:2], 1), -1)], dim=-1)
        column = center.detach().to(reference.dtype).expand(reference.shape[0], -1)
        reference = torch.cat([reference, column[..., None]], dim=-1)
    return (query / temperature).to(reference.dtype), reference


def _check_shapes(
    student: Tensor, teacher: Tensor, reference: Tensor, center: Tensor | None, valid: Tensor | None
) -> None:
    check(
        student.ndim == 3 and student.shape == teacher.shape,
        f"student and teacher must both be [B, N, D]; they are {list(student.shape)} and {list(teacher.shape)}",
    )
    images, points, width = student.shape
    check(
        reference.ndim == 3 and reference.shape[0] == images and reference.shape[2] == width and reference.shape[1] > 0,
        f"reference must be [{images}, M, {width}] with M >= 1; it is {list(reference.shape)}",
    )
    if center is not None:
        check(
            center.shape == reference.shape[1:2],
            f"center must be [{reference.shape[1]}], one number per reference; it is {list(center.shape)}",
        )
    if valid is not None:
        check(
            valid.shape == (images, points) and valid.dtype == torch.bool,
            f"valid must be bool [{images}, {points}]; it is {valid.dtype} {list(valid.shape)}",
        )
