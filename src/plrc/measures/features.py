"""How widely unit features are spread: zero spread means that they have collapsed.

Shapes: N points, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def feature_statistics(features: Tensor) -> tuple[float, float]:
    """Measure how widely features are spread.

    Args:
        features: [N, C], of unit length.

    Returns:
        (feature_std, effective_rank). The first is the standard deviation over points, times sqrt(C): 1 if features are
        spread evenly, 0 if all are equal. The second is exp of the entropy of the covariance's normalized eigenvalues:
        1 if features lie on a line. Both are nan if a feature is not finite.
    """
    if len(features) < 2:
        return 0.0, 1.0
    if not bool(features.isfinite().all()):
        return math.nan, math.nan
    if features.device.type == "mps":  # it has neither float64 nor eigenvalues
        features = features.cpu()
    feature_std = float(features.std(dim=0, correction=0).square().mean().sqrt() * features.shape[1] ** 0.5)
    centered = (features - features.mean(dim=0)).double()
    if features.shape[1] > len(features):  # the smaller of both products has the same eigenvalues other than 0
        centered = centered.T
    eigenvalues = torch.linalg.eigvalsh(centered.T @ centered).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum().clamp(min=1e-30)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum()
    return feature_std, float(entropy.exp())
