"""Attention kernels that also return the log-sum-exp: the heavy arithmetic below `affinity.py`, without gradients.

No kernel holds a matrix of N x M: memory is linear in the number of points.

Shapes: B images, N queries, M keys, D features.

Only private operators of PyTorch return the log-sum-exp. Each is tested once per device on a small problem before its
first use; the chunked form in plain PyTorch replaces an operator that is missing or wrong. The chunked form is not the
default on a CPU, because its many small parallel steps are slow when other processes, such as loader workers, share the
cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "fused", "chunked", "dense"]
Attend = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
WORKS = "works"
_HALF = (torch.float16, torch.bfloat16)
_LEAST_ROWS = 128  # fewer rows make matrix products slow
_TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}  # logits held at once
_FEW_QUERIES = 32  # the CPU's flash kernel would compute them in one thread
_FLASH_WIDTH = 256  # the widest features that the flash kernel takes


def wide(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def attend(query: Tensor, keys: Tensor, scale: float, backend: Backend) -> tuple[Tensor, Tensor]:
    """Compute the read-out softmax(scale q k^T) k and the log-sum-exp of its logits.

    Args:
        query: [B, N, D].
        keys: [B, M, D], of the same dtype.
        scale: Factor of the logits.
        backend: Which kernel computes it.

    Returns:
        (read-out [B, N, D], log-sum-exp [B, N] in float32 or wider).
    """
    return _kernel(query, keys.shape[-1], backend)(query, keys, scale)


def compare(
    query: Tensor, keys: Tensor, target_query: Tensor, target_keys: Tensor, scale: float, backend: Backend
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the cross-entropy from T = softmax(target_query target_keys^T) to P = softmax(scale query keys^T).

    Args:
        query: [B, N, D].
        keys: [B, M, D].
        target_query: [B, N, E] with E >= D.
        target_keys: [B, M, E], of which the first D features are those of `keys`.
        scale: Factor of the logits of P.
        backend: Which kernel computes it.

    Returns:
        (cross-entropy [B, N], entropy of T [B, N], read-out (P - T) keys [B, N, D]).
    """
    kernel = _kernel(query, target_keys.shape[-1], backend)
    if kernel is chunked:
        return _chunked_compare(query, keys, target_query, target_keys, scale)
    width = keys.shape[-1]
    readout, lse = kernel(query, keys, scale)
    target_readout, target_lse = (wide(x) for x in kernel(target_query, target_keys, 1.0))
    entropy = target_lse - (wide(target_query) * target_readout).sum(-1)
    target_readout = target_readout[..., :width]
    loss = lse - scale * (wide(query) * target_readout).sum(-1)
    return loss, entropy, wide(readout) - target_readout


