"""Hand-over to torchvision: the names of `torchvision.models.resnetXX()`, of its detectors' backbones too.

Layer 5: imports model and this folder. Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from plrc.errors import PlrcError
from plrc.export.formats import read_tensors, write_tensors
from plrc.export.pixels import pixels
from plrc.export.proof import Proof, check_features, check_tensors, features_of
from plrc.export.resnets import LEVELS, find_resnet, resnet_name

ENDINGS = (".safetensors", ".pt")
CLASSIFIER = ("fc.weight", "fc.bias")


def version() -> str:
    return str(torchvision.__version__)


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors as the file holds them: torchvision's names are the backbone's own."""
    find_resnet(name, "torchvision")
    return dict(student)


def write(path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    write_tensors(path, tensors(name, student), metadata)


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Load the file into a new classifier and a new detector's backbone, and compare them with the run's student.

    Raises PlrcError unless exactly the classifier and the pyramid are left out, every tensor is equal bit for bit, in
    the file and in both networks, and all give equal features at all four levels.
    """
    resnet, expected = resnet_name(name), tensors(name, student)
    state = read_tensors(path)
    check_tensors(state, expected, "the file")
    net: nn.Module = torchvision.models.get_model(resnet, weights=None)
    detector: nn.Module = resnet_fpn_backbone(
        backbone_name=resnet, weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    _load(net, state, CLASSIFIER, f"torchvision's {resnet}")
    pyramid = tuple(key for key in detector.state_dict() if key.startswith("fpn."))
    inside = {f"body.{key}": value for key, value in state.items()}
    _load(detector, inside, pyramid, f"torchvision's resnet_fpn_backbone({resnet!r})")
    ours = features_of(name, student, LEVELS)
    net, body, levels = net.eval(), detector.eval().get_submodule("body"), dict[int, Tensor]()
    for number, stride in enumerate(LEVELS, start=1):
        net.get_submodule(f"layer{number}").register_forward_hook(partial(_keep, levels, stride))

    def of_classifier(images: Tensor) -> dict[int, Tensor]:
        net(images)
        return dict(levels)

    def of_detector(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(LEVELS, body(images).values(), strict=True))

    difference = max(check_features(of_classifier, ours), check_features(of_detector, ours))
    networks = (resnet, "resnet_fpn_backbone (its pyramid starts from random weights)")
    return Proof(len(state), difference, CLASSIFIER, networks=networks)


def settings(name: str) -> dict[str, Any]:
    return pixels() | {
        "set": [
            f"net.load_state_dict(state, strict=False) for {resnet_name(name)}(weights=None): only fc is missing",
            "detector.backbone.body.load_state_dict(state) for one built with weights=None, weights_backbone=None",
            "image_mean and image_std of the detector: as they are; its BatchNorm is not frozen then",
        ]
    }


def _keep(levels: dict[int, Tensor], stride: int, module: nn.Module, inputs: object, features: Tensor) -> None:
    """A hook. A traced network would do as well, but each one that PyTorch traces stays in its caches for good."""
    levels[stride] = features


def _load(net: nn.Module, state: dict[str, Tensor], left: tuple[str, ...], where: str) -> None:
    """Load as a user does, and compare. Raises PlrcError unless exactly `left` is missing."""
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # tensors of another shape
        raise PlrcError(f"the run's student does not fit {where}: {error}") from error
    if tuple(missing) != left or unexpected:
        raise PlrcError(
            f"{where} does not take the exported names: missing {missing} instead of {list(left)}, "
            f"unexpected {unexpected}"
        )
    check_tensors({key: value for key, value in net.state_dict().items() if key not in left}, state, where)
