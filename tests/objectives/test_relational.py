"""Relational distillation against a slow loop, and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.objectives import affinity_distillation_term, relational_distillation, relational_distillation_term
from plrc.objectives.target import affinity_target, distillation_to_target


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def softmax(values: list[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / sum(powers) for power in powers]


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def slow_relational(
    student: list[list[float]],
    student_reference: list[list[float]],
    teacher: list[list[float]],
    teacher_reference: list[list[float]],
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[float, float]:
    """(mean cross-entropy, mean entropy of the targets) of one image, term by term."""
    loss = 0.0
    entropy = 0.0
    for s, t in zip(student, teacher, strict=True):
        targets = softmax([dot(t, key) / teacher_temperature for key in teacher_reference])
        predicted = softmax([dot(s, key) / student_temperature for key in student_reference])
        for target, probability in zip(targets, predicted, strict=True):
            loss -= target * math.log(probability)
            entropy -= target * math.log(target)
    return loss / len(student), entropy / len(student)


@pytest.mark.parametrize("widths", [(4, 6), (6, 4), (5, 5)])
def test_equals_the_slow_loop(widths: tuple[int, int]) -> None:
    student = unit(2, 5, widths[0]).requires_grad_()
    inputs = (student, unit(2, 7, widths[0], seed=1), unit(2, 5, widths[1], seed=2), unit(2, 7, widths[1], seed=3))
    slow = [slow_relational(*(tensor[image].tolist() for tensor in inputs), 0.1, 0.07) for image in range(2)]
    term = relational_distillation_term(*inputs, 0.1, 0.07)
    torch.testing.assert_close(term.mean.item(), sum(loss for loss, _ in slow) / 2, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        (term.entropy / term.count).item(), sum(entropy for _, entropy in slow) / 2, rtol=1e-11, atol=1e-12
    )
    assert term.count.item() == 10
    assert torch.autograd.gradcheck(lambda s: relational_distillation(s, *inputs[1:], 0.1, 0.07), student)


def test_is_affinity_distillation_if_both_have_the_same_reference() -> None:
    student, teacher, reference = unit(2, 5, 4), unit(2, 5, 4, seed=1), unit(2, 7, 4, seed=2)
    expected = affinity_distillation_term(student, teacher, reference)
    term = relational_distillation_term(student, reference, teacher, reference)
    torch.testing.assert_close(term.total, expected.total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(term.entropy, expected.entropy, rtol=1e-10, atol=1e-12)


def test_a_target_that_was_computed_before_gives_the_same() -> None:
    student, teacher, reference = unit(2, 5, 4).requires_grad_(), unit(2, 5, 4, seed=1), unit(2, 7, 4, seed=2)
    expected = affinity_distillation_term(student, teacher, reference, 0.1, 0.07)
    term = distillation_to_target(student, affinity_target(teacher, reference, 0.07), 0.1)
    torch.testing.assert_close(term.total, expected.total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(term.entropy, expected.entropy, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(term.total, student)
    (expected_gradient,) = torch.autograd.grad(expected.total, student)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_only_the_student_learns() -> None:
    inputs = [unit(1, 5, 4, seed=seed).requires_grad_() for seed in range(4)]
    relational_distillation(*inputs).backward()
    assert [tensor.grad is not None for tensor in inputs] == [True, False, False, False]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 5, 4), (1, 7, 3), (1, 5, 6), (1, 7, 6)), "student_reference must be"),
        (((1, 5, 4), (1, 7, 4), (1, 6, 6), (1, 7, 6)), "teacher must be"),
        (((1, 5, 4), (1, 7, 4), (1, 5, 6), (1, 8, 6)), "teacher_reference must be"),
        (((5, 4), (1, 7, 4), (1, 5, 6), (1, 7, 6)), "student must have three dimensions"),
    ],
)
def test_shapes_that_do_not_match_are_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relational_distillation(*(torch.ones(shape) for shape in shapes))
