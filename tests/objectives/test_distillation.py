"""Affinity distillation against the slow loop, closed forms and its edge cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.objectives.divergence import divergence
from tests.reference import objectives as slow
from torch import Tensor
from torch.nn import functional as F

from plrc.objectives import affinity_distillation, affinity_distillation_term, mean_affinity
from plrc.objectives.kernels import Backend

BACKENDS: tuple[Backend, ...] = ("dense", "fused", "chunked")


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def value_and_gradient(student: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    loss = affinity_distillation(student, *rest, **options)
    loss.backward()
    assert student.grad is not None
    return loss.detach(), student.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_slow_loop(backend: Backend, centered: bool, masked: bool) -> None:
    student, teacher, reference = unit(2, 5, 4), unit(2, 5, 4, seed=1), unit(2, 7, 4, seed=2)
    draw = torch.Generator().manual_seed(4)
    center = torch.randn(7, generator=draw, dtype=torch.float64) if centered else None
    valid = torch.rand(2, 5, generator=draw) < 0.6 if masked else None
    expected, gradient, entropy, count = slow.distillation(
        student.tolist(),
        teacher.tolist(),
        reference.tolist(),
        0.1,
        0.07,
        None if center is None else center.tolist(),
        None if valid is None else valid.tolist(),
    )
    options = {"center": center, "valid": valid, "backend": backend}
    loss, got = value_and_gradient(student, teacher, reference, **options)
    torch.testing.assert_close(loss.item(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, torch.tensor(gradient, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    term = affinity_distillation_term(student, teacher, reference, **options)  # type: ignore[arg-type]
    assert term.count.item() == count
    torch.testing.assert_close((term.entropy / count).item(), entropy, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(divergence(term), expected - entropy, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["fused", "chunked", "auto"])
@pytest.mark.parametrize("centered", [False, True])
def test_linear_memory_forms_equal_the_dense_form(backend: Backend, dtype: torch.dtype, centered: bool) -> None:
    student, reference = unit(2, 150, 20, dtype=dtype), unit(2, 333, 20, seed=2, dtype=dtype)
    teacher = F.normalize(student + 0.3 * unit(2, 150, 20, seed=1, dtype=dtype), dim=-1)
    center = torch.randn(333, generator=torch.Generator().manual_seed(1)).to(dtype) if centered else None
    loss, gradient = value_and_gradient(student, teacher, reference, center=center, backend=backend)
    expected, dense = value_and_gradient(student, teacher, reference, center=center, backend="dense")
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert loss.dtype == dtype
    assert abs(loss / expected - 1) < tolerance
    assert (gradient - dense).norm() < tolerance * dense.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_student_like_its_teacher_has_nothing_to_learn(backend: Backend) -> None:
    features, reference = unit(2, 6, 8), unit(2, 9, 8, seed=1)
    _, gradient = value_and_gradient(features, features, reference, 0.1, 0.1, backend=backend)
    term = affinity_distillation_term(features, features, reference, 0.1, 0.1, backend=backend)
    assert abs(divergence(term)) < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_reference_points_give_the_log_of_their_number(backend: Backend) -> None:
    reference = unit(1, 1, 8, seed=1).expand(1, 12, 8)
    term = affinity_distillation_term(unit(1, 5, 8), unit(1, 5, 8, seed=2), reference, backend=backend)
    assert term.mean.item() == pytest.approx(math.log(12), abs=1e-12)
    assert term.entropy.item() / 5 == pytest.approx(math.log(12), abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cold_teacher_is_a_one_hot_target(backend: Backend) -> None:
    reference, chosen = torch.eye(6, dtype=torch.float64)[None], torch.tensor([4, 0, 3])
    student = unit(1, 3, 6)
    loss, _ = value_and_gradient(student, reference[:, chosen], reference, 0.1, 0.002, backend=backend)
    torch.testing.assert_close(loss, F.cross_entropy(student[0] @ reference[0].T / 0.1, chosen))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_valid_query_is_zero_with_zero_gradient(backend: Backend) -> None:
    valid = torch.zeros(2, 3, dtype=torch.bool)
    inputs = unit(2, 3, 4), unit(2, 3, 4, seed=1), unit(2, 5, 4, seed=2)
    loss, gradient = value_and_gradient(*inputs, valid=valid, backend=backend)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert divergence(affinity_distillation_term(*inputs, valid=valid, backend=backend)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_center_changes_nothing(backend: Backend) -> None:
    inputs = unit(1, 4, 6), unit(1, 4, 6, seed=1), unit(1, 9, 6, seed=2)
    plain, moved = (
        value_and_gradient(*inputs, center=center, backend=backend)
        for center in (None, torch.full((9,), 0.4, dtype=torch.float64))
    )
    torch.testing.assert_close(moved, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_temperature_may_be_a_tensor(backend: Backend) -> None:
    inputs = unit(1, 4, 6), unit(1, 4, 6, seed=1), unit(1, 9, 6, seed=2)
    number = affinity_distillation(*inputs, teacher_temperature=0.05, backend=backend)
    tensor = torch.tensor(0.05, dtype=torch.float64)
    torch.testing.assert_close(affinity_distillation(*inputs, teacher_temperature=tensor, backend=backend), number)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: Backend) -> None:
    teacher, reference, center = unit(2, 3, 4, seed=1), unit(2, 5, 4, seed=2), unit(5, seed=3)
    valid = torch.tensor([[True, False, True], [True, True, False]])
    assert torch.autograd.gradcheck(
        lambda s: affinity_distillation(s, teacher, reference, 0.2, 0.1, center, valid, backend),
        unit(2, 3, 4).requires_grad_(),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_student_receives_gradient(backend: Backend) -> None:
    inputs = [unit(1, n, 4, seed=i).requires_grad_() for i, n in enumerate((3, 3, 5))]
    center = unit(5, seed=9).requires_grad_()
    affinity_distillation(*inputs, center=center, backend=backend).backward()
    assert [x.grad is not None for x in (*inputs, center)] == [True, False, False, False]


def test_mean_affinity_equals_the_loop_and_joins_over_processes() -> None:
    teacher, reference = unit(3, 4, 5), unit(3, 6, 5, seed=1)
    valid = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    expected, number = slow.mean_affinity(teacher.tolist(), reference.tolist(), valid.tolist())
    mean, count = mean_affinity(teacher, reference, valid)
    assert count.item() == number
    torch.testing.assert_close(mean, torch.tensor(expected, dtype=torch.float64))
    parts = [mean_affinity(teacher[i], reference[i], valid[i]) for i in (slice(1), slice(1, 3))]
    torch.testing.assert_close(sum(m * c for m, c in parts) / sum(c for _, c in parts), mean)
    empty, none = mean_affinity(teacher, reference, torch.zeros_like(valid))
    assert none.item() == 0
    assert empty.abs().max() == 0


def test_wrong_shapes_name_what_is_wrong() -> None:
    student, reference = unit(2, 3, 4), unit(2, 5, 4)
    with pytest.raises(ValueError, match="student and teacher must both be"):
        affinity_distillation(student, unit(2, 4, 4), reference)
    with pytest.raises(ValueError, match=r"reference must be \[2, M, 4\]"):
        affinity_distillation(student, student, unit(1, 5, 4))
    with pytest.raises(ValueError, match=r"center must be \[5\]"):
        affinity_distillation(student, student, reference, center=torch.zeros(4))
    with pytest.raises(ValueError, match=r"valid must be bool \[2, 3\]"):
        affinity_distillation(student, student, reference, valid=torch.ones(2, 3))
    with pytest.raises(ValueError, match="temperatures must be > 0, got 0"):
        affinity_distillation(student, student, reference, teacher_temperature=0)
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'sparse'"):
        affinity_distillation(student, student, reference, backend="sparse")  # type: ignore[arg-type]
