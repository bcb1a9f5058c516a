"""Point-level region contrast compares points of two views: points of the same region are positives.

Shapes: B images (1 if all queries are compared with all keys), N queries, M keys, D features.
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
    """Average -log softmax(affinities) over the keys of each query's region, and then over the queries.

    This is the point-level contrast of Bai et al., "Point-Level Region Contrast for Object Detection Pre-Training",
    CVPR 2022, section 3.1 (METHOD section 3).

    Args:
        query: The student's features at points, of unit length. [N, D]: each point is compared with all keys;
            [B, N, D]: with the keys of its own image.
        keys: The teacher's features at points of another view, of unit length: [M, D] or [B, M, D].
        query_regions: Integer region ids, [N] or [B, N]. Ids [N] must be unique over the images of the batch. A query
            is left out of the mean if its id is -1 or if no key has its id.
        key_regions: Integer region ids, [M] or [B, M]. A key with id -1 is a negative of every query.
        temperature: Affinities are divided by it.
        backend: "dense" forms the full matrices, for tests. "auto" and "fused" are the same: the fastest kernel that
            works, with memory linear in the number of points. "chunked" is plain PyTorch with linear memory.

    Returns:
        A scalar in float32 or wider; 0 with zero gradient if no query is valid. Only the query receives gradient.

    Raises:
        ValueError: If shapes do not match, the backend is unknown or the temperature is not above 0.

    Examples:
        >>> import torch
        >>> from plrc.objectives import point_region_contrast
        >>> features = torch.eye(4, 8)  # four points with orthogonal features
        >>> regions = torch.tensor([0, 0, 1, -1])
        >>> loss = point_region_contrast(features, features, regions, regions, temperature=1.0)
        >>> print(f"{loss:.4f}")  # two points of region 0: log(e + 3) - 1/2 each; one of region 1: log(e + 3) - 1
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
    """Compute `point_region_contrast` as a Term. The host does not wait for the device."""
    check_options(backend, temperature)
    _check_shapes(query, keys, query_regions, key_regions)
    if query.ndim == 2:  # a leading B of 1
        query = query[None]
        keys = keys[None]
        query_regions = query_regions[None]
        key_regions = key_regions[None]
    with without_autocast(query.device):
        query, keys = same_dtype(query, keys.detach())
        if backend == "dense":
            return _dense(wide(query), wide(keys), query_regions, key_regions, temperature)
        mean_positive, num_positives = _region_means(wide(keys), query_regions, key_regions)
        target_affinity = (wide(query) * mean_positive).sum(-1) / temperature
        loss = log_sum_exp(query, keys, temperature, backend) - target_affinity
        return sum_valid(loss, _uniform_entropy(num_positives), num_positives > 0)


def region_features(features: Tensor, regions: Tensor) -> Tensor:
    """Replace the feature of each point by the mean over all points of its region.

    To contrast whole regions, normalize the result and pass it to `point_region_contrast`; a region then has as much
    weight as it has points (METHOD section 5, `region`).

    Args:
        features: [B, N, D] outputs of the head, not normalized.
        regions: [B, N] integer region ids; a point with id -1 keeps its own feature.

    Returns:
        [B, N, D] in float32 or wider. Gradient flows to all points of a region.
    """
    means, sizes = _region_means(wide(features), regions, regions)
    return torch.where(sizes[..., None] > 0, means, wide(features))


def _dense(query: Tensor, keys: Tensor, query_regions: Tensor, key_regions: Tensor, temperature: float) -> Term:
    is_positive = (query_regions[:, :, None] == key_regions[:, None, :]) & (query_regions != -1)[:, :, None]
    num_positives = is_positive.sum(-1).to(query.dtype)
    targets = is_positive / num_positives.clamp(min=1)[..., None]
    loss = dense_cross_entropy(query @ keys.mT / temperature, targets)
    return sum_valid(loss, _uniform_entropy(num_positives), num_positives > 0)


def _uniform_entropy(num_positives: Tensor) -> Tensor:
    """The entropy of a uniform target over the positives of each query."""
    return num_positives.clamp(min=1).log()


def _region_means(keys: Tensor, query_regions: Tensor, key_regions: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean [B, N, D] and number [B, N] of the positives of each query: the keys of its region.

    Both are 0 for queries without positives. `keys` are [B, M, D]. A group is all keys of the same region of the same
    image. The sums over groups have a row for each of the B * M keys, so that no shape depends on the ids and the host
    does not wait for the device; a group uses one of the rows. Each row sums its own keys only, which keeps the means
    precise.
    """
    num_images, num_keys, width = keys.shape
    # Sort the ids: keys of a group are then neighbors. Number the groups by counting where the sorted id changes.
    sorted_ids, order = key_regions.sort(dim=1)
    id_changes = F.pad(sorted_ids[:, 1:] != sorted_ids[:, :-1], (1, 0))  # False for the first key
    first_row_of_image = torch.arange(num_images, device=keys.device)[:, None] * num_keys
    rows_of_sorted_keys = id_changes.cumsum(dim=1) + first_row_of_image
    rows_of_keys = torch.empty_like(rows_of_sorted_keys).scatter_(1, order, rows_of_sorted_keys)  # undo the sort
    sums = keys.new_zeros(num_images * num_keys, width).index_add_(0, rows_of_keys.flatten(), keys.flatten(0, 1))
    ones = keys.new_ones(num_images * num_keys)
    group_sizes = keys.new_zeros(num_images * num_keys).index_add_(0, rows_of_keys.flatten(), ones)
    # Each query takes the group of the first key with its id. Without such a key it has no positives.
    first_key = torch.searchsorted(sorted_ids, query_regions.contiguous()).clamp(max=num_keys - 1)
    has_positives = (sorted_ids.gather(1, first_key) == query_regions) & (query_regions != -1)
    rows_of_queries = rows_of_sorted_keys.gather(1, first_key)
    means = sums[rows_of_queries] / group_sizes[rows_of_queries].clamp(min=1)[..., None]
    num_positives = torch.where(has_positives, group_sizes[rows_of_queries], 0)
    return torch.where(has_positives[..., None], means, 0), num_positives


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
    check(keys.shape[-2] > 0, "keys is empty; pass at least one key")
    for name, ids, features in (("query_regions", query_regions, query), ("key_regions", key_regions, keys)):
        check(
            ids.shape == features.shape[:-1] and not ids.is_floating_point(),
            f"{name} must be integers of shape {list(features.shape[:-1])}; it is {ids.dtype} {list(ids.shape)}",
        )
