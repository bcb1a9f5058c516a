"""Hand-over to detectron2: its names for a ResNet, in a file that MODEL.WEIGHTS can name.

Layer 5: imports model and this folder. detectron2 itself is on no package registry, so the file is checked against the
names and shapes that its code gives by rule; `plrc export --check-in` proves it in a detector of the user's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.export.formats import read_torch, write_torch
from plrc.export.pixels import pixels
from plrc.export.resnets import check_structure, find_resnet, rename
from plrc.export.verify import Proof, check_tensors
from plrc.model import naming
from plrc.model.pickles import read_arrays, write_arrays

ENDINGS = (".pth", ".pkl")


def version() -> str:
    """Nothing: the proof never runs in detectron2."""
    return ""


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors under detectron2's names: stem.conv1.weight, res2.0.conv1.norm.weight, ..."""
    return rename(student, find_resnet(name, "detectron2"), naming.detectron2)


def write(path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """What its checkpointer reads: the names fit wherever the backbone stands in a model, by matching_heuristics."""
    content = {
        "model": tensors(name, student),
        "__author__": "plrc",
        "matching_heuristics": True,
        "backbone": name,
    }
    (write_arrays if path.suffix == ".pkl" else write_torch)(path, content)


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Read the file as detectron2's checkpointer does; compare it with the run's student and with detectron2's rule.

    Raises PlrcError unless the file holds exactly the names and shapes that detectron2's ResNet has and every tensor is
    equal bit for bit.
    """
    state = (read_arrays if path.suffix == ".pkl" else read_torch)(path)["model"]
    check_tensors(state, tensors(name, student), "the file")
    check_structure(state, find_resnet(name, "detectron2"), naming.detectron2)
    return Proof(len(state), unverified="plrc does not run detectron2; plrc export --check-in can")


def settings(name: str) -> dict[str, Any]:
    net = find_resnet(name, "detectron2")
    widths = [] if net.bottleneck else ["MODEL.RESNETS.RES2_OUT_CHANNELS: 64"]
    groups = [f"MODEL.RESNETS.NUM_GROUPS: {net.groups}", f"MODEL.RESNETS.WIDTH_PER_GROUP: {net.group_width}"]
    found = pixels(255)
    return found | {
        "set": [
            "MODEL.WEIGHTS: FILE",
            'INPUT.FORMAT: "RGB" (its default is BGR)',
            f"MODEL.PIXEL_MEAN: {found['mean']}",
            f"MODEL.PIXEL_STD: {found['std']}",
            f"MODEL.RESNETS.DEPTH: {net.depth}",
            *widths,
            *([] if net.plain else groups),
            "MODEL.RESNETS.STRIDE_IN_1X1: False (the stride is in the 3 x 3 convolution)",
            'MODEL.RESNETS.NORM: "SyncBN" or "BN", MODEL.BACKBONE.FREEZE_AT: 0 (frozen statistics fit other images)',
        ]
    }
