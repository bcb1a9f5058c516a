"""The proof behind a receipt: tensors equal bit for bit and equal features; differences are named.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plrc.errors import ExportError
from plrc.export.resnets import RESNETS, check_structure, resnet_name
from plrc.export.target import (
    IMAGE_SIZE,
    TOLERANCE,
    Features,
    LibraryUnavailable,
    LoadedNetwork,
    Target,
    without_counters,
)
from plrc.model.backbone import Backbone, build_backbone
from plrc.model.naming import COUNTER_SUFFIX, name_difference
from plrc.model.user_code import describe_error
from plrc.pixels import RGB_CHANNELS
from plrc.text import some


@dataclass(frozen=True)
class Proof:
    """What was compared with the run's student, and where.

    Attributes:
        tensors: Number of tensors in the file, each equal to the student's bit for bit.
        absent: Tensors of the backbone that the file leaves out by rule.
        networks: Networks of the target into which the file was loaded.
        largest_difference: Between features of these networks and of plrc's, relative to the largest feature; None if
            they were not compared.
        left_random: Tensors of these networks that a backbone does not have.
        unverified: Why the file was loaded into no network, only names and shapes were checked by rule; else empty.
    """

    tensors: int
    absent: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    largest_difference: float | None = None
    left_random: tuple[str, ...] = ()
    unverified: str = ""


def prove(
    target: Target, file: Path, backbone: str, student: Mapping[str, Tensor], channels: int = RGB_CHANNELS
) -> Proof:
    """Compare an exported file with the run's student: in the file itself, and loaded into networks of the target.

    Args:
        target: The library or format that the file was written for.
        file: The exported file.
        backbone: The run's `model.backbone`.
        student: The backbone's tensors under its own names.
        channels: Channels of the images.

    Returns:
        What was compared. Where the target's library cannot be used, names and shapes were checked by rule.

    Raises:
        ExportError: Names, values or features differ.
    """
    expected = target.rename(backbone, dict(student))
    tensors = target.read(file)
    check_tensors(tensors, expected, "the file")
    resnet = RESNETS.get(resnet_name(backbone))
    if target.naming is not None and resnet is not None:
        check_structure(tensors, resnet, target.naming, f"the run's student is not a {backbone}", channels)
    absent: tuple[str, ...] = ()
    if not target.keeps_counters:
        absent = tuple(name for name in student if name.endswith(COUNTER_SUFFIX))
    if not target.version():
        return Proof(len(tensors), absent, unverified=f"{target.package} is not installed")
    try:
        networks = target.load(file, backbone, tensors, channels)
    except LibraryUnavailable as reason:
        return Proof(len(tensors), absent, unverified=str(reason))
    own_network = backbone_with(backbone, target.rounded(dict(student)), channels)
    differences = []
    for network in networks:
        _check_loaded_tensors(network, expected, target.name)
        differences += _feature_differences(network, own_network, target.tolerance)
    return Proof(
        tensors=len(tensors),
        absent=absent,
        networks=tuple(network.name for network in networks),
        largest_difference=max(differences),
        left_random=sum((network.left_random for network in networks), ()),
    )


def _check_loaded_tensors(network: LoadedNetwork, expected: Mapping[str, Tensor], library: str) -> None:
    compared = network.tensors
    if not network.keeps_counters:
        compared = without_counters(compared)
        expected = without_counters(expected)
    check_tensors(compared, expected, f"{library}'s {network.name}")


def _feature_differences(network: LoadedNetwork, own_network: Backbone, tolerance: float) -> list[float]:
    """The largest relative difference for each size of images that the network is compared on."""
    strides = network.strides or tuple(own_network.channels)

    def expected(images: Tensor) -> dict[int, Tensor]:
        return {stride: features for stride, features in own_network(images).items() if stride in strides}

    channels = own_network.in_channels
    return [check_features(network.features, expected, tolerance, size, channels) for size in network.sizes]


def backbone_with(name: str, student: Mapping[str, Tensor], channels: int = RGB_CHANNELS) -> Backbone:
    """The backbone `name` in eval mode with the student's tensors, with the stride of layer4 that its library has.

    Args:
        name: The run's `model.backbone`.
        student: The backbone's tensors under its own names.
        channels: Channels of the images.

    Raises:
        ExportError: Names or shapes differ.
    """
    network = build_backbone(name, in_channels=channels)
    try:
        network.net.load_state_dict(student)
    except RuntimeError as error:
        raise ExportError(f"the run's student is not a {name}: {error}") from error
    return network.eval()


def check_tensors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Compare two sets of named tensors bit for bit.

    Args:
        actual: Tensors by name, as they were read or loaded.
        expected: Tensors by name, as they are in the run.
        where: What holds `actual`, the subject of the error's sentence.

    Raises:
        ExportError: Names or bits differ; it names the tensors.
    """
    names = name_difference(actual, expected)
    if names:
        raise ExportError(f"{where} does not hold the run's tensors: {names}; export again")
    differences = []
    for name, tensor in expected.items():
        difference = _difference(actual[name], tensor)
        if difference:
            differences.append(f"{name} ({difference})")
    if differences:
        raise ExportError(
            f"{where} differs from the run in {len(differences)} tensors: {some(differences)}; export again"
        )


