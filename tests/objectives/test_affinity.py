"""What all objectives share: kernels, precision, memory, no waiting for the device, public names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from plrc import objectives
from plrc.objectives import (
    Term,
    affinity_distillation,
    affinity_distillation_term,
    available_backends,
    image_contrast,
    image_term,
    kernels,
    mean_affinity,
    point_region_contrast,
    point_region_term,
)
from plrc.objectives.affinity import sum_valid

WAITING = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
)


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


class Monitor(TorchDispatchMode):
    """Records the name of each operator and the size of the largest tensor that one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(func.__name__.split(".")[0])
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def watched(call: Callable[[], Tensor]) -> Monitor:
    call().backward()  # the kernels are tried here, once
    with Monitor() as watch:
        call().backward()
    return watch


def region_term(backend: kernels.Backend, images: int, points: int, batched: bool) -> Tensor:
    query, keys = unit(images, points, 8).requires_grad_(), unit(images, points, 8, seed=1)
    ids = torch.arange(images * points).view(images, points) // 4
    inputs = (
        (query, keys, ids, ids) if batched else (query.flatten(0, 1), keys.flatten(0, 1), ids.flatten(), ids.flatten())
    )
    return point_region_term(*inputs, 0.2, backend).mean


def distillation_term(backend: kernels.Backend, points: int, positions: int) -> Tensor:
    student, teacher, reference = unit(1, points, 8).requires_grad_(), unit(1, points, 8), unit(1, positions, 8, seed=1)
    center, valid = torch.zeros(positions), torch.ones(1, points, dtype=torch.bool)
    temperature = torch.tensor(0.05)
    return affinity_distillation_term(student, teacher, reference, 0.1, temperature, center, valid, backend).mean


@pytest.mark.parametrize("backend", ["fused", "chunked"])
def test_memory_is_linear_in_the_points(backend: kernels.Backend) -> None:
    limit = kernels._TILE_ELEMENTS["cpu"]
    points, positions = 2048, 3136
    assert watched(lambda: distillation_term(backend, points, positions)).largest <= limit < points * positions
    assert watched(lambda: region_term(backend, 8, 256, False)).largest <= limit < (8 * 256) ** 2


def test_chunked_form_splits_one_image_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels._TILE_ELEMENTS, "cpu", 2**17)
    assert watched(lambda: distillation_term("chunked", 256, 3136)).largest < 256 * 3136
    assert watched(lambda: distillation_term("dense", 256, 3136)).largest >= 256 * 3136


def test_private_operator_needs_no_matrix_at_all() -> None:
    if available_backends()["flash on cpu"] != kernels.WORKS:
        pytest.skip("this PyTorch has no flash kernel with the log-sum-exp on the CPU")
    assert watched(lambda: region_term("fused", 4, 256, False)).largest <= 4 * 256 * 8
    assert watched(lambda: distillation_term("fused", 256, 300)).largest <= 300 * 9


@pytest.mark.parametrize("backend", ["fused", "chunked"])
def test_never_waits_for_the_device(backend: kernels.Backend) -> None:
    query = unit(6, 8).requires_grad_()
    for call in (
        lambda: region_term(backend, 3, 12, True),
        lambda: region_term(backend, 3, 12, False),
        lambda: distillation_term(backend, 9, 20),
        lambda: image_term(query, unit(6, 8, seed=1), unit(30, 8, seed=2)).mean,
        lambda: mean_affinity(unit(2, 5, 8), unit(2, 7, 8))[0].sum() + query.sum(),
    ):
        assert watched(call).names.isdisjoint(WAITING)


@pytest.mark.parametrize("tile", [1, 40, 200, 10**6])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (2, 130, 7), (2, 300, 3), (3, 0, 4), (0, 3, 4)])
def test_tiles_of_any_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch, tile: int, shape: tuple[int, int, int]
) -> None:
    monkeypatch.setitem(kernels._TILE_ELEMENTS, "cpu", tile)
    images, points, size = shape
    query, keys = unit(images, points, 6, dtype=torch.float64), unit(images, size, 6, seed=1, dtype=torch.float64)
    target, wider = torch.randn(images, points, 8, dtype=torch.float64), F.pad(keys, (0, 2), value=0.5)
    logits, target_logits = query @ keys.mT * 3, target @ wider.mT
    readout, lse = kernels.attend(query, keys, 3.0, "chunked")
    torch.testing.assert_close(readout, logits.softmax(-1) @ keys)
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    loss, entropy, difference = kernels.compare(query, keys, target, wider, 3.0, "chunked")
    targets = target_logits.softmax(-1)
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(-1)).sum(-1))
    torch.testing.assert_close(entropy, -(targets * target_logits.log_softmax(-1)).sum(-1))
    torch.testing.assert_close(difference, (logits.softmax(-1) - targets) @ keys)


