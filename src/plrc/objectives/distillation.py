"""Point affinity distillation: the student learns the teacher's affinities between points and a grid of the same image.

An affinity is the dot product of two unit features. The center is an argument here; the engine updates it.

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
    """Compute the mean over points of the cross-entropy between the teacher's and the student's affinities.

    For each point i, the target is T_i, a distribution over the grid positions j, and the student's prediction is P_i:

        T_i = softmax_j((t_i . k_j - c_j) / teacher_temperature)
        P_i = softmax_j(s_i . k_j / student_temperature)

    This is the affinity distillation of Bai et al., "Point-Level Region Contrast for Object Detection Pre-Training",
    CVPR 2022, section 3.2 (METHOD section 3).

    Args:
        student: s in the formula: the student's features at points, of unit length, [B, N, D].
        teacher: t: the teacher's features at the same physical points in another view, of unit length, [B, N, D].
        reference: k: the teacher's features on a grid of the same image, of unit length, [B, M, D].
        student_temperature: The student's affinities are divided by it.
        teacher_temperature: The teacher's affinities are divided by it; a number or a 0-dim tensor.
        center: c: subtracted from the teacher's affinities, [M]. None: 0.
        valid: Whether a point counts in the mean, bool [B, N]. None: all points count.
        backend: "dense" forms the full matrices, for tests. "auto" and "fused" are the same: the fastest kernel that
            works, with memory linear in the number of points. "chunked" is plain PyTorch with linear memory. If
            all features are half precision, a GPU uses a half-precision kernel, whose gradient is too coarse when the
            student is close to its teacher; pass float32 features to avoid that.

    Returns:
        A scalar in float32 or wider; 0 with zero gradient if no point is valid. Only the student receives gradient.

    Raises:
        ValueError: If shapes do not match, the backend is unknown or a temperature is not above 0.

    Examples:
        >>> import torch
        >>> from plrc.objectives import affinity_distillation
        >>> teacher = torch.eye(4)[None]  # one image, four points, and a grid of four positions
        >>> same = affinity_distillation(teacher, teacher, teacher, 1.0, 1.0)
        >>> other = affinity_distillation(teacher.flip(1), teacher, teacher, 1.0, 1.0)
        >>> print(f"{same:.4f} {other:.4f}")  # student = teacher: the entropy of the target; otherwise more
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
    """Compute `affinity_distillation` as a Term. The host does not wait for the device."""
    check_options(backend, student_temperature)
    if not isinstance(teacher_temperature, Tensor):  # a tensor is not checked: reading it waits for the device
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
            target_entropy = -(targets * log_targets).sum(-1)
            return sum_valid(dense_cross_entropy(logits, targets), target_entropy, valid)
        loss, target_entropy = cross_entropy_to_affinities(
            student, reference, target_query, target_keys, student_temperature, backend
        )
        return sum_valid(loss, target_entropy, valid)


@torch.no_grad()
def mean_affinity(teacher: Tensor, reference: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute the mean of the teacher's affinities over points; the center is the running mean of it.

    The mean over several processes is sum(mean * count) / sum(count).

    Args:
        teacher: t: the teacher's features at points, of unit length, [B, N, D].
        reference: k: the teacher's features on a grid of the same image, of unit length, [B, M, D].
        valid: Whether a point counts in the mean, bool [B, N]. None: all points count.

    Returns:
        (mean of t . k_j over the valid points [M], count of valid points, 0-dim); both 0 if no point is valid.

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
    """Build queries and keys whose dot product is (t . k_j - c_j) / temperature.

    The center is appended to the keys as one more feature, and -1 to the queries.
    """
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
            f"center must be [{reference.shape[1]}], one number per grid position; it is {list(center.shape)}",
        )
    if valid is not None:
        check(
            valid.shape == (images, points) and valid.dtype == torch.bool,
            f"valid must be bool [{images}, {points}]; it is {valid.dtype} {list(valid.shape)}",
        )
