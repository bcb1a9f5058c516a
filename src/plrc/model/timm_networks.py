"""Networks of timm, an optional package, as feature maps [B, C, H / s, W / s] of one or several strides s.

Three ways to read them, all under timm's own tensor names:

- `levels`: what `features_only=True` builds, with maps [B, H, W, C] (Swin, MambaOut) turned to [B, C, H, W];
- `stages`: the plain network, where `features_only` would put `model.` before each name (Hiera, MViT, Twins);
- `tokens`: a plain vision transformer: the patch tokens of the last block after the network's final normalization
  `norm`, as one map of the patch's stride. Class and register tokens are left out. Where timm keeps the final
  normalization behind the pooling (`fc_norm`), the tokens are those of the last block as they are.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plrc.errors import ConfigError, MissingPackageError
from plrc.pixels import RGB_CHANNELS

PREFIX = "timm:"  # of `model.backbone`
Reading = Literal["levels", "stages", "tokens"]
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
"""Options with which transformers take images of any size; networks that have neither are built without."""


@dataclass(frozen=True)
class TimmNetwork:
    """A network of timm in training mode.

    Attributes:
        net: The network.
        reading: How its features are read.
        channels: {stride: channels}, from fine to coarse.
        multiple: Its images have sides that are multiples of this.
        fixed: Whether sides must be equal to `multiple`.
    """

    net: nn.Module
    reading: Reading
    channels: dict[int, int]
    multiple: int
    fixed: bool


def names_weights(backbone: str) -> bool:
    """Return whether the name of a backbone names trained weights: with a tag after a dot, or a place to load from."""
    name = backbone.removeprefix(PREFIX)
    return backbone.startswith(PREFIX) and ("." in name or ":" in name)


def build_timm(name: str, pretrained: bool = False, in_channels: int = RGB_CHANNELS) -> TimmNetwork:
    """Build a network of timm.

    Args:
        name: timm:NAME.
        pretrained: Whether timm loads, and downloads, its own weights of that name; otherwise weights are random.
        in_channels: Channels of the images.

    Raises:
        ConfigError: timm has no such network, or it gives no feature maps.
        MissingPackageError: timm is not installed.
    """
    options: dict[str, Any] = {"pretrained": pretrained}
    if in_channels != RGB_CHANNELS:
        options["in_chans"] = in_channels
    net = create_timm(name, features_only=True, **options)
    reading: Reading = "levels"
    strides: list[int] = net.feature_info.reduction()
    widths: list[int] = net.feature_info.channels()
    if type(net).__name__ == "FeatureGetterNet":
        reading = "stages" if len(set(strides)) > 1 else "tokens"
        # `features_only` removes the final normalization, which the tokens need
        net = net.model if reading == "stages" else create_timm(name, num_classes=0, **options)
    channels = dict(sorted(zip(strides, widths, strict=True)))  # of equal strides, the last one counts
    net.eval()
    size = _default_size(net)
    coarsest = max(strides)
    multiple = 0
    fixed = False
    if _takes(net, reading, channels, (in_channels, 2 * coarsest, 3 * coarsest)):
        multiple = coarsest
    elif _takes(net, reading, channels, (in_channels, size, size)):
        multiple = size
        fixed = not _takes(net, reading, channels, (in_channels, size, 2 * size))
    if not multiple:
        raise ConfigError(
            f"{name} does not give feature maps [B, C, H / s, W / s] of its strides {', '.join(map(str, strides))}; "
            "choose another model of timm"
        )
    return TimmNetwork(net.train(), reading, channels, multiple, fixed)


def create_timm(name: str, **options: Any) -> Any:
    """Call `timm.create_model`, so that a transformer takes images of any size where timm lets it.

    Args:
        name: timm:NAME.
        options: Of `timm.create_model`.

    Raises:
        ConfigError: timm cannot build it.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError("timm backbones", "timm") from error
    model = name.removeprefix(PREFIX)
    try:
        for any_size in ANY_SIZE:
            with contextlib.suppress(TypeError):  # an unknown option, which fails before any weight is drawn
                return timm.create_model(model, **options, **any_size)
        return timm.create_model(model, **options)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(f"timm cannot build {name!r} with features_only: {error}") from error


def read_features(net: nn.Module, reading: Reading, channels: dict[int, int], images: Tensor) -> dict[int, Tensor]:
    """Compute the features of every level.

    Args:
        net: The network.
        reading: How its features are read.
        channels: {stride: channels}.
        images: Normalized images [B, 3, H, W].

    Returns:
        {stride: features [B, C, H / stride, W / stride]}.
    """
    network: Any = net
    if reading == "tokens":
        maps = network.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)
        return dict(zip(channels, maps, strict=True))
    if reading == "stages":
        maps = network.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        strides = [info["reduction"] for info in network.feature_info]
    else:
        maps = network(images)
        strides = network.feature_info.reduction()
        if "NHWC" in str(getattr(network, "output_fmt", "")):
            maps = [features.permute(0, 3, 1, 2) for features in maps]
    levels = dict(zip(strides, maps, strict=True))
    return {stride: levels[stride] for stride in channels}


def plain_names(net: nn.Module, names: list[str]) -> dict[str, str]:
    """Map names of a plain network of timm to those of the same network with `features_only`.

    `features_only` takes sequences apart: `stages.0.blocks` becomes `stages_0.blocks`.

    Args:
        net: The network as built.
        names: Names in a file.

    Returns:
        {name in the file: name in the network}, only of those that differ.
    """
    renamed = {}
    for child, _ in net.named_children():
        parts = re.fullmatch(r"(.+)_(\d+)", child)
        if parts is None:
            continue
        inside = re.compile(rf"(^|.*\.){re.escape(parts[1])}\.{parts[2]}\.(.+)")
        for name in names:
            match = inside.fullmatch(name)
            if match:
                renamed[name] = f"{match[1]}{child}.{match[2]}"
    return renamed


def _default_size(net: nn.Module) -> int:
    """The side of the images that timm's own weights were trained on."""
    settings = getattr(net, "pretrained_cfg", None) or {}
    return int(max(settings.get("input_size", (3, 224, 224))[1:]))


@torch.no_grad()
def _takes(net: nn.Module, reading: Reading, channels: dict[int, int], size: tuple[int, int, int]) -> bool:
    """Whether the network gives maps of the right shapes for images of these channels, height and width."""
    _, height, width = size
    try:
        levels = read_features(net, reading, channels, torch.zeros(1, *size))
    except (RuntimeError, AssertionError, ValueError, TypeError):
        return False
    shapes = {stride: tuple(features.shape[1:]) for stride, features in levels.items()}
    return shapes == {
        stride: (width_of_level, height // stride, width // stride) for stride, width_of_level in channels.items()
    }
