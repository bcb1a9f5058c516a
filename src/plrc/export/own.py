"""Hand-over of a backbone of the user's own: its module's own names, proven in a network that its function builds anew.

Layer 5: imports model and this folder. Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from plrc.config import PlrcError
from plrc.export.verify import Proof, check_features, check_tensors, read_as_user
from plrc.model.backbone import Backbone, build_backbone
from plrc.model.own import by_stride, is_code, own_backbone


def version() -> str:
    return f"code (PyTorch {torch.__version__})"


def trusted(stored: str, named: str, how: str) -> str:
    """The code to import for a run that stored its name: what the user names in this call, or a refusal.

    A run folder may be somebody else's, so the name in it is shown and not followed. What the user names may differ
    from it, such as a file that has moved: whether it is the same network, its tensors decide.
    """
    if not named:
        raise PlrcError(
            f"this backbone is a network of somebody's own code ({stored}), which is imported only where you name it; "
            f"if you trust it, add {how.format(stored)}"
        )
    if not is_code(named):
        raise PlrcError(f"this backbone is a network of somebody's own code ({stored}), not a {named}")
    return named


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors as the file holds them; tied ones are written as often as they are named."""
    if not is_code(name):
        library = "timm" if name.startswith("timm:") else "torchvision"
        raise PlrcError(f"{name} is {library}'s, not code of your own; write --to {library}")
    return {key: value.detach().cpu().contiguous().clone() for key, value in student.items()}


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Load the file, strictly, into a network that the user's function builds anew, and compare it with the student.

    Raises PlrcError unless no tensor is left over on either side, every tensor is equal bit for bit, in the file and in
    the network, and both give equal features at all levels. PyTorch's random state stays as it was.
    """
    state = read_as_user(path)
    check_tensors(state, student, "the file")
    with torch.random.fork_rng(devices=[]):
        net, _ = own_backbone(name)
        ours: Backbone = build_backbone(name)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:  # names or shapes that differ
        raise PlrcError(f"the run's student is not the network of {name}: {error}") from error
    check_tensors(net.state_dict(), student, f"the network of {name}")
    ours.net.load_state_dict(student)
    net.eval()
    return Proof(len(state), check_features(lambda images: by_stride(net, net(images)), ours.eval()), left_random=())
