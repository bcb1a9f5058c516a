"""Point-level region contrast against the slow loop, closed forms and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.divergence import divergence
from tests.reference import objectives as slow
from torch import Tensor
from torch.nn import functional as F

from plrc.objectives import point_region_contrast, point_region_term, region_features
from plrc.objectives.kernels import Backend

BACKENDS: tuple[Backend, ...] = ("dense", "fused", "chunked")


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def value_and_gradient(
    backend: Backend, query: Tensor, *rest: Tensor, temperature: float = 0.2
) -> tuple[Tensor, Tensor]:
    query = query.clone().requires_grad_()
    loss = point_region_contrast(query, *rest, temperature=temperature, backend=backend)
    loss.backward()
    assert query.grad is not None
    return loss.detach(), query.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_loop(backend: Backend, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    n, m = (int(torch.randint(1, 12, (), generator=draw)) for _ in range(2))
    query, keys = unit(n, 5, seed=seed), unit(m, 5, seed=seed + 100)
    # Odd ids: negative, huge, missing on either side.
    names = torch.tensor([-1, -7, 0, 3, 2**40])
    query_ids, key_ids = (names[torch.randint(0, 5, (size,), generator=draw)] for size in (n, m))
    expected, gradient, entropy, count = slow.points(
        query.tolist(), keys.tolist(), query_ids.tolist(), key_ids.tolist(), 0.2
    )
    loss, got = value_and_gradient(backend, query, keys, query_ids, key_ids)
    torch.testing.assert_close(loss.item(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, torch.tensor(gradient, dtype=torch.float64), rtol=1e-11, atol=1e-13)
    term = point_region_term(query, keys, query_ids, key_ids, 0.2, backend)
    assert term.count.item() == count
    torch.testing.assert_close(divergence(term), expected - entropy, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["fused", "chunked", "auto"])
def test_linear_memory_forms_equal_the_dense_form(backend: Backend, dtype: torch.dtype) -> None:
    query, keys = unit(300, 24, seed=1, dtype=dtype), unit(410, 24, seed=2, dtype=dtype)
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(-1, 20, (710,), generator=draw)
    loss, gradient = value_and_gradient(backend, query, keys, ids[:300], ids[300:])
    expected, dense = value_and_gradient("dense", query, keys, ids[:300], ids[300:])
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert loss.dtype == dtype
    assert abs(loss / expected - 1) < tolerance
    assert (gradient - dense).norm() < tolerance * dense.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_negatives_equal_a_loop_over_images(backend: Backend) -> None:
    query, keys = unit(3, 6, 4), unit(3, 9, 4, seed=1)
    draw = torch.Generator().manual_seed(5)
    # The same ids in every image: only keys of the same image may count.
    query_ids, key_ids = torch.randint(-1, 3, (3, 6), generator=draw), torch.randint(-1, 3, (3, 9), generator=draw)
    term = point_region_term(query, keys, query_ids, key_ids, 0.2, backend)
    single = [point_region_term(*rest, 0.2, "dense") for rest in zip(query, keys, query_ids, key_ids, strict=True)]
    for name in ("total", "count", "entropy"):
        torch.testing.assert_close(getattr(term, name), sum(getattr(t, name) for t in single), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_keys_give_the_log_of_their_number(backend: Backend) -> None:
    query = unit(4, 8)
    keys = unit(1, 8, seed=1).expand(7, 8)
    ids = torch.tensor([0, 0, 1, 2, 2, 2, 2])
    loss, gradient = value_and_gradient(backend, query, keys, torch.tensor([0, 1, 2, 2]), ids)
    assert loss.item() == pytest.approx(math.log(7), abs=1e-12)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_point_regions_are_a_plain_classification(backend: Backend) -> None:
    query, keys = unit(5, 8), unit(5, 8, seed=1)
    order = torch.tensor([3, 1, 4, 0, 2])
    loss, _ = value_and_gradient(backend, query, keys, torch.arange(5), order, temperature=0.1)
    expected = F.cross_entropy(query @ keys.T / 0.1, order.argsort())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [(-1, -1), (-1, 2), (4, -1), (4, 2)])
def test_no_valid_query_is_zero_with_zero_gradient(backend: Backend, ids: tuple[int, int]) -> None:
    query, keys = unit(3, 4), unit(6, 4, seed=1)
    loss, gradient = value_and_gradient(backend, query, keys, torch.full((3,), ids[0]), torch.full((6,), ids[1]))
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    term = point_region_term(query, keys, torch.full((3,), ids[0]), torch.full((6,), ids[1]))
    assert divergence(term) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_left_out_change_nothing(backend: Backend) -> None:
    query, keys = unit(6, 4), unit(5, 4, seed=1)
    ids, key_ids = torch.tensor([0, -1, 1, 9, 1, -1]), torch.tensor([1, 0, 1, -1, 2])
    loss, gradient = value_and_gradient(backend, query, keys, ids, key_ids)
    kept = torch.tensor([0, 2, 4])
    expected, part = value_and_gradient(backend, query[kept], keys, ids[kept], key_ids)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[kept], part)
    assert gradient[[1, 3, 5]].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: Backend) -> None:
    keys, ids = unit(6, 3, seed=1), torch.tensor([0, 1, 1, 2, -1, 0])
    query_ids = torch.tensor([1, 0, -1, 5])
    assert torch.autograd.gradcheck(
        lambda q: point_region_contrast(q, keys, query_ids, ids, 0.3, backend), unit(4, 3).requires_grad_()
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_receive_no_gradient(backend: Backend) -> None:
    query, keys = unit(4, 3).requires_grad_(), unit(4, 3, seed=1).requires_grad_()
    point_region_contrast(query, keys, torch.arange(4), torch.arange(4), backend=backend).backward()
    assert query.grad is not None
    assert keys.grad is None


def test_wrong_inputs_name_what_is_wrong() -> None:
    query, keys, ids = unit(4, 3), unit(5, 3), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="query and keys must be"):
        point_region_contrast(query, unit(5, 2), ids[:4], ids)
    with pytest.raises(ValueError, match="same images"):
        point_region_contrast(unit(2, 4, 3), unit(3, 5, 3), ids.expand(2, 5)[:, :4], ids.expand(3, 5))
    with pytest.raises(ValueError, match="query_regions must be integers of shape"):
        point_region_contrast(query, keys, ids, ids)
    with pytest.raises(ValueError, match="key_regions must be integers"):
        point_region_contrast(query, keys, ids[:4], ids.double())
    with pytest.raises(ValueError, match="at least one key"):
        point_region_contrast(query, keys[:0], ids[:4], ids[:0])
    with pytest.raises(ValueError, match="temperatures must be > 0, got 0"):
        point_region_contrast(query, keys, ids[:4], ids, temperature=0)
    with pytest.raises(ValueError, match="backend must be one of auto, fused, chunked, dense, got 'flash'"):
        point_region_contrast(query, keys, ids[:4], ids, backend="flash")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_regions_as_a_whole_equal_a_slow_loop(backend: Backend) -> None:
    draw = torch.Generator().manual_seed(6)
    query, keys = (torch.randn(1, 12, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    ids = torch.tensor([7, 2, 2, 9, 7, 9, 2, 7, 9, 2, 9, 7])  # four points of each of three regions
    q, k = (F.normalize(region_features(x, ids[None]), dim=-1) for x in (query, keys))
    term = point_region_term(q, k, ids[None], ids[None], 0.2, backend)
    expected = slow.region(query[0].tolist(), keys[0].tolist(), ids.tolist(), 0.2)
    torch.testing.assert_close(divergence(term), expected, rtol=1e-11, atol=1e-12)


def test_gradient_of_a_region_reaches_all_its_points() -> None:
    ids = torch.tensor([[0, 1, 1, -1, 0, 2]])
    draw = torch.Generator().manual_seed(7)
    query = torch.randn(1, 6, 3, generator=draw, dtype=torch.float64).requires_grad_()
    keys = F.normalize(region_features(torch.randn(1, 6, 3, generator=draw, dtype=torch.float64), ids), dim=-1)

    def loss(features: Tensor) -> Tensor:
        pooled = F.normalize(region_features(features, ids), dim=-1)
        return point_region_term(pooled, keys, ids, ids, 0.2).mean

    assert torch.autograd.gradcheck(loss, query)
    loss(query).backward()
    assert query.grad is not None
    assert ((query.grad != 0).any(-1) == (ids >= 0)).all()
