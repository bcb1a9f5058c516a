"""Export to mmdetection: torchvision's names in a .pth file that `init_cfg` can name.

Where mmdet can be imported the file is proven in its own ResNet, built and initialized from a configuration; otherwise
names and shapes are checked by rule.
"""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.errors import ExportError
from plrc.export.formats import read_torch, write_torch
from plrc.export.resnets import ResNet, find_resnet
from plrc.export.target import (
    LEVELS,
    LibraryUnavailable,
    LoadedNetwork,
    State,
    Target,
    logging_disabled,
    pixel_settings,
)
from plrc.machine import installed_version
from plrc.model import naming
from plrc.pixels import RGB_CHANNELS, PixelStatistics

PIXEL_MAX = 255


def rename(backbone: str, student: State) -> State:
    """mmdetection's ResNet has torchvision's names, which are the backbone's own."""
    _resnet(backbone)
    return student


def write(file: Path, backbone: str, student: State, metadata: dict[str, str]) -> None:
    """Write the file that mmengine reads."""
    write_torch(file, {"state_dict": student, "meta": metadata, "backbone": backbone})


def read(file: Path) -> State:
    """The tensors as mmengine reads them."""
    state: State = read_torch(file)["state_dict"]
    return state


def load(file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Build mmdetection's network from a configuration whose init_cfg names the file."""
    try:
        import_module("mmdet.utils").register_all_modules(init_default_scope=True)
    except (ImportError, AssertionError) as error:  # it refuses an mmcv of another version by an assertion
        raise LibraryUnavailable(f"mmdet cannot be imported: {error}") from error
    config = backbone_config(backbone, channels)
    init_cfg = {"type": "Pretrained", "checkpoint": str(file)}
    net: Any = import_module("mmdet.registry").MODELS.build(config | {"init_cfg": init_cfg})
    with logging_disabled(logging.INFO):  # a line for every tensor
        net.init_weights()
    net.eval()

    def features(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(LEVELS, net(images), strict=True))

    return [LoadedNetwork(f"{config['type']} of depth {config['depth']}", net.state_dict(), features)]


def backbone_config(backbone: str, channels: int = RGB_CHANNELS) -> dict[str, Any]:
    """`model.backbone` of a configuration, without `init_cfg`: nothing frozen, statistics that follow the images."""
    net = _resnet(backbone)
    config: dict[str, Any] = {"type": "ResNet" if net.plain else "ResNeXt", "depth": net.depth}
    if not net.plain:
        config |= {"groups": net.groups, "base_width": net.group_width}
    if channels != RGB_CHANNELS:
        config["in_channels"] = channels
    return config | {
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": -1,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": False,
        "style": "pytorch",
    }


def instructions(backbone: str, pixels: PixelStatistics) -> list[str]:
    """What has to be set in mmdetection."""
    scaled = pixel_settings(pixels, PIXEL_MAX)
    preprocessor = f"mean={scaled['mean']}, std={scaled['std']}, bgr_to_rgb=True (images are read as BGR)"
    if pixels.channels != RGB_CHANNELS:
        preprocessor = (
            f"mean={scaled['mean']}, std={scaled['std']}, bgr_to_rgb=False (a loading transform of your own reads "
            f"{pixels.channels} channels)"
        )
    return [
        f"model.backbone: {backbone_config(backbone, pixels.channels)}",
        "model.backbone.init_cfg: dict(type='Pretrained', checkpoint=FILE), without prefix",
        f"model.data_preprocessor: {preprocessor}",
        "norm_cfg: SyncBN where there are several GPUs",
    ]


def _resnet(backbone: str) -> ResNet:
    net = find_resnet(backbone, "mmdetection")
    if not net.plain and net.groups == 1:
        raise ExportError(
            f"mmdetection has no {backbone}: its ResNeXt keeps the usual width if there is only a single group"
        )
    return net


TARGET = Target(
    name="mmdetection",
    package="mmdet",
    version=partial(installed_version, "mmdet"),
    rename=rename,
    load=load,
    instructions=instructions,
    endings=(".pth",),
    pixel_max=PIXEL_MAX,
    naming=naming.torchvision,
    write=write,
    read=read,
)
