"""Fingerprints of networks: a few numbers of the features of one fixed picture.

Some networks have the same tensor names and shapes and compute something else, such as timm's `efficientnet_lite0` and
`tf_efficientnet_lite0`, which pad differently. Names and shapes cannot tell them apart; features can.

Shapes: C channels, h x w the feature grid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from plrc.model.backbone import Backbone, ResNetLevels, build_backbone
from plrc.model.modes import evaluation_mode
from plrc.model.timm_networks import PREFIX

SIDE = 64  # of the picture, in pixels; more where the network needs it
PROJECTIONS = 4  # per level
TOLERANCE = 0.02  # of projections of about 1: other machines, threads and TF32 stay far below it, other networks above

Fingerprint = dict[str, list[float]]


def fingerprint(backbone: Backbone) -> Fingerprint:
    """Summarize the features of a fixed picture in evaluation mode.

    Level 32 of a torchvision ResNet is left out: its place depends on `model.layer4_stride`, not on the weights.

    Args:
        backbone: The network, on any device; its mode is restored.

    Returns:
        {stride: numbers}: the features, divided by their norm, times fixed patterns of values around 1. Levels whose
        features are 0 or not finite are left out.
    """
    parameter = next(backbone.parameters())
    picture = _picture(backbone.fitting_side(SIDE), backbone.in_channels).to(parameter.device, parameter.dtype)
    with evaluation_mode(backbone), torch.no_grad():
        levels = backbone(picture[None])
    result: Fingerprint = {}
    for stride, features in levels.items():
        if isinstance(backbone.net, ResNetLevels) and stride == 32:
            continue
        values = features[0].cpu().double()
        norm = float(values.norm())
        if math.isfinite(norm) and norm > 0:
            result[str(stride)] = [round(float((values * pattern).sum()) / norm, 5) for pattern in _patterns(values)]
    return result


def describe_difference(actual: Fingerprint, expected: Fingerprint) -> str:
    """The level in which two fingerprints differ most, beyond TOLERANCE; empty if none does.

    Args:
        actual: What the network gives now.
        expected: What it gave when the weights were written.
    """
    differences = {}
    for stride in actual.keys() & expected.keys():
        pairs = zip(actual[stride], expected[stride], strict=False)
        differences[stride] = max((abs(first - second) for first, second in pairs), default=0.0)
    worst = max(differences, key=lambda stride: differences[stride], default="")
    if not worst or differences[worst] <= TOLERANCE:
        return ""
    return f"features of stride {worst} differ by {differences[worst]:.2g} (allowed {TOLERANCE})"


def to_text(values: Fingerprint) -> str:
    """Format a fingerprint for the metadata of a file."""
    return json.dumps(values)


def from_text(text: object) -> Fingerprint:
    """Read the text of `to_text`; empty if it is something else."""
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return {}
    if not isinstance(values, Mapping):
        return {}
    result: Fingerprint = {}
    for stride, numbers in values.items():
        if str(stride).isdigit() and isinstance(numbers, list) and all(type(number) is float for number in numbers):
            result[str(stride)] = numbers
    return result


def twin_of(backbone: Backbone) -> str:
    """The network of timm that has the same tensors and computes something else; empty if there is none.

    timm's `tf_NAME` is `NAME` with the padding of TensorFlow.
    """
    if not backbone.name.startswith(PREFIX):
        return ""
    import timm

    name = backbone.name.removeprefix(PREFIX).partition(".")[0]
    twin = name.removeprefix("tf_") if name.startswith("tf_") else f"tf_{name}"
    if not timm.is_model(twin):
        return ""
    with torch.random.fork_rng(devices=[]):
        other = build_backbone(f"{PREFIX}{twin}", in_channels=backbone.in_channels).net.state_dict()
    own = backbone.net.state_dict()
    same = own.keys() == other.keys() and all(own[key].shape == other[key].shape for key in own)
    return f"{PREFIX}{twin}" if same else ""


def _picture(side: int, channels: int) -> Tensor:
    """A smooth picture [channels, side, side] of normalized pixels that differs at every border."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    picture = torch.stack([2 * torch.sin(9 * x + 4 * y), 2 * torch.cos(7 * y - 3 * x * x), 3 * x * y + 0.5 - y])
    return picture[torch.arange(channels) % len(picture)]


def _patterns(features: Tensor) -> list[Tensor]:
    """Fixed patterns of the shape of the features [C, h, w], with a mean square of 1 and no two alike."""
    index = torch.arange(features.numel(), dtype=torch.float64).reshape(features.shape)
    return [math.sqrt(2) * torch.sin(index * (1 + 0.37 * number) + number) for number in range(PROJECTIONS)]
