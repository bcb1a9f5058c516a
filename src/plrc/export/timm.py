"""Hand-over to timm: the names of `timm.create_model(NAME, features_only=True)`, proven in such a network.

Layer 5: imports model and this folder; timm is an extra. For ResNets and most others these are also the names of the
plain model; where features_only renames (ConvNeXt: stages_0 for stages.0), the file follows features_only, which is
what detectors build on. torchvision's ResNets go to timm's of the same name.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.errors import PlrcError
from plrc.export.formats import read_tensors, write_tensors
from plrc.export.pixels import pixels
from plrc.export.proof import Proof, check_features, check_tensors, features_of, installed
from plrc.export.resnets import LEVELS, check_structure, find_resnet, resnet_name
from plrc.model import naming

ENDINGS = (".safetensors", ".pt")
PREFIX = "timm:"  # of model.backbone


def version() -> str:
    return installed("timm")


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors as the file holds them: timm's names are the backbone's own."""
    if not name.startswith(PREFIX):
        find_resnet(name, "timm")
    return dict(student)


def write(path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    write_tensors(path, tensors(name, student), metadata)


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Load the file into a new timm network, with timm's own loader, and compare it with the run's student.

    Raises PlrcError unless no tensor is left over on either side, every tensor is equal bit for bit, in the file and in
    the network, and both networks give equal features at all levels.
    """
    expected = tensors(name, student)
    state = read_tensors(path)
    check_tensors(state, expected, "the file")
    ours = features_of(name, student, () if name.startswith(PREFIX) else LEVELS)
    if not version():
        check_structure(state, find_resnet(name, "timm"), naming.torchvision)
        return Proof(len(state), unverified="timm is not installed")
    import timm

    model = _model(name)
    try:
        net: Any = timm.create_model(model, pretrained=False, features_only=True, checkpoint_path=str(path))
    except RuntimeError as error:  # names or shapes that differ
        raise PlrcError(f"the run's student is not a {name}: {error}") from error
    check_tensors(net.state_dict(), expected, f"timm's {model}")
    net.eval()
    strides = net.feature_info.reduction()
    wanted = strides if name.startswith(PREFIX) else LEVELS

    def theirs(images: Tensor) -> dict[int, Tensor]:
        return {stride: f for stride, f in zip(strides, net(images), strict=True) if stride in wanted}

    return Proof(len(state), check_features(theirs, ours), networks=(f"{model} with features_only",))


def settings(name: str) -> dict[str, Any]:
    model = _model(name)
    return pixels() | {
        "set": [
            f"timm.create_model({model!r}, features_only=True, checkpoint_path=FILE)",
            f"for ResNets also timm.create_model({model!r}, num_classes=0, checkpoint_path=FILE)",
            "mean and std of the data configuration: as above, whatever the model's own are",
        ]
    }


def _model(name: str) -> str:
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else resnet_name(name)
