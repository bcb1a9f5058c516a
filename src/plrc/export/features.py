"""`plrc.load_backbone`: a trained backbone for Python users: images in, dense features by stride out.

Shapes: B images, H x W pixels, C channels, s a stride.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc.config import Config
from plrc.engine.checkpoint import checkpoint_of
from plrc.errors import ConfigError, WeightsError
from plrc.model.backbone import Backbone, build_backbone
from plrc.model.start_pixels import start_pixels
from plrc.model.user_code import trusted_backbone
from plrc.model.weights import Weights, load_into, read_weights, stored_function, stored_name

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MARGIN = 0.5  # how far a value may leave [0, 1] (sharp resizing overshoots) before images are taken for normalized


class DenseFeatures(nn.Module):
    """Images [B, 3, H, W] of any size -> {s: features [B, channels[s], ceil(H / s), ceil(W / s)]}, in eval mode.

    torchvision's ResNets take any size as it is: the features are those of the plain network, bit for bit. Others may
    round down and lose the border, so for them images are padded below and on the right with zeros after normalization
    (the mean color) until both sides fit (`Backbone.multiple`), and positions wholly in the padding are cut off.
    Position (i, j) of level s looks at the image around row s * i, column s * j. With layer4_stride 1 the level called
    32 has the positions of level 16. Features have the dtype of the weights.

    Args:
        backbone: The backbone in eval mode.
        normalize: Whether to normalize images here: then they are RGB as decoded, uint8 in 0..255 or float in 0..1.
            Otherwise they are RGB, float and already normalized with the mean and standard deviation in `pixels`, as
            backbones of detectors get them.
        channels_last: Whether the convolutions run in the memory format channels_last.

    Attributes:
        channels: {stride: channels}, from fine to coarse.
        pixels: The mean and standard deviation (`mean` and `std`, on the scale 0 to 1) that images are normalized with:
            those that the weights were trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, normalize: bool = False, channels_last: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = backbone.channels
        self.pixels = backbone.pixels
        self.normalize = normalize
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("mean", torch.tensor(self.pixels.mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.pixels.std).reshape(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, deepest: int | None = None) -> dict[int, Tensor]:
        """Compute the features of every level.

        Args:
            images: [B, 3, H, W]; of a run with `data.channels` N: [B, N, H, W].
            deepest: The largest stride that is wanted; a torchvision ResNet then skips the layers after it.

        Returns:
            {s: features [B, channels[s], ceil(H / s), ceil(W / s)]}.

        Raises:
            ValueError: Images have another shape, or values outside the range of decoded images.
            TypeError: Images are no tensor, or have another dtype.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images are a {type(images).__name__}; give a torch.Tensor")
        if images.ndim != 4 or images.shape[1] != self.backbone.in_channels:
            raise ValueError(
                f"images have the shape {list(images.shape)}; give a batch [B, {self.backbone.in_channels}, H, W]"
            )
        dtype = next(self.backbone.parameters()).dtype
        normalized = self._normalized(images) if self.normalize else _float_images(images)
        height, width = images.shape[2:]
        sides = (self.backbone.fitting_side(height), self.backbone.fitting_side(width))
        if sides[0] < height or sides[1] < width:
            raise ValueError(
                f"{self.backbone.name} takes images of {sides[0]} x {sides[1]} only, got {height} x {width}"
            )
        padded = F.pad(normalized.to(dtype), (0, sides[1] - width, 0, sides[0] - height))
        levels: dict[int, Tensor] = self.backbone(padded.contiguous(memory_format=self.memory_format), deepest)
        if sides == (height, width):
            return levels
        cut = {}
        for stride, features in levels.items():
            cut[stride] = features[..., : -(-height // stride), : -(-width // stride)]
        return cut

    def _normalized(self, images: Tensor) -> Tensor:
        """Decoded images, normalized with the statistics of the weights."""
        if images.dtype == torch.uint8:
            pixels = images.float() / 255
        elif images.is_floating_point():
            _check_range(images)
            pixels = images.float()
        else:
            raise TypeError(f"images are of {_dtype_name(images)}; give uint8 in 0..255 or float in 0..1")
        return (pixels - self.mean.float()) / self.std.float()


def _float_images(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise TypeError(
            f"images are of {_dtype_name(images)}; give float images, already normalized, or set normalize=True"
        )
    return images


def _check_range(images: Tensor) -> None:
    """Refuse float images that are normalized already or go up to 255."""
    if torch.compiler.is_compiling():
        return
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -MARGIN and high <= 1 + MARGIN):
        raise ValueError(
            f"images range from {low:.3g} to {high:.3g}; give float in 0..1 or uint8 in 0..255, or leave "
            "normalize=True out where they are normalized already"
        )


def _dtype_name(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")


def load_backbone(
    path: str | Path,
    layer4_stride: int = 2,
    backbone: str = "",
    *,
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
) -> DenseFeatures:
    """Load a trained backbone as a module from images to dense features.

    Args:
        path: Run folder (its newest checkpoint), checkpoint, or exported file of any target but ONNX.
        layer4_stride: Stride of layer4 of a torchvision ResNet: 2 as usual; with 1 the level called 32 has the
            positions of level 16.
        backbone: Name of the backbone (resnet50, timm:NAME, ...), needed for a file that does not hold it, and for a
            backbone of user code even if the file names it: code is imported only if you name it. For a run of
            transformers:FOLDER whose folder has moved: transformers:FOLDER.
        normalize: Whether images come as decoded (uint8 in 0..255 or float in 0..1) and are normalized inside;
            otherwise they are already normalized with the mean and standard deviation that the weights were trained
            with: `pixels` of the result, usually ImageNet's.
        dtype: Of the weights, and so of the features: float32, float16 or bfloat16.
        device: Where the weights are put.
        channels_last: Use the memory format with which the convolutions of a GPU, or bfloat16 on a CPU, run faster;
            features stay [B, C, h, w].

    Returns:
        A module in eval mode: RGB images [B, 3, H, W] -> {s: features [B, C, ceil(H / s), ceil(W / s)]}. How images of
        any size are padded is described in `DenseFeatures`.

    Raises:
        ConfigError: `dtype`, `backbone` or `layer4_stride` cannot be used.
        WeightsError: There are no weights, or they cannot be read, or they do not fit the backbone.

    Examples:
        >>> import plrc, torch
        >>> backbone = plrc.load_backbone("runs/first", normalize=True)  # doctest: +SKIP
        >>> levels = backbone(torch.rand(1, 3, 480, 640))  # doctest: +SKIP
        >>> levels[32].shape  # doctest: +SKIP
        torch.Size([1, 2048, 15, 20])
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    path = Path(path)
    weights = read_weights(checkpoint_of(path))
    name = _backbone_name(path, weights, backbone)
    model = Config().with_values({"model.backbone": name, "model.layer4_stride": layer4_stride}).model
    pixels, _ = start_pixels(name, weights.metadata, weights.source)
    net = build_backbone(model.backbone, model.layer4_stride, pixels.channels)
    load_into(net, weights)
    net.pixels = pixels
    features = DenseFeatures(net.eval(), normalize, channels_last).eval()
    features.to(device=device, dtype=dtype, memory_format=features.memory_format)  # type: ignore[call-overload]
    return features


def _backbone_name(path: Path, weights: Weights, named: str) -> str:
    """The backbone to build: as the file holds it, or as the user named it."""
    stored = stored_name(weights.metadata) or stored_function(weights.metadata)
    if not stored and not named:
        raise WeightsError(f"{path} does not hold the name of its backbone; name it, such as backbone='resnet50'")
    if not stored:
        return named
    name = trusted_backbone(stored, named, "backbone={!r}")
    if named and named != name:
        raise ConfigError(f"{path} holds a {name}, not a {named}; leave `backbone` out")
    return name
