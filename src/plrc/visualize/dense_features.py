"""Images and a network -> unit features on a regular lattice, reduced to a few bytes a place that keep their cosines.

Layer 5: imports data, model and below. Reads no file.

Shapes: H x W the image in pixels, s the network's own stride, t the stride that is asked for, h x w = H / t x W / t the
lattice, C channels, N places of all images together, D components that are kept.
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
from plrc.errors import PlrcError
from plrc.model import Backbone

STRIDES = (2, 4, 8, 16, 32)
_LEVELS = 127  # codes run from -127 to 127
_FRAME = 2  # of the network's strides: how wide an image is mirrored beyond its border
_PAIRS = 20_000  # random pairs of places on which the error is measured
_TAILS = (0.01, 0.99)  # quantiles that become the darkest and the lightest shade of a component's color


@dataclass(frozen=True)
class CompressedFeatures:
    """Reduced features of all images by one network: component d of a place is offset[d] + scale[d] * code.

    The product of two places' reduced features stands for their cosine; of a place with itself that is 1 by definition.
    color [3, D + 1]: red, green and blue in [0, 1] are these weights times the reduced feature, plus the last column.
    error_rms, error_max: of the cosine of two places of an image, over random pairs.
    """

    codes: list[NDArray[np.int8]]  # an image: [h, w, D]
    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    color: NDArray[np.float32]
    error_rms: float
    error_max: float

    def affinity(self, image: int, row: int, column: int) -> Tensor:
        """What the page shows: cosine [h, w] of one place of an image with all others."""
        values = _decoded(self.codes[image], self.offset, self.scale)
        cosines = values @ values[row, column]
        cosines[row, column] = 1
        return torch.from_numpy(cosines)

    def colors(self, image: int) -> NDArray[np.uint8]:
        """The first three principal components of an image as RGB [h, w, 3]."""
        shades = _decoded(self.codes[image], self.offset, self.scale) @ self.color[:, :-1].T + self.color[:, -1]
        return np.asarray(np.rint(255 * np.clip(shades, 0, 1)), dtype=np.uint8)


def fitted_size(height: int, width: int, longest: int, stride: int) -> tuple[int, int]:
    """(H, W) of an image scaled to a longer side of about `longest` pixels, both multiples of `stride`."""
    scale = longest / max(height, width)
    return max(round(height * scale / stride), 1) * stride, max(round(width * scale / stride), 1) * stride


@torch.no_grad()
def native_stride(backbone: Backbone, level: int) -> int:
    """The stride of what `backbone` gives as `level`: with layer4_stride 1, level 32 has stride 16."""
    if level not in backbone.channels:
        levels = ", ".join(map(str, backbone.channels))
        raise PlrcError(f"{backbone.name} has no features of stride {level}; its levels are {levels}")
    side, device = 8 * level, next(backbone.parameters()).device
    own: int = side // backbone(torch.zeros(1, 3, side, side, device=device), level)[level].shape[-1]
    if own not in STRIDES:
        raise PlrcError(
            f"{backbone.name} has features of stride {own}; only {', '.join(map(str, STRIDES))} can be shown"
        )
    return own


@torch.no_grad()
def dense_features(backbone: Backbone, level: int, own: int, image: Tensor, stride: int) -> Tensor:
    """Unit features [C, H / t, W / t] of uint8 [3, H, W]; place (i, j) lies at pixel ((j + 0.5) t, (i + 0.5) t).

    H and W are multiples of t = `stride`, `own` is s (see `native_stride`); both of STRIDES. The network is in
    evaluation mode. Where t is finer than the network's own stride s, the image is seen (s / t)^2
    times, shifted by multiples of t, and the lattices are interleaved: every feature is one that the network computes,
    at the scale that it computes it, none is interpolated. Where t is coarser, neighbours are averaged. The image
    is mirrored beyond its border, two of the network's strides wide: without, features near the border resemble each
    other, whatever is to be seen there, because the network fills up with zeros.
    """
    height, width = image.shape[1] // stride, image.shape[2] // stride
    device = next(backbone.parameters()).device
    pixels = normalize(image[None].to(device))
    right, below = -image.shape[2] % own, -image.shape[1] % own
    frame = _FRAME * own
    margin = frame + max(own - stride, 0) // 2
    mirrored = margin + max(right, below) < min(image.shape[1:])  # an image is mirrored once at most
    mode = "reflect" if mirrored else "replicate"
    padded = F.pad(pixels, (margin, margin + right, margin, margin + below), mode=mode)
    times = max(own // stride, 1)
    rows, columns = image.shape[1] + below + 2 * frame, image.shape[2] + right + 2 * frame
    found = []
    for down in range(times):  # one row of shifts at a time: memory stays small
        seen = [padded[0, :, down * stride :, across * stride :][:, :rows, :columns] for across in range(times)]
        parts = backbone(torch.stack(seen), level)[level].float()
        inner = parts[:, :, _FRAME : parts.shape[2] - _FRAME, _FRAME : parts.shape[3] - _FRAME]
        found.append(torch.stack(list(inner), dim=-1).flatten(-2))  # [C, H / s, W / t]
    lattice = torch.stack(found, dim=2).flatten(1, 2)  # [C, H / t, W / t]
    if stride > own:
        lattice = F.avg_pool2d(lattice, stride // own)
    return F.normalize(lattice[:, :height, :width], dim=0).cpu()


def compress(
    features: Sequence[Tensor], width: int, like: Sequence[NDArray[np.uint8]] | None = None
) -> CompressedFeatures:
    """Unit features [C, h, w] of all images by one network -> `CompressedFeatures` with D = min(width, C) components.

    The basis are the first D eigenvectors of the second moment over all images: a principal component analysis without
    centring, which of all bases loses least of the products. Reduced features are not brought to length 1 again: what a
    place loses has little to do with what another one loses, so the products of what is kept are nearly right, while
    those of stretched vectors are too large. Each component has an offset and a scale of its own: where all features
    share a direction, as those of a young network do, that component varies little, and one scale for all would hide
    its differences. `like`: colors [h, w, 3] of the same images by another network; each color takes the sign that
    resembles it.
    """
    flat = [f.flatten(1).T for f in features]  # [h w, C]
    moment = torch.zeros(flat[0].shape[1], flat[0].shape[1])
    for part in flat:
        moment += part.float().T @ part.float()
    basis = torch.linalg.eigh(moment)[1].flip(1)[:, :width].contiguous()  # largest first
    kept = torch.cat([part.float() @ basis for part in flat]).numpy()  # [N, D]
    low, high = kept.min(axis=0), kept.max(axis=0)
    offset = ((low + high) / 2).astype(np.float32)
    scale = np.maximum((high - low) / (2 * _LEVELS), 1e-12).astype(np.float32)
    codes = np.clip(np.rint((kept - offset) / scale), -_LEVELS, _LEVELS).astype(np.int8)
    split = np.split(codes, np.cumsum([len(part) for part in flat])[:-1])
    values = [_decoded(part, offset, scale) for part in split]
    maps = [part.reshape(*f.shape[1:], -1) for part, f in zip(split, features, strict=True)]
    wanted = None if like is None else np.concatenate([c.reshape(-1, 3) for c in like]).astype(np.float32)
    return CompressedFeatures(maps, offset, scale, _colour(np.concatenate(values), wanted), *_error(flat, values))


def _decoded(codes: NDArray[np.int8], offset: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """CompressedFeatures [..., D] -> reduced features [..., D]."""
    return np.asarray(offset + scale * codes.astype(np.float32), dtype=np.float32)


def _error(exact: Sequence[Tensor], reduced: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """(root mean square, largest) difference of the cosines of random pairs of different places of an image, between
    unit features [h w, C] and reduced ones [h w, D]."""
    rng, found = np.random.default_rng(0), []
    for unit, values in zip(exact, reduced, strict=True):
        a = rng.integers(len(values), size=_PAIRS // len(exact) + 1)
        b = rng.integers(len(values), size=len(a))
        cosines = (unit[a].float() * unit[b].float()).sum(dim=1).numpy()
        found.append(np.where(a == b, 0, cosines - (values[a] * values[b]).sum(axis=1)))
    differences = np.concatenate(found)
    return float(np.sqrt((differences**2).mean())), float(np.abs(differences).max())


def _colour(values: NDArray[np.float32], like: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Reduced features [N, D] -> the map [3, D + 1] to the colors of their first three principal components."""
    mean = values.mean(axis=0)
    centred = values - mean
    vectors = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :3].T
    if len(vectors) < 3:  # fewer components than colors
        vectors = np.concatenate([vectors, np.zeros((3 - len(vectors), values.shape[1]), dtype=np.float32)])
    shades = centred @ vectors.T  # [N, 3]
    if like is not None:
        vectors[((like - like.mean(axis=0)) * shades).sum(axis=0) < 0] *= -1
        shades = centred @ vectors.T
    low, high = np.quantile(shades, _TAILS, axis=0)
    gain = 1 / np.maximum(high - low, 1e-6)
    bias = -(vectors @ mean) - low
    return np.concatenate([vectors * gain[:, None], (bias * gain)[:, None]], axis=1).astype(np.float32)
