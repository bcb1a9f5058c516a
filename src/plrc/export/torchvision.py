"""Hand-over to torchvision: the names of `torchvision.models.resnetXX()`, proven in such a network.

Layer 5: imports model and this folder. Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from plrc.config import PlrcError
from plrc.export.verify import Proof, check_features, check_tensors, read_as_user
from plrc.model.backbone import RESNETS, build_backbone

CLASSIFIER = ("fc.weight", "fc.bias")
LEVELS = {"layer1": "4", "layer2": "8", "layer3": "16", "layer4": "32"}


def version() -> str:
    return str(torchvision.__version__)


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors as the file holds them: torchvision's names are the backbone's own."""
    if name not in RESNETS:
        raise PlrcError(f"torchvision has no {name}; a run can go to torchvision when model.backbone is a ResNet of it")
    return {key: value.detach().cpu().contiguous() for key, value in student.items()}


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Load the file into a new torchvision network and compare it with the run's student.

    Raises PlrcError unless exactly the classifier is left out, every tensor is equal bit for bit, in the file and in
    the network, and both networks give equal features at all four levels. PyTorch's random state stays as it was: a
    training run may be going on.
    """
    state = read_as_user(path)
    check_tensors(state, student, "the file")
    with torch.random.fork_rng(devices=[]):
        net: nn.Module = torchvision.models.get_model(name, weights=None)
        ours = build_backbone(name, layer4_stride=2)
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # tensors of another shape
        raise PlrcError(f"the run's student is not a {name} of torchvision: {error}") from error
    if tuple(missing) != CLASSIFIER or unexpected:
        raise PlrcError(
            f"torchvision's {name} does not take the exported names: missing {missing} instead of {list(CLASSIFIER)}, "
            f"unexpected {unexpected}"
        )
    loaded = {key: value for key, value in net.state_dict().items() if key not in CLASSIFIER}
    check_tensors(loaded, student, f"torchvision's {name}")
    ours.net.load_state_dict(student)
    levels = create_feature_extractor(net.eval(), LEVELS)

    def theirs(images: Tensor) -> dict[int, Tensor]:
        return {int(level): features for level, features in levels(images).items()}

    return Proof(len(state), check_features(theirs, ours.eval()), CLASSIFIER)
