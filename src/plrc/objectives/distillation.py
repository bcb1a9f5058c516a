"""Point affinity distillation: the student's affinities to a lattice of the image learn from the teacher's own.

Layer 3: tensors in, a term out; the centre's running mean belongs to the engine.

Shapes: B images, N points, M lattice positions, D features.
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
    """Mean affinity cross-entropy to the teacher's affinities (METHOD section 3; Bai et al., CVPR 2022):

        T_i = softmax_j((t_i . k_j - c_j) / teacher_temperature), against softmax_j(s_i . k_j / student_temperature)

    student s [B, N, D], teacher t [B, N, D] (the same physical points), reference k [B, M, D] (a lattice of the same
    image, by the teacher), all of unit length: the caller sees to that. center c [M] or None (no centring), valid
    [B, N] bool or None (all): other points are left out of the mean. teacher_temperature may be a 0-dim tensor.
    backend: "dense" forms the full matrices (the reference), "fused" needs memory linear in the points, "auto" is
    fused, "chunked" is fused without private operators of PyTorch. Where all features are half precision, a GPU uses
    its half kernel: the gradient is then a difference of rounded read-outs, too coarse for a student that is close to
    its teacher; pass float32 features to avoid that.
    Returns a scalar in float32 or wider; only the student receives gradient. Raises ValueError where shapes do not
    match.
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
    """`affinity_distillation` as a Term. Never waits for the device."""
    # The value of a tensor is not looked at: that would wait for the device.
    check_options(backend, *(t for t in (student_temperature, teacher_temperature) if not isinstance(t, Tensor)))
    _check_shapes(student, teacher, reference, center, valid)
    if valid is None:
        valid = student.new_ones(student.shape[:2], dtype=torch.bool)
    with without_autocast(student.device):
        student, teacher, reference = same_dtype(student, teacher.detach(), reference.detach())
        scaled, lattice = _centred(teacher, reference, teacher_temperature, center)
        if backend == "dense":
            logits = wide(student) @ wide(reference).mT / student_temperature
            log_targets = (wide(scaled) @ wide(lattice).mT).log_softmax(-1)
            targets = log_targets.exp()
            return sum_valid(dense_cross_entropy(logits, targets), -(targets * log_targets).sum(-1), valid)
        loss, entropy = cross_entropy_to_affinities(student, reference, scaled, lattice, student_temperature, backend)
        return sum_valid(loss, entropy, valid)


@torch.no_grad()
def mean_affinity(teacher: Tensor, reference: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the centre follows: (mean over the valid queries of t . k_j [M], number of valid queries, 0-dim).

    teacher [B, N, D], reference [B, M, D], valid [B, N] bool or None (all). The mean is 0 where no query is valid;
    processes join theirs by sum(mean * number) / sum(number). Raises ValueError where shapes do not match.
    """
    _check_shapes(teacher, teacher, reference, None, valid)
    if valid is None:
        valid = teacher.new_ones(teacher.shape[:2], dtype=torch.bool)
    with without_autocast(teacher.device):
        teacher, reference = same_dtype(wide(teacher), wide(reference))
        count = valid.sum().to(teacher.dtype)
        sums = torch.where(valid[..., None], teacher, 0).sum(1)
        return torch.einsum("bmd,bd->m", reference, sums) / count.clamp(min=1), count


def _centred(
    teacher: Tensor, reference: Tensor, temperature: float | Tensor, center: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Queries and keys whose plain product is (t . k_j - c_j) / temperature: the centre becomes one more feature."""
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
            f"center must be [{reference.shape[1]}], one number a lattice position; it is {list(center.shape)}",
        )
    if valid is not None:
        check(
            valid.shape == (images, points) and valid.dtype == torch.bool,
            f"valid must be bool [{images}, {points}]; it is {valid.dtype} {list(valid.shape)}",
        )
