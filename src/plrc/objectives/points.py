"""Point-level region contrast: points of one view against points of another, positives given by shared regions.

Layer 3: tensors in, a term out.

Shapes: B images (1 where keys are shared by all queries), N queries, M keys, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plrc.objectives.affinity import (
    Term,
    check,
    check_options,
    dense_cross_entropy,
    log_sum_exp,
    same_dtype,
    sum_valid,
    without_autocast,
)
from plrc.objectives.kernels import Backend, wide


def point_region_contrast(
    query: Tensor,
    keys: Tensor,
    query_regions: Tensor,
    key_regions: Tensor,
    temperature: float = 0.2,
    backend: Backend = "auto",
) -> Tensor:
    """Mean affinity cross-entropy with a target uniform over the keys of the same region (METHOD section 3;
    Bai et al., CVPR 2022).

    query [N, D], keys [M, D], query_regions [N] and key_regions [M] integer ids, unique over the batch. Or all four
    with a leading B: then only keys of the same image are positives or negatives. Features are of unit length: the
    caller sees to that. Id -1 is never a positive; queries of id -1, or without a key of their id, are left out of the
    mean (0 with zero gradient where none is left).
    backend: "dense" forms the full matrices (the reference), "fused" needs memory linear in the points, "auto" is
    fused, "chunked" is fused without private operators of PyTorch.
    Returns a scalar in float32 or wider; only the query receives gradient. Raises ValueError where shapes do not match.
    """
    return point_region_term(query, keys, query_regions, key_regions, temperature, backend).mean


def point_region_term(
    query: Tensor,
    keys: Tensor,
    query_regions: Tensor,
    key_regions: Tensor,
    temperature: float = 0.2,
    backend: Backend = "auto",
) -> Term:
    """`point_region_contrast` as a Term. Never waits for the device."""
    check_options(backend, temperature)
    _check_shapes(query, keys, query_regions, key_regions)
    if query.ndim == 2:
        query, keys, query_regions, key_regions = (x[None] for x in (query, keys, query_regions, key_regions))
    with without_autocast(query.device):
        query, keys = same_dtype(query, keys.detach())
        if backend == "dense":
            return _dense(wide(query), wide(keys), query_regions, key_regions, temperature)
        target, positives = _region_means(wide(keys), query_regions, key_regions)
        own = (wide(query) * target).sum(-1) / temperature
        loss = log_sum_exp(query, keys, temperature, backend) - own
        return sum_valid(loss, positives.clamp(min=1).log(), positives > 0)


def region_features(features: Tensor, regions: Tensor) -> Tensor:
    """Each point's feature replaced by the mean of all points of its region: features [B, N, D] as the head gives them
    (not normalized), regions [B, N]; a point of id -1 keeps its own. Normalized and passed to `point_region_contrast`
    this contrasts whole regions, each counted as often as it has points (METHOD section 5, `region`). Gradient flows to
    all points of a region."""
    means, sizes = _region_means(wide(features), regions, regions)
    return torch.where(sizes[..., None] > 0, means, wide(features))


def _dense(query: Tensor, keys: Tensor, query_regions: Tensor, key_regions: Tensor, temperature: float) -> Term:
    same = (query_regions[:, :, None] == key_regions[:, None, :]) & (query_regions != -1)[:, :, None]
    positives = same.sum(-1).to(query.dtype)
    loss = dense_cross_entropy(query @ keys.mT / temperature, same / positives.clamp(min=1)[..., None])
    return sum_valid(loss, positives.clamp(min=1).log(), positives > 0)


def _region_means(keys: Tensor, query_regions: Tensor, key_regions: Tensor) -> tuple[Tensor, Tensor]:
    """The uniform target's read-out: mean [B, N, D] and number [B, N] of the keys [B, M, D] of each query's region.

    Keys are grouped by sorting their ids; number and mean are 0 for queries without positives. Every size is known
    beforehand, so the device is never waited for; every mean is a sum of its own keys alone, so nothing cancels.
    """
    images, size, width = keys.shape
    ordered, order = key_regions.sort(dim=1)
    starts = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    offset = torch.arange(images, device=keys.device)[:, None] * size
    group = starts.cumsum(dim=1) + offset
    sums = keys.new_zeros(images * size, width).index_add_(
        0, torch.empty_like(group).scatter_(1, order, group).flatten(), keys.flatten(0, 1)
    )
    sizes = keys.new_zeros(images * size).index_add_(0, group.flatten(), keys.new_ones(images * size))
    place = torch.searchsorted(ordered, query_regions.contiguous()).clamp(max=size - 1)
    found = (ordered.gather(1, place) == query_regions) & (query_regions != -1)
    group = group.gather(1, place)
    numbers = torch.where(found, sizes[group], 0)
    return torch.where(found[..., None], sums[group] / sizes[group].clamp(min=1)[..., None], 0), numbers


def _check_shapes(query: Tensor, keys: Tensor, query_regions: Tensor, key_regions: Tensor) -> None:
    check(
        query.ndim in (2, 3) and keys.ndim == query.ndim and query.shape[-1] == keys.shape[-1],
        "query and keys must be [N, D] and [M, D], or [B, N, D] and [B, M, D]; "
        f"they are {list(query.shape)} and {list(keys.shape)}",
    )
    check(
        query.ndim == 2 or query.shape[0] == keys.shape[0],
        f"query and keys must hold the same images; they are {list(query.shape)} and {list(keys.shape)}",
    )
    check(keys.shape[-2] > 0, "keys has no row; pass at least one key")
    for name, ids, features in (("query_regions", query_regions, query), ("key_regions", key_regions, keys)):
        check(
            ids.shape == features.shape[:-1] and not ids.is_floating_point(),
            f"{name} must be integers of shape {list(features.shape[:-1])}; it is {ids.dtype} {list(ids.shape)}",
        )
