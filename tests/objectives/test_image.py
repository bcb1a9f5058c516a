"""Image contrast against the slow loop, cross-entropy of the full logits, and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from tests.reference import objectives as slow
from torch import Tensor
from torch.nn import functional as F

from plrc.objectives import image_contrast, image_term


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def value_and_gradient(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> tuple[Tensor, Tensor]:
    query = query.clone().requires_grad_()
    loss = image_contrast(query, key, queue, temperature)
    loss.backward()
    assert query.grad is not None
    return loss.detach(), query.grad


@pytest.mark.parametrize("size", [0, 1, 11])
def test_equals_the_slow_loop(size: int) -> None:
    query, key, queue = unit(4, 5), unit(4, 5, seed=1), unit(size, 5, seed=2)
    expected, gradient, _, count = slow.image(query.tolist(), key.tolist(), queue.tolist(), 0.2)
    loss, got = value_and_gradient(query, key, queue)
    torch.testing.assert_close(loss.item(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, torch.tensor(gradient, dtype=torch.float64), rtol=1e-11, atol=1e-13)
    term = image_term(query, key, queue)
    assert term.count.item() == count == 4
    assert term.entropy.item() == 0


def test_equals_cross_entropy_of_column_zero_in_float32() -> None:
    query, key, queue = (
        unit(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate([(64, 32), (64, 32), (999, 32)])
    )
    loss, gradient = value_and_gradient(query, key, queue)
    plain = query.clone().requires_grad_()
    logits = torch.cat([(plain * key).sum(1, keepdim=True), plain @ queue.T], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(64, dtype=torch.long))
    expected.backward()
    assert plain.grad is not None
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-6)
    assert (gradient - plain.grad).norm() < 1e-5 * plain.grad.norm()


def test_equal_keys_give_the_log_of_their_number() -> None:
    key = unit(1, 6, seed=1)
    loss, gradient = value_and_gradient(unit(3, 6), key.expand(3, 6), key.expand(9, 6))
    assert loss.item() == pytest.approx(math.log(10), abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_a_perfect_match_against_opposites_costs_nothing() -> None:
    key = unit(1, 6, seed=1)
    loss, gradient = value_and_gradient(key, key, -key.expand(50, 6), temperature=0.02)
    assert 0 <= loss.item() < 1e-40
    assert gradient.abs().max() < 1e-38


def test_gradcheck() -> None:
    key, queue = unit(3, 4, seed=1), unit(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda q: image_contrast(q, key, queue, 0.3), unit(3, 4).requires_grad_())


def test_keys_receive_no_gradient() -> None:
    query, key, queue = (unit(3, 4, seed=i).requires_grad_() for i in range(3))
    image_contrast(query, key, queue).backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None


def test_wrong_shapes_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"query and key must both be \[B, D\]"):
        image_contrast(unit(3, 4), unit(2, 4), unit(5, 4))
    with pytest.raises(ValueError, match=r"queue must be \[K, 4\]"):
        image_contrast(unit(3, 4), unit(3, 4), unit(5, 3))
    with pytest.raises(ValueError, match="temperature"):
        image_contrast(unit(3, 4), unit(3, 4), unit(5, 4), -0.1)
