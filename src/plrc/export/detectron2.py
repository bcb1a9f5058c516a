"""Hand-over to detectron2: its names for a ResNet, in a file that MODEL.WEIGHTS can name.

Layer 5: imports model and this folder. Where detectron2 can be imported (it is on no package registry, and its compiled
operators are not needed) the file is proven in its own ResNet, loaded by its own checkpointer; else names and shapes
are checked by rule.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plrc.export.formats import read_torch, write_torch
from plrc.export.pixels import pixels
from plrc.export.proof import Proof, check_features, check_tensors, features_of
from plrc.export.resnets import LEVELS, check_structure, find_resnet, rename
from plrc.model import naming
from plrc.model.pickles import read_arrays, write_arrays

ENDINGS = (".pth", ".pkl")


def version() -> str:
    return str(import_module("detectron2").__version__) if find_spec("detectron2") else ""


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
    """Read the file as detectron2's checkpointer does; where detectron2 is there, load it into its ResNet and compare.

    Raises PlrcError unless the file holds exactly the names and shapes that detectron2's ResNet has, every tensor is
    equal bit for bit, in the file and in the network, and features are equal at all four levels.
    """
    state, expected = (read_arrays if path.suffix == ".pkl" else read_torch)(path)["model"], tensors(name, student)
    check_tensors(state, expected, "the file")
    check_structure(state, find_resnet(name, "detectron2"), naming.detectron2)
    if not version():
        return Proof(len(state), unverified="detectron2 is not installed; plrc verify proves it where it is")
    try:
        net = _network(name)
    except ImportError as error:
        return Proof(len(state), unverified=f"detectron2 cannot be imported: {error}")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # a table of all tensors
    try:
        import_module("detectron2.checkpoint").DetectionCheckpointer(net).load(str(path))
    finally:
        logging.disable(before)
    loaded = {key: tensor for key, tensor in net.state_dict().items() if not key.endswith(naming.COUNTER)}
    held = {key: tensor for key, tensor in expected.items() if not key.endswith(naming.COUNTER)}
    check_tensors(loaded, held, "detectron2's ResNet")
    net.eval()

    def theirs(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(LEVELS, net(images).values(), strict=True))

    difference = check_features(theirs, features_of(name, student, LEVELS))
    return Proof(len(state), difference, networks=(f"ResNet of depth {find_resnet(name, 'detectron2').depth}",))


def _network(name: str) -> nn.Module:
    """detectron2's own ResNet as `settings` says, with nothing frozen."""
    net, config = find_resnet(name, "detectron2"), import_module("detectron2.config").get_cfg()
    modeling = import_module("detectron2.modeling")
    config.MODEL.BACKBONE.NAME, config.MODEL.BACKBONE.FREEZE_AT = "build_resnet_backbone", 0
    resnets = config.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = net.depth, "BN", False
    resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = net.groups, net.group_width
    resnets.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if not net.bottleneck:
        resnets.RES2_OUT_CHANNELS = 64
    built: nn.Module = modeling.build_backbone(config)
    return built


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