def chunked(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute `attend` in plain PyTorch, one tile of queries at a time; half inputs are computed in float32."""
    query, keys = wide(query) * scale, wide(keys)
    readout, lse = torch.empty_like(query), query.new_empty(query.shape[:2])
    shape = _tile(query, keys)
    logits, weights = query.new_empty(shape), query.new_empty(shape)
    for b, n in _tiles(query, shape):
        tile, k = query[b, n], keys[b]
        area = (slice(tile.shape[0]), slice(tile.shape[1]))
        lse[b, n] = _softmax(tile, k, logits[area], weights[area])
        readout[b, n] = weights[area] @ k
    return readout, lse


def _chunked_compare(
    query: Tensor, keys: Tensor, target_query: Tensor, target_keys: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `compare` with one read-out of P - T: one product fewer, and no difference of rounded read-outs."""
    query, keys, target_query, target_keys = wide(query) * scale, wide(keys), wide(target_query), wide(target_keys)
    readout = torch.empty_like(query)
    loss, entropy = query.new_empty(query.shape[:2]), query.new_empty(query.shape[:2])
    shape = _tile(query, keys)
    buffers = [query.new_empty(shape) for _ in range(3)]
    for b, n in _tiles(query, shape):
        tile, k = query[b, n], keys[b]
        logits, weights, target = (x[: tile.shape[0], : tile.shape[1]] for x in buffers)
        target_lse = _softmax(target_query[b, n], target_keys[b], logits, target)
        entropy[b, n] = target_lse - logits.mul_(target).sum(-1)
        lse = _softmax(tile, k, logits, weights)
        loss[b, n] = lse - logits.mul_(target).sum(-1)
        readout[b, n] = weights.sub_(target) @ k
    return loss, entropy, readout


def _softmax(query: Tensor, keys: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    """Fill logits = query keys^T and weights = softmax(logits), both [B, N, M]; return the log-sum-exp [B, N]."""
    torch.bmm(query, keys.mT, out=logits)
    torch.softmax(logits, -1, out=weights)
    return logits.amax(-1) - weights.amax(-1).log()


def _tile(query: Tensor, keys: Tensor) -> tuple[int, int, int]:
    """Choose images, queries and keys of a tile: whole images if they are small, else some queries of one image."""
    (images, points), size = query.shape[:2], keys.shape[1]
    budget = _TILE_ELEMENTS.get(query.device.type, _TILE_ELEMENTS["cpu"])
    rows = max(min(points, max(budget // size, _LEAST_ROWS)), 1)
    whole = max(min(images, budget // (rows * size)), 1)
    return (whole if rows >= points else 1), rows, size


def _tiles(query: Tensor, shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice]]:
    for b in range(0, query.shape[0], shape[0]):
        for n in range(0, query.shape[1], shape[1]):
            yield slice(b, b + shape[0]), slice(n, n + shape[1])


def _flash_cpu(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute `attend` by the CPU's flash kernel, in float32 or float64."""
    q, k = _heads(wide(query), 1), _heads(wide(keys), 1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, scale=scale)
    return _cut(out, lse, query)


def _flash(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute `attend` by the flash kernel: half precision, D <= 256."""
    q, k = _heads(query, 8), _heads(keys, 8)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, k, scale=scale)[:2]
    return _cut(out, lse, query)


def _efficient(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute `attend` by the memory-efficient kernel, in float32."""
    q, k = _heads(query.float(), 4), _heads(keys.float(), 4)
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, k, None, True, scale=scale)[:2]
    return _cut(out, lse, query)


def _heads(x: Tensor, multiple: int) -> Tensor:
    """Add a head dimension, and zeros up to a width that the kernel takes: [B, N, D] -> [B, 1, N, D']."""
    extra = -x.shape[-1] % multiple
    return (torch.nn.functional.pad(x, (0, extra)) if extra else x).contiguous()[:, None]


def _cut(out: Tensor, lse: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the head dimension and the padding of rows and features."""
    return out[:, 0, :, : query.shape[2]], lse[:, 0, : query.shape[1]]


def _kernel(query: Tensor, width: int, backend: Backend) -> Attend:
    """Choose the fastest kernel that works for this device, dtype and width."""
    device, dtype = query.device, query.dtype
    if backend == "chunked" or (device.type == "cpu" and query.shape[:2].numel() <= _FEW_QUERIES):
        return chunked
    full = torch.float64 if dtype == torch.float64 else torch.float32
    if device.type == "cpu" and _verdict(_flash_cpu, device, full) == WORKS:
        return _flash_cpu
    if device.type == "cuda":
        if dtype in _HALF and width <= _FLASH_WIDTH and _verdict(_flash, device, dtype) == WORKS:
            return _flash
        if dtype != torch.float64 and _verdict(_efficient, device, full) == WORKS:
            return _efficient
    return chunked


@cache
def _verdict(kernel: Attend, device: torch.device, dtype: torch.dtype) -> str:
    """Compare a kernel with the formula in float64 on a small problem with awkward sizes: WORKS, or why it does not."""
    # A generator of its own, on the CPU, so that the first call does not change the global random state.
    draw = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(2, n, 20, generator=draw).to(device, dtype) for n in (40, 70))
    try:
        readout, lse = kernel(query, keys, 0.5)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        return f"fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    logits = 0.5 * query.double() @ keys.double().mT
    expected = (logits.softmax(-1) @ keys.double(), logits.logsumexp(-1))
    tolerance = 3e-2 if dtype in _HALF else 2e-3
    for name, got, want in zip(("read-out", "log-sum-exp"), (readout, lse), expected, strict=True):
        if got.shape != want.shape:
            return f"fails: its {name} has shape {tuple(got.shape)} instead of {tuple(want.shape)}"
        if not torch.allclose(got.double(), want, rtol=tolerance, atol=tolerance):
            return f"fails: its {name} is wrong"
    return WORKS


def available_backends() -> dict[str, str]:
    """Test every kernel once on every device (this initializes CUDA): name -> "works", or why it is not used."""
    kernels: list[tuple[str, Attend]] = [("chunked", chunked), ("flash", _flash_cpu)]
    report = {f"{name} on cpu": _verdict(kernel, torch.device("cpu"), torch.float32) for name, kernel in kernels}
    private: list[tuple[str, Attend, torch.dtype]] = [
        ("flash bfloat16", _flash, torch.bfloat16),
        ("flash float16", _flash, torch.float16),
        ("efficient float32", _efficient, torch.float32),
    ]
    if not torch.cuda.is_available():
        return report | {f"{name} on cuda": "no CUDA device" for name, _, _ in private}
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        report |= {f"{name} on {device}": _verdict(kernel, device, dtype) for name, kernel, dtype in private}
        report[f"chunked on {device}"] = _verdict(chunked, device, torch.float32)
    return report
