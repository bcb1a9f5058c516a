"""Export to torchvision: the names of `torchvision.models.resnetXX()`, also in the backbones of its detectors.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from plrc.errors import ExportError
from plrc.export.resnets import find_resnet, resnet_name
from plrc.export.target import LEVELS, Features, LoadedNetwork, State, Target
from plrc.model import naming
from plrc.pixels import IMAGENET, RGB_CHANNELS, PixelStatistics

CLASSIFIER = ("fc.weight", "fc.bias")


def rename(backbone: str, student: State) -> State:
    """torchvision's names are the backbone's own."""
    find_resnet(backbone, "torchvision")
    return student


def load(file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Load the file into a new classifier and into the backbone of a new detector.

    Raises:
        ExportError: The classifier lacks other tensors than its last layer, or does not take some.
    """
    name = resnet_name(backbone)
    classifier: nn.Module = torchvision.models.get_model(name, weights=None)
    set_input_channels(classifier, channels)
    missing, unexpected = classifier.load_state_dict(tensors, strict=False)
    if tuple(missing) != CLASSIFIER or unexpected:
        raise ExportError(
            f"torchvision's {name} does not take the exported names: missing keys: {missing} instead of "
            f"{list(CLASSIFIER)}; unexpected keys: {unexpected}"
        )
    inside = {key: tensor for key, tensor in classifier.state_dict().items() if key not in CLASSIFIER}
    detector: nn.Module = resnet_fpn_backbone(
        backbone_name=name, weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    body = detector.get_submodule("body")
    set_input_channels(body, channels)
    body.load_state_dict(tensors)

    def body_features(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(LEVELS, body(images).values(), strict=True))

    detector.eval()
    return [
        LoadedNetwork(name, inside, _classifier_features(classifier.eval()), left_random=CLASSIFIER),
        LoadedNetwork("resnet_fpn_backbone (its pyramid starts from random weights)", body.state_dict(), body_features),
    ]


def set_input_channels(resnet: nn.Module, channels: int) -> None:
    """Give a ResNet of torchvision, or the body of its detectors, a first convolution for so many channels."""
    if channels != RGB_CHANNELS:
        resnet.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)


def _classifier_features(classifier: nn.Module) -> Features:
    """The features in front of the classifier, taken by hooks, so that torchvision's own forward computes them."""
    levels: dict[int, Tensor] = {}

    def keep(stride: int) -> None:
        layer = classifier.get_submodule(f"layer{LEVELS.index(stride) + 1}")
        layer.register_forward_hook(lambda module, inputs, output: levels.update({stride: output}))

    for stride in LEVELS:
        keep(stride)

    def features(images: Tensor) -> dict[int, Tensor]:
        classifier(images)
        return dict(levels)

    return features


def instructions(backbone: str, pixels: PixelStatistics) -> list[str]:
    """What has to be set in torchvision."""
    statistics = "as they are"
    if pixels != IMAGENET:
        statistics = f"{list(pixels.mean)} and {list(pixels.std)}, its defaults are ImageNet's"
    stem: list[str] = []
    if pixels.channels != RGB_CHANNELS:
        convolution = f"torch.nn.Conv2d({pixels.channels}, 64, 7, stride=2, padding=3, bias=False)"
        stem = [f"first net.conv1 = {convolution}, in a detector detector.backbone.body.conv1 = the same"]
    return [
        *stem,
        f"net.load_state_dict(state, strict=False) for {resnet_name(backbone)}(weights=None): only fc is missing",
        "detector.backbone.body.load_state_dict(state) for one built with weights=None, weights_backbone=None",
        f"image_mean and image_std of the detector: {statistics}; its BatchNorm is not frozen then",
    ]


TARGET = Target(
    name="torchvision",
    package="torchvision",
    version=lambda: str(torchvision.__version__),
    rename=rename,
    load=load,
    instructions=instructions,
    naming=naming.torchvision,
)
