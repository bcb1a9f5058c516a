"""Hand-over to timm: the names of `timm.create_model(NAME, features_only=True)`, proven in such a network.

Layer 5: imports model and this folder; timm is an extra. For ResNets and most others these are also the names of the
plain model; where features_only renames (ConvNeXt: stages_0 for stages.0), the file follows features_only, which is
what detectors build on. Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.config import PlrcError
from plrc.export.verify import Proof, check_features, check_tensors, read_as_user
from plrc.model.backbone import build_backbone

PREFIX = "timm:"  # of model.backbone


def version() -> str:
    return installed("timm")


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors as the file holds them: timm's names are the backbone's own."""
    if not name.startswith(PREFIX):
        raise PlrcError(f"{name} is torchvision's, not timm's; write --to torchvision")
    return {key: value.detach().cpu().contiguous() for key, value in student.items()}


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Load the file into a new timm network and compare it with the run's student.

    Raises PlrcError unless no tensor is left over on either side, every tensor is equal bit for bit, in the file and in
    the network, and both networks give equal features at all levels.
    """
    ours = build_backbone(name)  # one sentence where timm is not installed
    import timm

    state = read_as_user(path)
    check_tensors(state, student, "the file")
    net: Any = timm.create_model(name.removeprefix(PREFIX), pretrained=False, features_only=True)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:  # names or shapes that differ
        raise PlrcError(f"the run's student is not a {name}: {error}") from error
    check_tensors(net.state_dict(), student, name)
    ours.net.load_state_dict(student)
    net.eval()

    def theirs(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(net.feature_info.reduction(), net(images), strict=True))

    return Proof(len(state), check_features(theirs, ours.eval()), left_random=())
