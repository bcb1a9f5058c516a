"""A linear classifier of frozen dense features: a quick measure of what they tell about the class of a pixel.

Shapes: n images, C channels, h x w the feature grid, H x W the labels, K classes, N pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.errors import DataError
from plrc.geometry import sample
from plrc.measures.grouping import pixel_centers
from plrc.measures.segmentation import IGNORED, class_iou, confusion_matrix, semantic_metrics
from plrc.rng import generator

_ITERATIONS = 100  # of L-BFGS, at most
_BATCH_SIZE = 32  # images scored at a time


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of single positions: logits = weight @ feature + bias.

    Attributes:
        weight: [K, C].
        bias: [K].
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features [n, C, h, w] -> logits [n, K, h, w]."""
        weight = self.weight.to(features)
        bias = self.bias.to(features)
        return torch.einsum("kc,nchw->nkhw", weight, features) + bias[:, None, None]


@dataclass(frozen=True)
class ProbeResult:
    """Scores of a linear probe, in [0, 1].

    Attributes:
        miou: Mean IoU over the classes that occur in labels or predictions.
        accuracy: Share of the pixels that are classified correctly.
        per_class: IoU of each class; nan for a class that occurs in neither.
    """

    miou: float
    accuracy: float
    per_class: tuple[float, ...]


def fit_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    pixels: int = 32768,
    decay: float = 1e-3,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear probe to frozen features.

    The usual dense probe: a 1 x 1 convolution, logits upsampled bilinearly to the labels, mean cross-entropy. Both maps
    are linear, so upsampled logits equal the logits of upsampled features. The loss is therefore taken at single
    labelled pixels, whose features are read bilinearly. Channels are standardized over these pixels and
    `decay / 2 * |weight|^2` is added. The problem is convex, and full-batch L-BFGS needs no learning rate.

    Args:
        features: [n, C, h, w].
        labels: Classes 0 to `classes` - 1 [n, H, W]; 255 is ignored.
        classes: K.
        pixels: Number of labelled pixels, drawn over all images without replacement.
        decay: Weight decay.
        seed: Seed of the draw of pixels.

    Returns:
        The probe, on the device of `features`.

    Raises:
        DataError: The labels contain other classes, or no labelled pixel.
        ValueError: `features` and `labels` are of different numbers of images.
    """
    _check_labels(features, labels, classes)
    inputs, targets = _labelled_features(features, labels, pixels, seed)
    mean = inputs.mean(dim=0)
    std = inputs.std(dim=0, correction=0).clamp(min=1e-6)
    inputs = (inputs - mean) / std
    weight = torch.zeros(classes, inputs.shape[1], device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, device=inputs.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(inputs @ weight.T + bias, targets) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss.detach()

    solver.step(closure)
    raw_weight = weight.detach() / std  # of features that are not standardized
    return LinearProbe(raw_weight, bias.detach() - raw_weight @ mean)


@torch.no_grad()
def evaluate_probe(probe: LinearProbe, features: Tensor, labels: Tensor) -> ProbeResult:
    """Score a probe at the full resolution of the labels.

    Args:
        probe: The fitted probe.
        features: [n, C, h, w].
        labels: Classes [n, H, W]; 255 is ignored.

    Raises:
        DataError: The labels contain other classes, or no labelled pixel.
        ValueError: `features` and `labels` are of different numbers of images.
    """
    classes = len(probe.bias)
    _check_labels(features, labels, classes)
    counts = np.zeros((classes, classes), dtype=np.int64)
    for batch, truth in zip(torch.split(features, _BATCH_SIZE), torch.split(labels, _BATCH_SIZE), strict=True):
        logits = F.interpolate(probe(batch.float()), truth.shape[1:], mode="bilinear", align_corners=False)
        counts += confusion_matrix(truth.cpu().numpy(), logits.argmax(dim=1).cpu().numpy(), classes)
    scores = semantic_metrics(counts)
    return ProbeResult(scores["mIoU"] / 100, scores["accuracy"] / 100, tuple(class_iou(counts).tolist()))


def _labelled_features(features: Tensor, labels: Tensor, pixels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [N, C] and classes [N] at labelled pixels drawn over all images."""
    images, height, width = labels.shape
    flat = labels.reshape(-1).cpu().numpy()
    candidates = np.flatnonzero(flat != IGNORED)
    rng = generator(seed, "probe")
    chosen = np.sort(rng.choice(candidates, size=min(pixels, len(candidates)), replace=False))
    starts = np.arange(1, images) * height * width  # of the second image and the following ones
    read = []
    for image, numbers in enumerate(np.split(chosen, np.searchsorted(chosen, starts))):
        points = pixel_centers(numbers - image * height * width, height, width)
        read.append(sample(features[image : image + 1], torch.from_numpy(points).to(features.device)[None])[0])
    targets = torch.from_numpy(flat[chosen].astype(np.int64)).to(features.device)
    return torch.cat(read).float(), targets


def _check_labels(features: Tensor, labels: Tensor, classes: int) -> None:
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} feature maps and {len(labels)} label maps; their numbers must be equal")
    used = labels[labels != IGNORED]
    if not len(used):
        raise DataError(f"every pixel of the labels is {IGNORED} (ignored); the probe needs labelled pixels")
    wrong = used[(used < 0) | (used >= classes)]
    if len(wrong):
        raise DataError(f"the labels contain class {int(wrong[0])}; use 0 to {classes - 1}, or {IGNORED} to ignore")
