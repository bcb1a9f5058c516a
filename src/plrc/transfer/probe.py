"""The quick look at frozen dense features: a linear probe.

Layer 5. Seconds on a CPU. Neither is a detector: they tell in advance what `plrc compare` measures in full.

Shapes: n images, C channels, h x w the features' lattice, H x W the labels, K classes, N points.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc.data.photometric import normalize
from plrc.errors import PlrcError
from plrc.geometry import sample
from plrc.measures.grouping import centers
from plrc.rng import generator
from plrc.transfer.labels.label_maps import IGNORED
from plrc.transfer.metrics import class_iou, confusion, semantic_metrics

_PART = 32  # images that are scored at once


@dataclass(frozen=True)
class Probe:
    """A linear classifier of single positions: logits = weight @ feature + bias, weight [K, C], bias [K]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features [n, C, h, w] -> logits [n, K, h, w]."""
        weight, bias = self.weight.to(features), self.bias.to(features)
        return torch.einsum("kc,nchw->nkhw", weight, features) + bias[:, None, None]


@dataclass(frozen=True)
class ProbeResult:
    """miou: mean IoU over the classes that occur in labels or predictions. accuracy: share of pixels that are right.

    per_class: IoU of each class; nan for one that occurs in neither.
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
    steps: int = 100,
    seed: int = 0,
) -> Probe:
    """Fit a linear probe to frozen features [n, C, h, w] and labels [n, H, W] (0 to classes - 1; 255 is ignored).

    The usual dense probe: a 1 x 1 convolution, logits upsampled bilinearly to the labels, mean cross-entropy. Both maps
    are linear, so upsampled logits equal the logits of upsampled features; hence the loss is taken at `pixels` labelled
    pixels, drawn without replacement over all images, by reading features there. Channels are standardised over these
    pixels and `decay / 2 * |weight|^2` is added; the problem is then convex and full-batch L-BFGS (at most `steps`
    iterations) needs no learning rate. Raises PlrcError for labels that do not fit the
    classes or the images, or are all ignored.
    """
    _check_labels(features, labels, classes)
    found, targets = _labelled_features(features, labels, pixels, seed)
    mean, std = found.mean(dim=0), found.std(dim=0, correction=0).clamp(min=1e-6)
    inputs = (found - mean) / std
    weight = torch.zeros(classes, inputs.shape[1], device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, device=inputs.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(inputs @ weight.T + bias, targets) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss.detach()

    solver.step(closure)
    weight_, bias_ = weight.detach() / std, bias.detach()
    return Probe(weight_, bias_ - weight_ @ mean)


@torch.no_grad()
def evaluate(probe: Probe, features: Tensor, labels: Tensor) -> ProbeResult:
    """Score a probe on features [n, C, h, w] and labels [n, H, W] (255 is ignored) at the labels' full resolution."""
    classes = len(probe.bias)
    _check_labels(features, labels, classes)
    counts = np.zeros((classes, classes), dtype=np.int64)
    for part, truth in zip(torch.split(features, _PART), torch.split(labels, _PART), strict=True):
        logits = F.interpolate(probe(part.float()), truth.shape[1:], mode="bilinear", align_corners=False)
        counts += confusion(truth.cpu().numpy(), logits.argmax(dim=1).cpu().numpy(), classes)
    scores = semantic_metrics(counts)
    return ProbeResult(scores["mIoU"] / 100, scores["accuracy"] / 100, tuple(class_iou(counts).tolist()))


@torch.no_grad()
def extract(backbone: nn.Module, images: Tensor, stride: int, batch: int = 64) -> Tensor:
    """Features [n, C, h, w] (float32, CPU) of uint8 RGB images [n, 3, H, W] from the backbone's level `stride`.

    Computed in evaluation mode on the backbone's device; every module's mode is put back afterwards.
    """
    device = next(backbone.parameters()).device
    parts = []
    with _evaluating(backbone):
        for part in torch.split(images, batch):
            levels = backbone(normalize(part.to(device)))
            if stride not in levels:
                raise PlrcError(f"the backbone has no level of stride {stride}; choose one of {sorted(levels)}")
            parts.append(levels[stride].float().cpu())
    return torch.cat(parts)


def probe(
    backbone: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    stride: int,
    classes: int,
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear probe on the frozen backbone's level `stride` and score it.

    train, test: (images uint8 [n, 3, H, W], labels [n, H, W] with values 0 to classes - 1, 255 ignored).
    """
    fitted = fit_probe(extract(backbone, train[0], stride), train[1], classes, seed=seed)
    return evaluate(fitted, extract(backbone, test[0], stride), test[1])


def _labelled_features(features: Tensor, labels: Tensor, pixels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [N, C] and classes [N] at labelled pixels drawn over all images."""
    count, height, width = labels.shape
    flat = labels.reshape(-1).cpu().numpy()
    candidates = np.flatnonzero(flat != IGNORED)
    rng = generator(seed, "probe")
    chosen = np.sort(rng.choice(candidates, size=min(pixels, len(candidates)), replace=False))
    found = []
    for image, part in enumerate(np.split(chosen, np.searchsorted(chosen, np.arange(1, count) * height * width))):
        where = torch.from_numpy(centers(part - image * height * width, height, width)).to(features.device)
        found.append(sample(features[image : image + 1], where[None])[0])
    return torch.cat(found).float(), torch.from_numpy(flat[chosen].astype(np.int64)).to(features.device)


def _check_labels(features: Tensor, labels: Tensor, classes: int) -> None:
    if len(features) != len(labels):
        raise PlrcError(f"{len(features)} feature maps came with {len(labels)} label maps; give one for each image")
    used = labels[labels != IGNORED]
    if not len(used):
        raise PlrcError(f"every pixel of the labels is {IGNORED} (ignored); give labelled images to the probe")
    wrong = used[(used < 0) | (used >= classes)]
    if len(wrong):
        raise PlrcError(f"the labels hold class {int(wrong[0])}; write 0 to {classes - 1}, or {IGNORED} to ignore")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
