"""Export as a plain file under the backbone's own names, for a loader of one's own.

For backbones of torchvision and timm this is the file that these libraries get, too.
"""

from __future__ import annotations

from pathlib import Path

import safetensors

from plrc.export.proof import backbone_with
from plrc.export.target import IMAGE_SIZE, LoadedNetwork, State, Target
from plrc.model.user_code import TEST_SIZE, is_user_code
from plrc.pixels import PixelStatistics


def rename(backbone: str, student: State) -> State:
    """The names in the file are the backbone's own."""
    return student


def load(file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Load the file into a second backbone of the same name."""
    network = backbone_with(backbone, tensors, channels)
    height, width = TEST_SIZE if is_user_code(backbone) else IMAGE_SIZE
    size = (network.fitting_side(height), network.fitting_side(width))
    return [LoadedNetwork(backbone, network.net.state_dict(), network, strides=(), sizes=(size,))]


def instructions(backbone: str, pixels: PixelStatistics) -> list[str]:
    """What the user has to know to load the file."""
    return ["names in the file: those of the backbone's own state_dict()"]


TARGET = Target(
    name="safetensors",
    package="safetensors",
    version=lambda: str(safetensors.__version__),
    rename=rename,
    load=load,
    instructions=instructions,
)
