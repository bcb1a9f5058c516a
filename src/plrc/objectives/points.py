"""Point-level region contrast: points of one view against points of another; points of one region are positives.

Shapes: B images (1 where keys are shared by all queries), N queries, M keys, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
    """Compute the mean cross-entropy of each point's affinities to a uniform target over the keys of its region.

    This is the point-level contrast of Bai et al., "Point-Level Region Contrast for Object Detection Pre-Training",
    CVPR 2022, section 3.1 (METHOD section 3).

    Args:
        query: [N, D] the student's features at points, of unit length; or [B, N, D], to compare points with keys of
            their own image only.
        keys: [M, D] or [B, M, D] the teacher's features at points of another view, of unit length.
        query_regions: [N] or [B, N] integer region ids. Without a leading B they must be unique over the batch. A query
            of id -1, or without a key of its id, is left out of the mean.
        key_regions: [M] or [B, M] integer region ids. A key of id -1 is a negative of every query.
        temperature: Affinities are divided by it.
        backend: "dense" forms the full matrices (the reference), "fused" needs memory linear in the number of points,
            "auto" is fused, "chunked" is fused without private operators of PyTorch.

    Returns:
        A scalar in float32 or wider; 0 with zero gradient if no query is valid. Only the query receives gradient.

    Raises:
        ValueError: If shapes do not match, the backend is unknown or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from plrc.objectives import point_region_contrast
        >>> features = torch.eye(4, 8)  # four points with orthogonal features
        >>> regions = torch.tensor([0, 0, 1, -1])
        >>> loss = point_region_contrast(features, features, regions, regions, temperature=1.0)
        >>> print(f"{loss:.4f}")  # the mean of log(e + 3) - 1/2, twice, and log(e + 3) - 1
        1.0770
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
    """Compute `point_region_contrast` as a Term, without waiting for the device."""
    check_options(backend, temperature)
    _check_shapes(query, keys, query_regions, key_regions)
    if query.ndim == 2:
        query, keys, query_regions, key_regions = (x[None] for x in (query, keys, query_regions, key_regions))
    with without_autocast(query.device):
        query, keys = same_dtype(query, keys.detach())
        if backend == "dense":
            return _dense(wide(query), wide(keys), query_regions, key_regions, temperature)
        target, positives = _region_means(wide(keys), query_regions, key_regions)
        target_affinity = (wide(query) * target).sum(-1) / temperature
        loss = log_sum_exp(query, keys, temperature, backend) - target_affinity
        return sum_valid(loss, positives.clamp(min=1).log(), positives > 0)


def region_features(features: Tensor, regions: Tensor) -> Tensor:
    """Replace the feature of each point by the mean over all points of its region.

    Normalized and passed to `point_region_contrast`, this contrasts whole regions, each counted as often as it has
    points (METHOD section 5, `region`).

    Args:
        features: [B, N, D] as the head gives them, not normalized.
        regions: [B, N] integer region ids; a point of id -1 keeps its own feature.

    Returns:
        [B, N, D] in float32 or wider. Gradient flows to all points of a region.
    """
    means, sizes = _region_means(wide(features), regions, regions)
    return torch.where(sizes[..., None] > 0, means, wide(features))


def _dense(query: Tensor, keys: Tensor, query_regions: Tensor, key_regions: Tensor, temperature: float) -> Term:
    same = (query_regions[:, :, None] == key_regions[:, None, :]) & (query_regions != -1)[:, :, None]
    positives = same.sum(-1).to(query.dtype)
    loss = dense_cross_entropy(query @ keys.mT / temperature, same / positives.clamp(min=1)[..., None])
    return sum_valid(loss, positives.clamp(min=1).log(), positives > 0)


def _region_means(keys: Tensor, query_regions: Tensor, key_regions: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the read-out of the uniform target: mean [B, N, D] and number [B, N] of the keys of each query's region.

    Keys [B, M, D] are grouped by sorting their ids; number and mean are 0 for queries without positives. All sizes are
    known in advance, so nothing waits for the device; each mean sums its own keys only, so nothing cancels.
    """
    images, size, width = keys.shape
    # Keys of one region are neighbors in sorted order; all keys of a group get the same row of the sums.
    sorted_ids, order = key_regions.sort(dim=1)
    starts_group = F.pad(sorted_ids[:, 1:] != sorted_ids[:, :-1], (1, 0))
    first_row = torch.arange(images, device=keys.device)[:, None] * size
    sorted_rows = starts_group.cumsum(dim=1) + first_row
    rows = torch.empty_like(sorted_rows).scatter_(1, order, sorted_rows)
    sums = keys.new_zeros(images * size, width).index_add_(0, rows.flatten(), keys.flatten(0, 1))
    sizes = keys.new_zeros(images * size).index_add_(0, sorted_rows.flatten(), keys.new_ones(images * size))
    # Each query takes the group of the first key with its id, if there is one.
    place = torch.searchsorted(sorted_ids, query_regions.contiguous()).clamp(max=size - 1)
    has_positives = (sorted_ids.gather(1, place) == query_regions) & (query_regions != -1)
    query_rows = sorted_rows.gather(1, place)
    means = sums[query_rows] / sizes[query_rows].clamp(min=1)[..., None]
    numbers = torch.where(has_positives, sizes[query_rows], 0)
    return torch.where(has_positives[..., None], means, 0), numbers


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
