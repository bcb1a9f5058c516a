"""Hand-over to mmdetection: torchvision's names in a .pth file that `init_cfg` can name.

Layer 5: imports model and this folder. Where mmdet can be imported the file is proven in its own ResNet, built and
initialised from a configuration; else names and shapes are checked by rule.
"""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.errors import PlrcError
from plrc.export.formats import read_torch, write_torch
from plrc.export.pixels import pixels
from plrc.export.proof import Proof, check_features, check_tensors, features_of, installed
from plrc.export.resnets import LEVELS, ResNet, check_structure, find_resnet
from plrc.model import naming

ENDINGS = (".pth",)


def version() -> str:
    return installed("mmdet")


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors as the file holds them: mmdetection's ResNet has torchvision's names."""
    _resnet(name)
    return dict(student)


def write(path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    write_torch(path, {"state_dict": tensors(name, student), "meta": metadata, "backbone": name})


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Read the file as mmengine does, build mmdetection's network from a configuration that names it, and compare.

    Raises PlrcError unless no tensor is left over on either side, every tensor is equal bit for bit, in the file and in
    the network, and features are equal at all four levels.
    """
    state = read_torch(path)["state_dict"]
    check_tensors(state, student, "the file")
    check_structure(state, _resnet(name), naming.torchvision)
    if not version():
        return Proof(len(state), unverified="mmdet is not installed")
    try:
        import_module("mmdet.utils").register_all_modules(init_default_scope=True)
    except (ImportError, AssertionError) as error:  # so it refuses an mmcv of another version
        return Proof(len(state), unverified=f"mmdet cannot be imported: {error}")
    config = backbone(name) | {"init_cfg": {"type": "Pretrained", "checkpoint": str(path)}}
    net: Any = import_module("mmdet.registry").MODELS.build(config)
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # a line for every tensor
    try:
        net.init_weights()
    finally:
        logging.disable(before)
    check_tensors(net.state_dict(), student, f"mmdetection's {config['type']}")
    net.eval()

    def theirs(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(LEVELS, net(images), strict=True))

    difference = check_features(theirs, features_of(name, student, LEVELS))
    return Proof(len(state), difference, networks=(f"{config['type']} of depth {config['depth']}",))


def backbone(name: str) -> dict[str, Any]:
    """The `backbone` of a configuration, without `init_cfg`: nothing frozen, statistics that follow the images."""
    net = _resnet(name)
    groups = {} if net.plain else {"groups": net.groups, "base_width": net.group_width}
    return {
        "type": "ResNet" if net.plain else "ResNeXt",
        "depth": net.depth,
        **groups,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": -1,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": False,
        "style": "pytorch",
    }


def settings(name: str) -> dict[str, Any]:
    found = pixels(255)
    preprocessor = f"mean={found['mean']}, std={found['std']}, bgr_to_rgb=True"
    return found | {
        "set": [
            f"model.backbone: {backbone(name)}",
            "model.backbone.init_cfg: dict(type='Pretrained', checkpoint=FILE), without prefix",
            f"model.data_preprocessor: {preprocessor} (images are read as BGR)",
            "norm_cfg: SyncBN where there are several GPUs",
        ]
    }


def _resnet(name: str) -> ResNet:
    net = find_resnet(name, "mmdetection")
    if not net.plain and net.groups == 1:
        raise PlrcError(f"mmdetection has no {name}: its ResNeXt keeps the usual width where there are no groups")
    return net
