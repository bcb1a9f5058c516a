"""Images and a network -> unit features on a regular grid, compressed to a few bytes per place that keep their cosines.

Shapes: H x W pixels of an image, s the native stride of the network's features, t the stride of the feature grid,
h x w = H / t x W / t its places, C channels, N places of all images together, D components that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from plrc.data.photometric import normalize
from plrc.errors import ConfigError
from plrc.model import Backbone

STRIDES = (2, 4, 8, 16, 32)
_MAX_CODE = 127  # codes run from -127 to 127
_FRAME = 2  # native strides by which an image is mirrored beyond its border
_PAIRS = 20_000  # random pairs of places on which the error is measured
_TAILS = (0.01, 0.99)  # quantiles that become the darkest and the lightest shade of a component's color


@dataclass(frozen=True)
class CompressedFeatures:
    """Compressed features of all images by one network: component d of a place is offset[d] + scale[d] * code.

    The product of the compressed features of two places stands for their cosine; of a place with itself it is 1.

    Attributes:
        codes: [h, w, D] int8 of each image.
        offset: [D] float32.
        scale: [D] float32.
        color: [3, D + 1] float32: red, green and blue in [0, 1] are these weights times the compressed feature, plus
            the last column.
        error_rms: Root mean square error of the cosine of two places of an image, over random pairs.
        error_max: The largest error of these pairs.
    """

    codes: list[NDArray[np.int8]]
    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    color: NDArray[np.float32]
    error_rms: float
    error_max: float

    def affinity(self, image: int, row: int, column: int) -> Tensor:
        """Compute the cosines [h, w] of a place of an image with all its places, as the page shows them."""
        features = _decompress(self.codes[image], self.offset, self.scale)
        cosines = features @ features[row, column]
        cosines[row, column] = 1
        return torch.from_numpy(cosines)

    def colors(self, image: int) -> NDArray[np.uint8]:
        """Return the first three principal components of an image as RGB [h, w, 3]."""
        features = _decompress(self.codes[image], self.offset, self.scale)
        shades = features @ self.color[:, :-1].T + self.color[:, -1]
        return np.asarray(np.rint(255 * np.clip(shades, 0, 1)), dtype=np.uint8)


def fitted_size(height: int, width: int, longest: int, stride: int) -> tuple[int, int]:
    """Return (H, W) of an image scaled to a longer side of about `longest` pixels, both multiples of `stride`."""
    scale = longest / max(height, width)
    fitted_height = max(round(height * scale / stride), 1) * stride
    fitted_width = max(round(width * scale / stride), 1) * stride
    return fitted_height, fitted_width


@torch.no_grad()
def native_stride(backbone: Backbone, level: int) -> int:
    """Return the stride of the features that a backbone computes as `level`; with layer4_stride 1, level 32 has 16.

    Raises:
        ConfigError: The backbone has no such level, or its stride is not one of `STRIDES`.
    """
    if level not in backbone.channels:
        levels = ", ".join(map(str, backbone.channels))
        raise ConfigError(f"{backbone.name} has no features of stride {level}; its levels are {levels}")
    side = 8 * level
    device = next(backbone.parameters()).device
    features = backbone(torch.zeros(1, backbone.in_channels, side, side, device=device), level)[level]
    stride: int = side // features.shape[-1]
    if stride not in STRIDES:
        supported = ", ".join(map(str, STRIDES))
        raise ConfigError(f"{backbone.name} has features of stride {stride}; only {supported} can be shown")
    return stride


@torch.no_grad()
def dense_features(backbone: Backbone, level: int, native: int, image: Tensor, stride: int) -> Tensor:
    """Compute unit features of an image every `stride` pixels.

    Where t is finer than the native stride s, the network sees the image (s / t)^2 times, shifted by multiples of t,
    and the feature grids are interleaved: each feature is computed by the network at its own scale, none is
    interpolated. Where t is coarser, neighbors are averaged. The image is mirrored beyond its border, two native
    strides wide: networks fill up with zeros there, which makes all features near the border alike.

    Args:
        backbone: The network, in evaluation mode.
        level: The level of its features.
        native: The stride s of these features; see `native_stride`.
        image: uint8 [3, H, W]; H and W are multiples of `stride`.
        stride: The stride t of the feature grid, one of `STRIDES`.

    Returns:
        [C, H / t, W / t] on the CPU; place (i, j) lies at pixel ((j + 0.5) t, (i + 0.5) t).
    """
    rows = image.shape[1] // stride
    columns = image.shape[2] // stride
    device = next(backbone.parameters()).device
    pixels = normalize(image[None].to(device), backbone.pixels)
    right = -image.shape[2] % native
    below = -image.shape[1] % native
    frame = _FRAME * native
    margin = frame + max(native - stride, 0) // 2
    can_mirror = margin + max(right, below) < min(image.shape[1:])  # reflection needs an image larger than its margin
    mode = "reflect" if can_mirror else "replicate"
    padded = F.pad(pixels, (margin, margin + right, margin, margin + below), mode=mode)
    shifts = max(native // stride, 1)
    seen_height = image.shape[1] + below + 2 * frame
    seen_width = image.shape[2] + right + 2 * frame
    grid_rows = []
    for down in range(shifts):  # a batch holds the shifts of one row, so that memory stays small
        shifted = []
        for across in range(shifts):
            start = padded[0, :, down * stride :, across * stride :]
            shifted.append(start[:, :seen_height, :seen_width])
        features = backbone(torch.stack(shifted), level)[level].float()
        inner = features[:, :, _FRAME : features.shape[2] - _FRAME, _FRAME : features.shape[3] - _FRAME]
        grid_rows.append(torch.stack(list(inner), dim=-1).flatten(-2))  # [C, H / s, W / t]
    grid = torch.stack(grid_rows, dim=2).flatten(1, 2)  # [C, H / t, W / t]
    if stride > native:
        grid = F.avg_pool2d(grid, stride // native)
    return F.normalize(grid[:, :rows, :columns], dim=0).cpu()


def compress(
    features: Sequence[Tensor], components: int, reference_colors: Sequence[NDArray[np.uint8]] | None = None
) -> CompressedFeatures:
    """Compress the unit features of all images by one network.

    The basis is a principal component analysis without centering, over all images: of all bases it loses least of the
    products. Compressed features are not normalized again: what two places lose is nearly uncorrelated, so products of
    what is kept are nearly right, and products of stretched vectors would be too large. Each component has an offset
    and a scale of its own, since the components of a young network differ much in their range.

    Args:
        features: [C, h, w] of each image.
        components: How many components to keep; at most C are.
        reference_colors: Colors [h, w, 3] of the same images by another network; the sign of each color is chosen to
            resemble them.
    """
    flat = [grid.flatten(1).T for grid in features]  # [h w, C]
    channels = flat[0].shape[1]
    moment = torch.zeros(channels, channels, dtype=torch.float64)  # in float32, eigh fails if there are few places
    for places in flat:
        moment += places.double().T @ places.double()
    basis = torch.linalg.eigh(moment)[1].flip(1)[:, :components].float().contiguous()  # largest eigenvalue first
    kept = torch.cat([places.float() @ basis for places in flat]).numpy()  # [N, D]
    low = kept.min(axis=0)
    high = kept.max(axis=0)
    offset = ((low + high) / 2).astype(np.float32)
    scale = np.maximum((high - low) / (2 * _MAX_CODE), 1e-12).astype(np.float32)
    codes = np.clip(np.rint((kept - offset) / scale), -_MAX_CODE, _MAX_CODE).astype(np.int8)
    ends = np.cumsum([len(places) for places in flat])[:-1]
    image_codes = np.split(codes, ends)
    decompressed = [_decompress(part, offset, scale) for part in image_codes]
    maps = [part.reshape(*grid.shape[1:], -1) for part, grid in zip(image_codes, features, strict=True)]
    reference = None
    if reference_colors is not None:
        reference = np.concatenate([colors.reshape(-1, 3) for colors in reference_colors]).astype(np.float32)
    color = _color_weights(np.concatenate(decompressed), reference)
    error_rms, error_max = _cosine_errors(flat, decompressed)
    return CompressedFeatures(maps, offset, scale, color, error_rms, error_max)


def _decompress(
    codes: NDArray[np.int8], offset: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Codes [..., D] -> compressed features [..., D]."""
    return np.asarray(offset + scale * codes.astype(np.float32), dtype=np.float32)


