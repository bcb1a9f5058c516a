"""Color jitter, grayscale and blur of whole batches of views on any device. No pixel is moved.

Views of another number of channels than three have no hue, saturation or gray: brightness and contrast of each channel
are jittered by numbers of its own, and they are blurred as RGB is.

There is no randomness (uniform numbers are an argument), no host synchronization, and no loop over images.

Shapes: V views of an image, N views, C channels (3: RGB), S the side of a view, K taps of half a blur kernel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from plrc.config import ViewConfig
from plrc.data.views import QUERY
from plrc.pixels import RGB_CHANNELS, PixelStatistics

_RGB_DRAWS = 8  # jitter or not, brightness, contrast, saturation, hue, gray or not, blur or not, sigma
_SHARED_DRAWS = 3  # of other views: jitter or not, blur or not, sigma

_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 32  # rows of a blur matrix that are multiplied at a time; see `_blur`
_CHUNK_GPU = 2**26  # color values per chunk of views: enough to keep a GPU busy
_CHUNK_CPU = 2**21  # color values per chunk of views: fits into the cache of a CPU


def color_draws(channels: int) -> int:
    """Uniform numbers in [0, 1) that `augment` needs for a view of so many channels.

    RGB: jitter or not, brightness, contrast, saturation, hue, gray or not, blur or not, sigma. Others: jitter or not,
    brightness of each channel, contrast of each channel, blur or not, sigma.
    """
    return _RGB_DRAWS if channels == RGB_CHANNELS else _SHARED_DRAWS + 2 * channels


def normalize(images: Tensor, statistics: PixelStatistics) -> Tensor:
    """Normalize images as a backbone expects them.

    Args:
        images: uint8 [N, C, H, W].
        statistics: What the backbone is trained with (`Backbone.pixels`).

    Returns:
        (images / 255 - mean) / std, float32 [N, C, H, W].
    """
    constants = _constants(images.device, statistics)
    return images.float().mul_(constants.scale).sub_(constants.shift)


def augment_views(images: Tensor, uniform: Tensor, config: ViewConfig, statistics: PixelStatistics) -> Tensor:
    """Augment and normalize all views of a batch; without `views.teacher_color`, the teacher's are only normalized.

    Args:
        images: Views, uint8 [V, N, C, S, S], the student's (QUERY) first.
        uniform: Uniform random numbers in [0, 1), [V, N, color_draws(C)].
        config: The settings of views.
        statistics: What views are normalized with.

    Returns:
        Normalized views, float32 [V, N, C, S, S].
    """
    if config.teacher_color or len(images) == 1:  # a single view is the student's
        views = augment(images.flatten(0, 1), uniform.flatten(0, 1), config, statistics)
    else:
        student = augment(images[QUERY], uniform[QUERY], config, statistics)
        teacher = normalize(images[QUERY + 1 :].flatten(0, 1), statistics)
        views = torch.cat([student, teacher])
    result: Tensor = views.unflatten(0, images.shape[:2])
    return result


def augment(images: Tensor, uniform: Tensor, config: ViewConfig, statistics: PixelStatistics) -> Tensor:
    """Jitter the colors of views, make some of them gray or blurred, and normalize all: MoCo v2's recipe.

    The order is brightness, contrast (about the view's mean gray), saturation, hue, gray. Together they are one affine
    map of the colors per view (METHOD section 4). Differences from torchvision: the order is fixed; hue rotates the
    chroma plane of YIQ, which keeps the luma; values are clamped to [0, 1] once, after the map; the blur mirrors the
    view at its border, which keeps its mean, and its kernel is cut at 3 times the largest sigma. Views that are not RGB
    have brightness and contrast only, channel by channel, about the channel's mean.

    Args:
        images: Views, uint8 [N, C, S, S].
        uniform: Uniform random numbers in [0, 1), [N, color_draws(C)].
        config: The settings of views.
        statistics: What views are normalized with.

    Returns:
        Normalized views, float32 [N, C, S, S].
    """
    out = torch.empty(images.shape, device=images.device)
    chunk_values = _CHUNK_CPU if images.device.type == "cpu" else _CHUNK_GPU
    num_views = max(1, chunk_values // images.shape[1:].numel())
    chunks = zip(images.split(num_views), uniform.split(num_views), out.split(num_views), strict=True)
    with torch.autocast(images.device.type, enabled=False):
        for chunk, draws, result in chunks:
            _augment_chunk(chunk, draws, config, statistics, result)
    return out


def _augment_chunk(
    images: Tensor, uniform: Tensor, config: ViewConfig, statistics: PixelStatistics, out: Tensor
) -> None:
    """Write the augmented and normalized views into `out`."""
    constants = _constants(images.device, statistics)
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    means = pixels.mean(dim=(2, 3)) / 255
    # the map from pixels to normalized colors: / 255, then the map of the colors, then - mean, / std
    if images.shape[1] == RGB_CHANNELS:
        matrix, offset = _color_maps(means, uniform, config, constants)
        matrix = matrix / (255 * constants.std)
        offset = (offset - constants.mean) / constants.std
        torch.baddbmm(offset, matrix, pixels.flatten(2), out=out.flatten(2))
    else:
        factor, offset = _channel_maps(means, uniform, config)
        factor = factor / (255 * constants.std)
        offset = (offset - constants.mean) / constants.std
        torch.addcmul(offset, factor, pixels.flatten(2), out=out.flatten(2))
    for channel, (mean, std) in enumerate(zip(statistics.mean, statistics.std, strict=True)):
        out[:, channel].clamp_(-mean / std, (1 - mean) / std)  # colors in [0, 1]
    if config.blur_prob == 0:
        return
    scratch = pixels  # not needed anymore, so its memory is used again
    blur_uniform = uniform[:, -2:]  # blur or not, sigma
    if images.device.type == "cpu":
        chosen = (blur_uniform[:, 0] < config.blur_prob).nonzero()[:, 0]
        blurred = out[chosen]
        _blur(blurred, scratch[: len(chosen)], _kernels(blur_uniform[chosen], config))
        out[chosen] = blurred
    else:  # `nonzero` would wait for the device: all views are blurred, some of them by a kernel that changes nothing
        _blur(out, scratch, _kernels(blur_uniform, config))


class _Constants:
    """Constants on a device, created once because a copy from the host waits for it. `mean` and `std` are [C, 1]."""

    def __init__(self, device: torch.device, statistics: PixelStatistics) -> None:
        self.mean = torch.tensor(statistics.mean, device=device)[:, None]
        self.std = torch.tensor(statistics.std, device=device)[:, None]
        self.scale = (1 / (255 * self.std))[:, :, None]
        self.shift = (self.mean / self.std)[:, :, None]
        to_yiq = torch.tensor(
            [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64
        )
        quarter_turn = torch.tensor([[0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
        self.luma = torch.tensor(_LUMA, device=device)
        self.gray = self.luma.expand(3, 3)
        self.chroma = torch.eye(3, device=device) - self.gray
        self.rotated_chroma = (torch.linalg.inv(to_yiq) @ quarter_turn @ to_yiq).float().to(device)


@lru_cache
def _constants(device: torch.device, statistics: PixelStatistics) -> _Constants:
    return _Constants(device, statistics)


def _color_maps(mean_rgb: Tensor, uniform: Tensor, config: ViewConfig, constants: _Constants) -> tuple[Tensor, Tensor]:
    """Return the affine maps of colors in [0, 1] of views with these means: matrices [N, 3, 3], offsets [N, 1, 1].

    A color is its gray plus its chroma. Brightness b and contrast c scale both; saturation s scales the chroma, hue
    rotates it by the angle h, and grayscale is s = 0:
        b c (gray + s cos(h) chroma + s sin(h) rotated chroma) + (1 - c) b mean gray
    """
    jitter = (uniform[:, 0:1] < config.jitter_prob) * (2 * uniform[:, 1:5] - 1)
    brightness = 1 + config.brightness * jitter[:, 0]
    contrast = 1 + config.contrast * jitter[:, 1]
    saturation = (1 + config.saturation * jitter[:, 2]) * (uniform[:, 5] >= config.gray_prob)
    angle = 2 * math.pi * config.hue * jitter[:, 3]
    cosine = (saturation * angle.cos())[:, None, None]
    sine = (saturation * angle.sin())[:, None, None]
    hue = constants.gray + cosine * constants.chroma + sine * constants.rotated_chroma
    mean_gray = (mean_rgb * constants.luma).sum(dim=1)
    offset = (1 - contrast) * brightness * mean_gray
    return (brightness * contrast)[:, None, None] * hue, offset[:, None, None]


def _channel_maps(means: Tensor, uniform: Tensor, config: ViewConfig) -> tuple[Tensor, Tensor]:
    """Return the affine maps of channels in [0, 1] of views with these means [N, C]: factors and offsets [N, C, 1].

    Brightness b and contrast c of a channel: b c value + (1 - c) b mean.
    """
    channels = means.shape[1]
    jitter = (uniform[:, 0:1] < config.jitter_prob) * (2 * uniform[:, 1 : 1 + 2 * channels] - 1)
    brightness = 1 + config.brightness * jitter[:, :channels]
    contrast = 1 + config.contrast * jitter[:, channels:]
    offset = (1 - contrast) * brightness * means
    return (brightness * contrast)[:, :, None], offset[:, :, None]


def _kernels(blur_uniform: Tensor, config: ViewConfig) -> Tensor:
    """Return Gaussian weights at distances 0 .. ceil(3 max sigma), [N, K]; 1, 0, 0 ... for a view without blur."""
    low, high = config.blur_sigma
    distance = torch.arange(math.ceil(3 * high) + 1, device=blur_uniform.device)
    sigma = low + (high - low) * blur_uniform[:, 1:2]
    gaussian = torch.exp(-0.5 * (distance / sigma) ** 2)
    return torch.where(blur_uniform[:, 0:1] < config.blur_prob, gaussian, (distance == 0).float())


def _blur(images: Tensor, scratch: Tensor, kernels: Tensor) -> None:
    """Blur images [N, C, S, S] by separable kernels [N, K], in place.

    Each view is multiplied by a banded S x S matrix from the right (along the rows, into `scratch`), then from the left
    (along the columns, back into `images`). Only blocks of the matrix that are not 0 are multiplied. Entry (i, j) is
    the weight at distance |i - j| plus the weights at the distances from i to the mirror images of j in both borders.
    """
    all_rows = images.flatten(1, 2)
    all_rows_blurred = scratch.flatten(1, 2)
    bands: list[tuple[_Block, Tensor]] = []
    for block in _blocks(images.shape[-1], kernels.shape[1] - 1, images.device):
        band = (kernels @ block.counts).view(-1, block.end - block.start, block.high - block.low)
        bands.append((block, band / band.sum(dim=2, keepdim=True)))
    for block, band in bands:
        source = all_rows[:, :, block.low : block.high]
        torch.bmm(source, band.mT, out=all_rows_blurred[:, :, block.start : block.end])
    for block, band in bands:
        for channel in range(images.shape[1]):
            source = scratch[:, channel, block.low : block.high]
            torch.bmm(band, source, out=images[:, channel, block.start : block.end])


class _Block(NamedTuple):
    """Some rows of a blur matrix.

    Attributes:
        start: First row.
        end: Row after the last one.
        low: First column with entries that are not 0.
        high: Column after the last one with entries that are not 0.
        counts: How often each entry takes the weight at each distance, [K, (end - start) * (high - low)].
    """

    start: int
    end: int
    low: int
    high: int
    counts: Tensor


@lru_cache(maxsize=4)
def _blocks(size: int, reach: int, device: torch.device) -> tuple[_Block, ...]:
    distances = torch.arange(reach + 1, device=device)[:, None, None]
    position = torch.arange(size, device=device)
    blocks = []
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        low = max(start - reach, 0)
        high = min(end + reach, size)
        i = position[start:end, None]
        j = position[None, low:high]
        direct = (i - j).abs()
        before = i + j + 1  # distance from i to the mirror image of j in the first border
        after = 2 * size - 1 - i - j  # and in the last border
        counts = (direct == distances).float() + (before == distances).float() + (after == distances).float()
        blocks.append(_Block(start, end, low, high, counts.flatten(1)))
    return tuple(blocks)
