"""Export to timm: the names of `timm.create_model(NAME, features_only=True)`. timm is an optional package.

For ResNets and most others these are also the names of the plain model. Where features_only renames (ConvNeXt: stages_0
for stages.0), the file follows features_only, which detectors build on. torchvision's ResNets go to timm's of the same
name.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.errors import ExportError
from plrc.export.resnets import find_resnet, resnet_name
from plrc.export.target import LEVELS, LoadedNetwork, State, Target, installed
from plrc.model import naming

TIMM_PREFIX = "timm:"  # of model.backbone


def rename(backbone: str, student: State) -> State:
    """timm's names are the backbone's own."""
    if not backbone.startswith(TIMM_PREFIX):
        find_resnet(backbone, "timm")
    return student


def load(file: Path, backbone: str, tensors: State) -> list[LoadedNetwork]:
    """Load the file with timm's own loader, which refuses missing and unexpected names."""
    import timm

    model = model_name(backbone)
    try:
        net: Any = timm.create_model(model, pretrained=False, features_only=True, checkpoint_path=str(file))
    except RuntimeError as error:  # names or shapes that differ
        raise ExportError(f"the run's student is not a {backbone}: {error}") from error
    net.eval()
    strides = net.feature_info.reduction()
    compared = tuple(strides) if backbone.startswith(TIMM_PREFIX) else LEVELS

    def features(images: Tensor) -> dict[int, Tensor]:
        levels = dict(zip(strides, net(images), strict=True))
        return {stride: levels[stride] for stride in compared}

    return [LoadedNetwork(f"{model} with features_only", net.state_dict(), features, compared)]


def instructions(backbone: str) -> list[str]:
    """What has to be set in timm."""
    model = model_name(backbone)
    return [
        f"timm.create_model({model!r}, features_only=True, checkpoint_path=FILE)",
        f"for ResNets also timm.create_model({model!r}, num_classes=0, checkpoint_path=FILE)",
        "mean and std of the data configuration: as above, not those of the model",
    ]


def model_name(backbone: str) -> str:
    """timm's name of the same network."""
    return backbone.removeprefix(TIMM_PREFIX) if backbone.startswith(TIMM_PREFIX) else resnet_name(backbone)


TARGET = Target(
    name="timm",
    package="timm",
    version=partial(installed, "timm"),
    rename=rename,
    load=load,
    instructions=instructions,
    naming=naming.torchvision,
)