def test_two_read_outs_equal_one_of_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    # The form of the private operators, whichever of them this machine has.
    query, keys = unit(2, 50, 6, dtype=torch.float64), unit(2, 70, 6, seed=1, dtype=torch.float64)
    target, wider = 5 * unit(2, 50, 7, seed=2, dtype=torch.float64), F.pad(keys, (0, 1), value=0.3)
    expected = kernels.compare(query, keys, target, wider, 4.0, "chunked")

    def replacement(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return kernels.chunked(query, keys, scale)

    monkeypatch.setattr(kernels, "_kernel", lambda *_: replacement)
    got = kernels.compare(query, keys, target, wider, 4.0, "fused")
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_every_kernel_gives_a_verdict_and_a_wrong_one_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    report = available_backends()
    assert report["chunked on cpu"] == kernels.WORKS
    assert all(text == kernels.WORKS or text.startswith(("fails: ", "no CUDA device")) for text in report.values())
    kind, cpu = torch.float32, torch.device("cpu")

    def missing(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return getattr(torch.ops.aten, "no_such_attention")(query, keys, keys, scale=scale)  # noqa: B009

    def wrong(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        readout, lse = kernels.chunked(query, keys, scale)
        return readout, lse + 1

    def padded(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        readout, lse = kernels.chunked(query, keys, scale)
        return readout, F.pad(lse, (0, 24))

    assert "no_such_attention" in kernels._verdict(missing, cpu, kind)
    assert kernels._verdict(wrong, cpu, kind) == "fails: its log-sum-exp is wrong"
    assert kernels._verdict(padded, cpu, kind).startswith("fails: its log-sum-exp has shape")
    query = unit(1, kernels._FEW_QUERIES + 1, 8)
    for kernel in (missing, wrong, padded):
        monkeypatch.setattr(kernels, "_flash_cpu", kernel)
        assert kernels._kernel(query, 8, "fused") is kernels.chunked


def test_few_queries_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_FEW_QUERIES", 32)
    assert kernels._kernel(unit(2, 16, 8), 8, "fused") is kernels.chunked
    assert kernels._kernel(unit(3, 11, 8), 8, "fused") is not kernels.chunked


def test_the_first_call_leaves_the_random_state_alone() -> None:
    kernels._verdict.cache_clear()
    before = torch.get_rng_state()
    region_term("fused", 2, 8, False)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["dense", "fused", "chunked"])
def test_half_inputs_give_float32_results(backend: kernels.Backend, dtype: torch.dtype) -> None:
    ids = torch.arange(12) % 3
    student, reference = unit(1, 12, 8), unit(1, 12, 8, seed=1)
    calls: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda q, k: point_region_contrast(q[0], k[0], ids, ids, backend=backend),
        lambda q, k: affinity_distillation(q, q.roll(1, 1), k, center=torch.zeros(12), backend=backend),
        lambda q, k: image_contrast(q[0], k[0], k[0]),
    )
    for call in calls:
        half = student.to(dtype).requires_grad_()
        loss = call(half, reference.to(dtype))
        loss.backward()
        assert loss.dtype == torch.float32
        assert half.grad is not None
        assert half.grad.dtype == dtype
        torch.testing.assert_close(loss, call(half.float(), reference.to(dtype).float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", ["dense", "fused", "chunked"])
def test_autocast_changes_nothing(backend: kernels.Backend) -> None:
    ids = torch.arange(12) % 3
    query, keys = unit(1, 12, 8), unit(1, 12, 8, seed=1)
    calls: tuple[Callable[[], Tensor], ...] = (
        lambda: point_region_contrast(query, keys, ids[None], ids[None], backend=backend),
        lambda: affinity_distillation(query, query, keys, backend=backend),
        lambda: image_contrast(query[0], keys[0], keys[0]),
        lambda: mean_affinity(query, keys)[0],
    )
    for call in calls:
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(), expected)


def test_term_joins_by_sums() -> None:
    loss, entropy = torch.tensor([1.0, 2.0, 30.0]), torch.tensor([0.5, 1.0, 9.0])
    term = sum_valid(loss, entropy, torch.tensor([True, True, False]))
    assert (term.total.item(), term.count.item(), term.entropy.item()) == (3.0, 2.0, 1.5)
    assert term.mean.item() == 1.5
    assert isinstance(term, Term)


def test_public_names() -> None:
    assert objectives.__all__ == [
        "TERMS",
        "Backend",
        "Term",
        "affinity_distillation",
        "affinity_distillation_term",
        "available_backends",
        "image_contrast",
        "image_term",
        "mean_affinity",
        "point_region_contrast",
        "point_region_term",
        "region_features",
        "relational_distillation",
        "relational_distillation_term",
        "total_loss",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_the_dense_form_in_float64(dtype: torch.dtype) -> None:
    verdicts = available_backends()
    assert verdicts["chunked on cuda:0"] == kernels.WORKS
    assert verdicts["efficient float32 on cuda:0"] == kernels.WORKS
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    for width in (20, 128, 256):
        inputs = [unit(2, n, width, seed=i).to("cuda", dtype) for i, n in enumerate((70, 70, 150))]
        ids = torch.randint(-1, 9, (2, 220), generator=torch.Generator().manual_seed(0)).cuda()
        for call in (
            lambda s, t, k, b: affinity_distillation(s, t, k, backend=b),
            lambda s, t, k, b: affinity_distillation(s, t, k, center=k.double().mean(2)[0], backend=b),
            lambda s, t, k, b, ids=ids: point_region_contrast(s, k, ids[:, :70], ids[:, 70:], backend=b),
        ):
            results = []
            for kind, backend in ((dtype, "fused"), (torch.float64, "dense")):
                student, *rest = (x.to(kind) for x in inputs)
                student.requires_grad_()
                loss = call(student, *rest, backend)
                results.append((loss.detach().double(), torch.autograd.grad(loss, student)[0].double()))
            (loss, gradient), (expected, dense) = results
            torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
            assert (gradient - dense).norm() < tolerance * dense.norm()
