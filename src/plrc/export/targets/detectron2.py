"""Export to detectron2: its names for a ResNet, in a file that MODEL.WEIGHTS can name.

detectron2 is in no package registry, and its compiled operators are not needed. Where it can be imported the file is
proven in its own ResNet, loaded by its own checkpointer; otherwise names and shapes are checked by rule.
"""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plrc.export import resnets
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
from plrc.model.pickles import read_arrays, write_arrays
from plrc.pixels import MEAN_KEY, RGB_CHANNELS, STD_KEY, PixelStatistics

PIXEL_MAX = 255


def rename(backbone: str, student: State) -> State:
    """The student's tensors under detectron2's names: stem.conv1.weight, res2.0.conv1.norm.weight, ..."""
    return resnets.rename(student, find_resnet(backbone, "detectron2"), naming.detectron2)


def write(file: Path, backbone: str, student: State, metadata: dict[str, str]) -> None:
    """Write what its checkpointer reads; with matching_heuristics the names fit under any prefix in a model."""
    content = {
        "model": rename(backbone, student),
        "__author__": "plrc",
        "matching_heuristics": True,
        "backbone": backbone,
        MEAN_KEY: metadata[MEAN_KEY],
        STD_KEY: metadata[STD_KEY],
    }
    if file.suffix == ".pkl":
        write_arrays(file, content)
    else:
        write_torch(file, content)


def read(file: Path) -> State:
    """The tensors as its checkpointer reads them."""
    content = read_arrays(file) if file.suffix == ".pkl" else read_torch(file)
    state: State = content["model"]
    return state


def load(file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Load the file into detectron2's ResNet with its own checkpointer."""
    resnet = find_resnet(backbone, "detectron2")
    try:
        net = _network(resnet, channels)
        checkpointer = import_module("detectron2.checkpoint").DetectionCheckpointer(net)
    except ImportError as error:
        raise LibraryUnavailable(f"detectron2 cannot be imported: {error}") from error
    with logging_disabled(logging.WARNING):  # a table of all tensors
        checkpointer.load(str(file))
    net.eval()

    def features(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(LEVELS, net(images).values(), strict=True))

    return [LoadedNetwork(f"ResNet of depth {resnet.depth}", net.state_dict(), features, keeps_counters=False)]


def _network(resnet: ResNet, channels: int) -> nn.Module:
    """detectron2's own ResNet with the settings of `instructions` and nothing frozen."""
    config: Any = import_module("detectron2.config").get_cfg()
    config.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    config.MODEL.BACKBONE.FREEZE_AT = 0
    config.MODEL.PIXEL_MEAN = [0.0] * channels  # their number is that of the channels
    settings = config.MODEL.RESNETS
    settings.DEPTH = resnet.depth
    settings.NORM = "BN"
    settings.STRIDE_IN_1X1 = False
    settings.NUM_GROUPS = resnet.groups
    settings.WIDTH_PER_GROUP = resnet.group_width
    settings.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if not resnet.bottleneck:
        settings.RES2_OUT_CHANNELS = 64
    network: nn.Module = import_module("detectron2.modeling").build_backbone(config)
    return network


def instructions(backbone: str, pixels: PixelStatistics) -> list[str]:
    """What has to be set in detectron2."""
    net = find_resnet(backbone, "detectron2")
    scaled = pixel_settings(pixels, PIXEL_MAX)
    images = 'INPUT.FORMAT: "RGB" (its default is BGR)'
    if pixels.channels != RGB_CHANNELS:
        images = f"images: a mapper of your own gives [{pixels.channels}, H, W]; PIXEL_MEAN sets the network's channels"
    lines = [
        "MODEL.WEIGHTS: FILE",
        images,
        f"MODEL.PIXEL_MEAN: {scaled['mean']}",
        f"MODEL.PIXEL_STD: {scaled['std']}",
        f"MODEL.RESNETS.DEPTH: {net.depth}",
    ]
    if not net.bottleneck:
        lines.append("MODEL.RESNETS.RES2_OUT_CHANNELS: 64")
    if not net.plain:
        lines.append(f"MODEL.RESNETS.NUM_GROUPS: {net.groups}")
        lines.append(f"MODEL.RESNETS.WIDTH_PER_GROUP: {net.group_width}")
    return [
        *lines,
        "MODEL.RESNETS.STRIDE_IN_1X1: False (the stride is in the 3 x 3 convolution)",
        'MODEL.RESNETS.NORM: "SyncBN" or "BN", MODEL.BACKBONE.FREEZE_AT: 0 (frozen statistics fit other images)',
    ]


TARGET = Target(
    name="detectron2",
    package="detectron2",
    version=partial(installed_version, "detectron2"),
    rename=rename,
    load=load,
    instructions=instructions,
    endings=(".pth", ".pkl"),
    pixel_max=PIXEL_MAX,
    naming=naming.detectron2,
    write=write,
    read=read,
)
