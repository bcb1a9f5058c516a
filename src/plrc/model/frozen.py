"""The frozen teacher: a network with given weights that is never updated (METHOD section 6).

Its features are those of whole images, reduced to their principal components.

Shapes: B images, S pixels per side, C channels of the network's level, D reduced features, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plrc.data.photometric import normalize
from plrc.errors import ConfigError
from plrc.model.backbone import Backbone

IMAGES_AT_ONCE = 4
"""Images per forward pass on a CPU: the activations of more do not stay in its cache (three times as slow with 32)."""


@dataclass(frozen=True)
class Reduction:
    """A linear map to fewer features.

    Attributes:
        basis: [C, D] orthonormal columns.
    """

    basis: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Reduce features [B, C, h, w] to [B, D, h, w]."""
        return torch.einsum("bchw,cd->bdhw", features, self.basis)


def principal_components(moment: Tensor, components: int) -> Reduction:
    """Find the directions that keep the most of unit features' dot products.

    These are the eigenvectors of the second moment (not centered, because affinities are not), largest first. The sign
    of each makes its largest entry positive.

    Args:
        moment: float64 [C, C], the sum of f f^T over features f of unit length.
        components: Number of directions D; at most C are returned.
    """
    _, vectors = torch.linalg.eigh(moment)
    basis = vectors.flip(1)[:, :components]
    largest = basis.abs().argmax(dim=0, keepdim=True)
    return Reduction((basis * basis.gather(0, largest).sign()).float())


class FrozenTeacher:
    """Whole images -> features of unit length.

    Args:
        backbone: The network with its weights.
        stride: The level whose features are used.
        size: Width and height of the images in pixels.
        device: Where it runs.

    Attributes:
        side: Cells per side of the features (h = w).
        reduction: Applied to the features; None: all features are kept.
        warnings: What the user should check about the weights.

    Raises:
        ConfigError: The backbone has no such level, or cannot take images of this size.
    """

    def __init__(self, backbone: Backbone, stride: int, size: int, device: torch.device) -> None:
        if stride not in backbone.channels:
            strides = ", ".join(map(str, backbone.channels))
            raise ConfigError(f"teacher.stride is {stride}; {backbone.name} has feature levels of strides {strides}")
        backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone = backbone.eval().requires_grad_(False)
        self.stride = stride
        self.reduction: Reduction | None = None
        self.warnings: tuple[str, ...] = ()
        try:
            level = self._level(torch.zeros(1, backbone.in_channels, size, size, dtype=torch.uint8, device=device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(f"teacher.size {size} does not fit {backbone.name}: {error}") from error
        self.side = level.shape[-1]

    @property
    def dim(self) -> int:
        """Number of features D."""
        if self.reduction is None:
            return self.backbone.channels[self.stride]
        return self.reduction.basis.shape[1]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: uint8 [B, 3, S, S]; or features that were computed before, in floating point, [B, D, h, w].

        Returns:
            float32 [B, D, h, w]; every cell has unit length.
        """
        if images.is_floating_point():
            return images.float()
        features = self.full_features(images)
        if self.reduction is not None:
            with torch.autocast(images.device.type, enabled=False):
                features = torch.nn.functional.normalize(self.reduction(features), dim=1)
        return features

    @torch.no_grad()
    def full_features(self, images: Tensor) -> Tensor:
        """Compute features that are not reduced: uint8 [B, 3, S, S] -> float32 [B, C, h, w], cells of unit length.

        Never in mixed precision, so that they are those of the cache.
        """
        with torch.autocast(images.device.type, enabled=False):
            return torch.nn.functional.normalize(self._level(images).float(), dim=1)

    @torch.no_grad()
    def _level(self, images: Tensor) -> Tensor:
        parts = images.split(IMAGES_AT_ONCE) if images.device.type == "cpu" else [images]
        levels = [self.backbone(normalize(part, self.backbone.pixels), self.stride)[self.stride] for part in parts]
        return torch.cat(levels)