def _cosine_errors(exact: Sequence[Tensor], compressed: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Return root mean square and largest error of the cosines of random pairs of different places of an image.

    Args:
        exact: Unit features [h w, C] of each image.
        compressed: Compressed features [h w, D] of each image.
    """
    random = np.random.default_rng(0)
    errors = []
    for unit, values in zip(exact, compressed, strict=True):
        first = random.integers(len(values), size=_PAIRS // len(exact) + 1)
        second = random.integers(len(values), size=len(first))
        cosines = (unit[first].float() * unit[second].float()).sum(dim=1).numpy()
        products = (values[first] * values[second]).sum(axis=1)
        errors.append(np.where(first == second, 0, cosines - products))
    all_errors = np.concatenate(errors)
    return float(np.sqrt((all_errors**2).mean())), float(np.abs(all_errors).max())


def _color_weights(values: NDArray[np.float32], reference: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Compressed features [N, D] -> weights [3, D + 1] of the colors of their first three principal components."""
    mean = values.mean(axis=0)
    centered = values - mean
    vectors = np.linalg.eigh(centered.T @ centered)[1][:, ::-1][:, :3].T
    if len(vectors) < 3:  # fewer components than colors
        vectors = np.concatenate([vectors, np.zeros((3 - len(vectors), values.shape[1]), dtype=np.float32)])
    shades = centered @ vectors.T  # [N, 3]
    if reference is not None:
        agreement = ((reference - reference.mean(axis=0)) * shades).sum(axis=0)
        vectors[agreement < 0] *= -1
        shades = centered @ vectors.T
    low, high = np.quantile(shades, _TAILS, axis=0)
    gain = 1 / np.maximum(high - low, 1e-6)
    bias = -(vectors @ mean) - low
    return np.concatenate([vectors * gain[:, None], (bias * gain)[:, None]], axis=1).astype(np.float32)
