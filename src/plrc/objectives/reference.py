"""Keys of affinity distillation: the teacher's features on a regular grid of the reference view.

Shapes: B images, D features, h x w feature cells, M positions of the reference grid (side x side).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.geometry import cell_centers, sample


def reference_keys(features: Tensor, side: int, mixture: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Read unit keys at the reference grid (METHOD section 3).

    A key is a mixture of the h w feature cells, so its affinity to a query follows from the query's products with the
    cells. With fewer cells than features it is cheaper to give keys as mixtures: affinities are the same and cost
    h w / D of the arithmetic.

    Args:
        features: [B, D, h, w] the teacher's features of the reference view, of any length.
        side: Positions per side of the reference grid.
        mixture: [M, h w] of `cell_mixture`, to give the keys in the basis of the cells; None: plain keys.

    Returns:
        (keys, basis). Without `mixture` keys are [B, M, D] and the basis is None. With it keys are [B, M, h w], and
        queries [B, N, D] must be multiplied by the basis [B, D, h w] before they are compared with keys.
    """
    if mixture is None:
        positions = cell_centers(side, side, features.device).expand(len(features), -1, -1)
        return F.normalize(sample(features, positions), dim=-1), None
    cells = features.float().flatten(2)
    squared_lengths = (mixture @ (cells.mT @ cells) * mixture).sum(dim=-1, keepdim=True)
    return mixture / squared_lengths.clamp(min=1e-24).sqrt(), cells


def cell_mixture(feature_side: int, side: int, device: torch.device) -> Tensor:
    """Compute how bilinear reading at the reference grid mixes the feature cells.

    Args:
        feature_side: Cells per side of the features (h = w).
        side: Positions per side of the reference grid.
        device: Where the result is needed.

    Returns:
        [M, h w] weights; every row sums to 1.
    """
    one_hot = torch.eye(feature_side**2, device=device).unflatten(1, (feature_side, feature_side))
    return sample(one_hot[None], cell_centers(side, side, device)[None])[0]
