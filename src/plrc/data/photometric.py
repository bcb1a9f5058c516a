"""Colour, grey and blur of whole batches of views on any device. Never moves a pixel.

Layer 1: imports config. No randomness of its own (uniform numbers come in), no host synchronisation, no loop over
images.

Shapes: N views, S the side of a view, K taps of half a blur kernel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from plrc.config import ViewConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation of red, green and blue in [0, 1]: what torchvision's backbones expect."""

DRAWS = 8
"""Uniform numbers per view: jitter or not, brightness, contrast, saturation, hue, grey or not, blur or not, sigma."""

_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 32  # rows of a blur block: up to 2.7 times as fast on a CPU as depthwise convolution at 64 to 224 pixels
_PART, _PART_CPU = 2**26, 2**21  # values worked on at a time: enough to keep a GPU busy; what a CPU's cache holds


def normalize(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N, 3, H, W]: (x / 255 - MEAN) / STD."""
    constants = _constants(images.device)
    return images.float().mul_(constants.scale).sub_(constants.shift)


def augment(images: Tensor, uniform: Tensor, config: ViewConfig) -> Tensor:
    """Views with their colors jittered, some of them grey or blurred, all normalized.

    uint8 [N, 3, S, S], uniform [N, DRAWS] in [0, 1) -> float32 [N, 3, S, S]. MoCo v2's recipe (METHOD section 4).
    Colour is ONE affine map per view: brightness, contrast about the view's mean grey, saturation, hue, grey, in this
    order. Deviations from torchvision: the order is fixed (there random); hue turns the chroma plane of YIQ, which
    keeps luma (there HSV's hue is shifted, which keeps the largest channel); values are clamped to [0, 1] once, after
    the map (there after each step, to whole 8-bit levels); the blur mirrors the view at its border, which keeps its
    mean (there at the outermost pixels' centers), with its kernel cut at 3 sigma's upper bound.
    """
    out = torch.empty(images.shape, device=images.device)
    part = max(1, (_PART_CPU if images.device.type == "cpu" else _PART) // images.shape[1:].numel())
    with torch.autocast(images.device.type, enabled=False):
        for some, draws, result in zip(images.split(part), uniform.split(part), out.split(part), strict=True):
            _augment_part(some, draws, config, result)
    return out


def _augment_part(images: Tensor, uniform: Tensor, config: ViewConfig, out: Tensor) -> None:
    """`augment` into `out`, with one more float copy of the views as scratch."""
    constants = _constants(images.device)
    planes = images.to(torch.float32, memory_format=torch.contiguous_format)
    matrix, offset = _colour_maps(planes.mean(dim=(2, 3)) / 255, uniform, config)
    matrix, offset = matrix / (255 * constants.std), (offset - constants.mean) / constants.std
    torch.baddbmm(offset, matrix, planes.flatten(2), out=out.flatten(2))
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        out[:, channel].clamp_(-mean / std, (1 - mean) / std)
    if config.blur_prob > 0 and images.device.type == "cpu":  # nothing to wait for: the others can be left out
        blurred = (uniform[:, 6] < config.blur_prob).nonzero()[:, 0]
        some = out[blurred]
        _blur(some, planes[: len(blurred)], _kernels(uniform[blurred, 6:], config))
        out[blurred] = some
    elif config.blur_prob > 0:
        _blur(out, planes, _kernels(uniform[:, 6:], config))


class _Constants:
    """Fixed numbers on one device (made once: a copy from the host would wait for the device). Columns are [3, 1]."""

    def __init__(self, device: torch.device) -> None:
        self.mean = torch.tensor(MEAN, device=device)[:, None]
        self.std = torch.tensor(STD, device=device)[:, None]
        self.scale = (1 / (255 * self.std))[:, :, None]
        self.shift = (self.mean / self.std)[:, :, None]
        to_yiq = torch.tensor(
            [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64
        )
        quarter_turn = torch.tensor([[0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
        self.luma = torch.tensor(_LUMA, device=device)
        self.gray = self.luma.expand(3, 3)
        self.chroma = torch.eye(3, device=device) - self.gray
        self.turned = (torch.linalg.inv(to_yiq) @ quarter_turn @ to_yiq).float().to(device)


@lru_cache
def _constants(device: torch.device) -> _Constants:
    return _Constants(device)


def _colour_maps(mean_rgb: Tensor, uniform: Tensor, config: ViewConfig) -> tuple[Tensor, Tensor]:
    """Mean colors [N, 3], uniform [N, DRAWS] -> matrices [N, 3, 3] and offsets [N, 1, 1] (colors in [0, 1]).

    A color is its grey plus its chroma. Brightness b and contrast c scale both; saturation s scales the chroma, hue
    turns it by the angle h, and grey is s = 0:
        b c (grey + s cos(h) chroma + s sin(h) turned chroma) + (1 - c) b mean grey
    """
    constants = _constants(uniform.device)
    jitter = (uniform[:, 0:1] < config.jitter_prob) * (2 * uniform[:, 1:5] - 1)
    brightness = 1 + config.brightness * jitter[:, 0]
    contrast = 1 + config.contrast * jitter[:, 1]
    saturation = (1 + config.saturation * jitter[:, 2]) * (uniform[:, 5] >= config.gray_prob)
    angle = 2 * math.pi * config.hue * jitter[:, 3]
    cosine, sine = (saturation * angle.cos())[:, None, None], (saturation * angle.sin())[:, None, None]
    hue = constants.gray + cosine * constants.chroma + sine * constants.turned
    mean_grey = (mean_rgb * constants.luma).sum(dim=1)
    offset = (1 - contrast) * brightness * mean_grey
    return (brightness * contrast)[:, None, None] * hue, offset[:, None, None]


def _kernels(uniform: Tensor, config: ViewConfig) -> Tensor:
    """Gaussian weights at distances 0 .. ceil(3 max sigma), [N, K]; 1, 0, 0 ... where a view is not blurred."""
    low, high = config.blur_sigma
    distance = torch.arange(math.ceil(3 * high) + 1, device=uniform.device)
    sigma = low + (high - low) * uniform[:, 1:2]
    gaussian = torch.exp(-0.5 * (distance / sigma) ** 2)
    return torch.where(uniform[:, 0:1] < config.blur_prob, gaussian, (distance == 0).float())


def _blur(images: Tensor, scratch: Tensor, kernels: Tensor) -> None:
    """Separable blur of images [N, 3, S, S] by kernels [N, K], in place.

    One direction is a product with a banded S x S matrix per view, computed by blocks of its rows, so that its empty
    part costs nothing. Entry (i, j) is the weight at distance |i - j|, plus those of j's mirror images in both borders.
    """
    rows, columns = images.flatten(1, 2), scratch.flatten(1, 2)
    bands = []
    for block in _blocks(images.shape[-1], kernels.shape[1] - 1, images.device):
        band = (kernels @ block.counts).view(-1, block.end - block.start, block.high - block.low)
        bands.append((block, band / band.sum(dim=2, keepdim=True)))
    for block, band in bands:
        torch.bmm(rows[:, :, block.low : block.high], band.mT, out=columns[:, :, block.start : block.end])
    for block, band in bands:
        for channel in range(3):
            source, target = scratch[:, channel, block.low : block.high], images[:, channel, block.start : block.end]
            torch.bmm(band, source, out=target)


class _Block(NamedTuple):
    """Rows start..end of a blur matrix; what differs from 0 lies in columns low..high."""

    start: int
    end: int
    low: int
    high: int
    counts: Tensor  # [K, (end - start) * (high - low)]: how often an entry takes the weight at each distance


@lru_cache(maxsize=4)
def _blocks(size: int, reach: int, device: torch.device) -> tuple[_Block, ...]:
    distances = torch.arange(reach + 1, device=device)[:, None, None]
    position = torch.arange(size, device=device)
    blocks = []
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        low, high = max(start - reach, 0), min(end + reach, size)
        i, j = position[start:end, None], position[None, low:high]
        direct, before, after = (i - j).abs(), i + j + 1, 2 * size - 1 - i - j
        counts = (direct == distances).float() + (before == distances).float() + (after == distances).float()
        blocks.append(_Block(start, end, low, high, counts.flatten(1)))
    return tuple(blocks)
