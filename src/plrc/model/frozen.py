"""The frozen teacher: a network with given weights that is never updated (METHOD section 6).

It sees whole images. Its features can be reduced to their principal components.

Shapes: B images, S pixels per side, C channels of the network's level, D reduced features, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.data.photometric import normalize as normalize_pixels
from plrc.errors import ConfigError
from plrc.model.backbone import Backbone

IMAGES_AT_ONCE = 4
"""Images per forward pass on a CPU. More are slower, because their activations do not fit into the CPU's cache."""


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
    """Find the directions that preserve the dot products of unit features best.

    These are the eigenvectors of the second moment with the largest eigenvalues. Features are not centered, because
    affinities are dot products of features that are not centered. An eigenvector has no sign of its own: it is chosen
    so that the entry with the largest absolute value is positive.

    Args:
        moment: float64 [C, C], the sum of f f^T over features f of unit length.
        components: Number of directions D; at most C are returned.
    """
    _, vectors = torch.linalg.eigh(moment)  # in columns, by ascending eigenvalue
    basis = vectors.flip(1)[:, :components]
    largest_row = basis.abs().argmax(dim=0, keepdim=True)
    signs = basis.gather(0, largest_row).sign()
    return Reduction((basis * signs).float())


class FrozenTeacher:
    """Turns whole images into features of unit length.

    Args:
        backbone: The network with its weights.
        stride: Stride of the feature level that is used.
        size: Width and height of the images in pixels.
        device: Where it runs.

    Attributes:
        side: Cells per side of the features (h = w).
        reduction: Reduces the features. None, as at first: all features are kept.
        warnings: What the user should check about the weights; empty at first.

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
            images: uint8 [B, 3, S, S]; or features from the cache, in floating point, [B, D, h, w]: they are only
                converted to float32.

        Returns:
            float32 [B, D, h, w]; every cell has unit length.
        """
        if images.is_floating_point():
            return images.float()
        features = self.full_features(images)
        if self.reduction is None:
            return features
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.reduction(features), dim=1)

    @torch.no_grad()
    def full_features(self, images: Tensor) -> Tensor:
        """Compute features that are not reduced: uint8 [B, 3, S, S] -> float32 [B, C, h, w], cells of unit length.

        Mixed precision is off, so that a training step computes the same features as those in the cache.
        """
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self._level(images).float(), dim=1)

    @torch.no_grad()
    def _level(self, images: Tensor) -> Tensor:
        """Run the network: uint8 [B, 3, S, S] -> the level of `stride`, [B, C, h, w], of any length."""
        chunk_size = IMAGES_AT_ONCE if images.device.type == "cpu" else len(images)
        levels = []
        for chunk in images.split(chunk_size):
            features = self.backbone(normalize_pixels(chunk, self.backbone.pixels), self.stride)
            levels.append(features[self.stride])
        return torch.cat(levels)