def check_features(
    actual: Features,
    expected: Features,
    tolerance: float = TOLERANCE,
    size: tuple[int, int] = IMAGE_SIZE,
    channels: int = RGB_CHANNELS,
) -> float:
    """Compare the features of two networks in eval mode.

    Args:
        actual: The target's network: images [B, 3, H, W] -> {stride: features [B, C, h, w]}.
        expected: The run's network.
        tolerance: Largest difference that is allowed, relative to the largest feature of the level.
        size: Height and width of the images.
        channels: Channels of the images.

    Returns:
        The largest relative difference of all levels.

    Raises:
        ExportError: The difference is above `tolerance` or not finite, levels or shapes differ, or a network does not
            take images of this size.
    """
    images = example_images(size, channels)
    try:
        with torch.inference_mode():
            levels = actual(images)
            expected_levels = expected(images)
    except Exception as error:  # networks of other libraries and of the user's own may raise anything
        raise ExportError(
            f"features of images [2, {channels}, {size[0]}, {size[1]}] cannot be compared: {describe_error(error)}"
        ) from error
    if _shapes(levels) != _shapes(expected_levels):
        raise ExportError("the exported network has features of other levels or shapes than the run's")
    largest = 0.0
    for stride, features in expected_levels.items():
        scale = features.abs().max().clamp_min(1e-12)
        difference = float((levels[stride] - features).abs().max() / scale)
        if not math.isfinite(difference) or difference > tolerance:
            raise ExportError(
                f"the exported network's features of stride {stride} differ from the run's by {difference:.1e} of the "
                f"largest (allowed {tolerance:.0e})"
            )
        largest = max(largest, difference)
    return largest


def example_images(size: tuple[int, int] = IMAGE_SIZE, channels: int = RGB_CHANNELS) -> Tensor:
    """Two normalized images [2, channels, *size], one of noise and one that is smooth, the same in every call."""
    height, width = size
    noise = torch.randn(channels, height, width, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 2, width), indexing="ij")
    smooth = torch.stack([torch.sin(x + y), torch.cos(2 * x), torch.sin(x * y)])
    return torch.stack([noise, smooth[torch.arange(channels) % len(smooth)]])


def _shapes(levels: Mapping[int, Tensor]) -> dict[int, torch.Size]:
    return {stride: features.shape for stride, features in levels.items()}


def _difference(actual: Tensor, expected: Tensor) -> str:
    """How a tensor differs; empty if it has the same bits."""
    if actual.dtype != expected.dtype:
        return f"{actual.dtype} instead of {expected.dtype}".replace("torch.", "")
    if actual.shape != expected.shape:
        return f"{list(actual.shape)} instead of {list(expected.shape)}"
    if torch.equal(_bytes(actual), _bytes(expected)):
        return ""
    if actual.dim() == 4 and torch.equal(actual.flip(1), expected):
        return "its input channels are in reverse order"
    return f"values differ by up to {float((actual.double() - expected.double()).abs().max()):.1e}"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
