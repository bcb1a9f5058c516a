"""Export to timm: the names of `timm.create_model(NAME, features_only=True)`. timm is an optional package.

For ResNets and most others these are also the names of the plain model. Where features_only renames (ConvNeXt: stages_0
for stages.0), the file follows features_only, which detectors build on. Vision transformers, and networks that
features_only wraps whole (`model.` before each name), keep the names of the plain model. torchvision's ResNets go to
timm's of the same name.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.errors import ExportError
from plrc.export.resnets import find_resnet, resnet_name
from plrc.export.target import IMAGE_SIZE, LEVELS, LoadedNetwork, State, Target
from plrc.machine import installed_version
from plrc.model import build_backbone, naming
from plrc.model.timm_networks import PREFIX, create_timm
from plrc.pixels import RGB_CHANNELS, PixelStatistics


def rename(backbone: str, student: State) -> State:
    """timm's names are the backbone's own."""
    if not backbone.startswith(PREFIX):
        find_resnet(backbone, "timm")
    return student


def load(file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Load the file with timm's own loader, which refuses missing and unexpected names."""
    from timm.models import load_checkpoint

    model = model_name(backbone)
    built = build_backbone(backbone, in_channels=channels)
    options = {} if channels == RGB_CHANNELS else {"in_chans": channels}
    if built.reading == "tokens":
        title = f"{model} with num_classes=0"
        net = create_timm(model, num_classes=0, **options)
        inner = net
    else:
        title = f"{model} with features_only"
        net = create_timm(model, features_only=True, **options)
        inner = net.model if built.reading == "stages" else net
    try:
        load_checkpoint(inner, str(file))
    except RuntimeError as error:  # names or shapes that differ
        raise ExportError(f"the run's student is not a {backbone}: {error}") from error
    net.eval()
    compared = tuple(built.channels) if backbone.startswith(PREFIX) else LEVELS

    def features(images: Tensor) -> dict[int, Tensor]:
        if built.reading == "tokens":
            return {compared[0]: patch_map(net, images, compared[0])}
        levels = dict(zip(net.feature_info.reduction(), net(images), strict=True))
        if "NHWC" in str(getattr(net, "output_fmt", "")):
            levels = {stride: level.permute(0, 3, 1, 2) for stride, level in levels.items()}
        return {stride: levels[stride] for stride in compared}

    side = built.fitting_side(max(IMAGE_SIZE))
    return [LoadedNetwork(title, inner.state_dict(), features, compared, sizes=((side, side),))]


def patch_map(net: Any, images: Tensor, patch: int) -> Tensor:
    """The patch tokens of a vision transformer as a map [B, C, H / patch, W / patch]."""
    tokens: Tensor = net.forward_features(images)[:, net.num_prefix_tokens :]
    height, width = (side // patch for side in images.shape[2:])
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


def instructions(backbone: str, pixels: PixelStatistics) -> list[str]:
    """What has to be set in timm."""
    model = model_name(backbone)
    statistics = "mean and std of the data configuration: as above, not those of the model"
    reading = build_backbone(backbone).reading
    channels = "" if pixels.channels == RGB_CHANNELS else f", in_chans={pixels.channels}"
    if reading == "tokens":
        return [
            f"timm.create_model({model!r}, num_classes=0, dynamic_img_size=True{channels}, checkpoint_path=FILE)",
            "features: net.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]",
            statistics,
        ]
    if reading == "stages":
        return [
            f"net = timm.create_model({model!r}, features_only=True{channels})",
            "timm.models.load_checkpoint(net.model, FILE)",
            statistics,
        ]
    return [
        f"timm.create_model({model!r}, features_only=True{channels}, checkpoint_path=FILE)",
        f"for ResNets also timm.create_model({model!r}, num_classes=0{channels}, checkpoint_path=FILE)",
        statistics,
    ]


def model_name(backbone: str) -> str:
    """timm's name of the same network."""
    return backbone.removeprefix(PREFIX) if backbone.startswith(PREFIX) else resnet_name(backbone)


TARGET = Target(
    name="timm",
    package="timm",
    version=partial(installed_version, "timm"),
    rename=rename,
    load=load,
    instructions=instructions,
    naming=naming.torchvision,
)
