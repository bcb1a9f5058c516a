"""Which weights of others went into a run: those that it started from, and those of its frozen teacher."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors

from plrc.config import Config
from plrc.engine.state import WEIGHTS_RECEIPT
from plrc.engine.teacher_weights import TEACHER_RECEIPT
from plrc.errors import PlrcError
from plrc.model.starts import PRETRAINED, read_receipt

MAX_STARTS = 8  # runs that start from runs are followed at most this far
RANDOM = "random weights"
IMAGENET_LICENCE = (
    "Its name is that of published weights of torchvision or timm, most of which were trained on ImageNet. The images "
    "of ImageNet are licensed for non-commercial research only; whether that binds weights is not settled."
)
RELEASE = "If it is of `facebookresearch/PLRC`: that is CC-BY-NC 4.0, non-commercial only."
UNKNOWN = "plrc does not know their licence."
LICENCES = (
    (rf"-[0-9a-f]{{8}}\.pth$|[._]in(1k|12k|21k|22k)|^{PRETRAINED}$", IMAGENET_LICENCE),
    (r"(?i)plrc|point.?level.?region", RELEASE),
)
"""(pattern of a file's name, what to know about its licence)."""


@dataclass(frozen=True)
class Origin:
    """Weights that went into a run.

    Attributes:
        backbone: The setting that names their network.
        names: Their name without folders, that of the weights which they started from, and so on; `RANDOM` at the end
            if the chain ends in random weights.
        sha256: Of the backbone's tensors; empty if the run has no receipt of them.
        licence: What to know about their licence; empty if no licence of others is inherited.
        run: Name of the earlier run that they went into; empty for the run itself.
        is_start: Whether they are the starting weights, to which a frozen teacher anchors the run.
    """

    backbone: str
    names: tuple[str, ...]
    sha256: str
    licence: str
    run: str = ""
    is_start: bool = False

    def __str__(self) -> str:
        text = f"{self.backbone}, {', which started from '.join(self.names)}"
        if self.sha256:
            text += f", SHA-256 of the tensors {self.sha256[:12]}"
        if self.run:
            text += f", in the earlier run {self.run}"
        if not self.licence:
            return f"{text}. No licence of others is inherited."
        return f"{text}. {self.licence} Check it before you use or publish the weights of this run."


def start_origin(config: Config, run: Path) -> Origin | None:
    """Describe the weights that a run started from; None if they were random.

    Args:
        config: The settings of the run.
        run: Its folder; a receipt that is missing there is left out.
    """
    if not config.model.init:
        return None
    return _origin(config.model.backbone, config.model.init, run / WEIGHTS_RECEIPT)


def teacher_origins(config: Config, run: Path) -> list[Origin]:
    """Describe the weights of the frozen teachers that a run learned from.

    Args:
        config: The settings of the run.
        run: Its folder; a receipt that is missing there is left out.

    Returns:
        Its own teacher, if it has one; then those of the earlier runs that its weights or its teacher come from, as far
        as runs can be followed. Earlier runs that were anchored to their own start are left out.
    """
    origins: list[Origin] = []
    pending = [(config, run, "")]
    seen: set[str] = set()
    while pending:
        config, folder, name = pending.pop(0)
        inits = [config.model.init]
        is_anchor = not config.teacher.init
        if config.distills_frozen_teacher and not (name and is_anchor):
            init = config.teacher.init or config.model.init
            backbone = config.teacher.backbone or config.model.backbone
            origin = _origin(backbone, init, folder / TEACHER_RECEIPT)
            origins.append(replace(origin, run=name, is_start=is_anchor))
            inits.append(init)
        for init in inits:
            if not init or init in seen or len(seen) >= MAX_STARTS:
                continue
            seen.add(init)
            earlier = _config_of(Path(init))
            if earlier is not None:
                pending.append((earlier, _run_folder(Path(init)), file_name(init)))
    return origins


def start_of(init: str, receipt: Mapping[str, Any]) -> list[str]:
    """The starting weights of a run, the weights that those started from, and so on, as far as runs can be followed.

    Args:
        init: What the user named.
        receipt: The receipt of these weights; it has the file of `pretrained` ones.

    Returns:
        Paths, the nearest first, and `RANDOM` at the end if the chain ends in random weights.
    """
    chain: list[str] = []
    while init not in chain and len(chain) < MAX_STARTS:
        if init == PRETRAINED:
            chain.append(str(receipt.get("file") or init))
            break
        chain.append(init or RANDOM)
        if not init:
            break
        earlier = _config_of(Path(init))
        if earlier is None:
            break
        receipt = _receipt(_run_folder(Path(init)) / WEIGHTS_RECEIPT)
        init = earlier.model.init
    return chain


def file_name(path: str) -> str:
    """The last name of a path of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _origin(backbone: str, init: str, receipt_file: Path) -> Origin:
    receipt = _receipt(receipt_file)
    names = tuple(map(file_name, start_of(init, receipt)))
    licence = "" if names[-1] == RANDOM else _licence(names[-1])
    return Origin(backbone, names, str(receipt.get("content_sha256", "")), licence)


def _receipt(file: Path) -> Mapping[str, Any]:
    """A receipt; empty if it is missing or damaged."""
    try:
        return read_receipt(file)
    except PlrcError:
        return {}


def _licence(name: str) -> str:
    """What to know about the licence of weights with this name."""
    for pattern, sentence in LICENCES:
        if re.search(pattern, name):
            return sentence
    return UNKNOWN


def _run_folder(path: Path) -> Path:
    """The folder of the run that a folder or file belongs to, if it belongs to one."""
    return path.parent.parent if path.parent.name in ("checkpoints", "exported") else path


def _config_of(path: Path) -> Config | None:
    """Settings of the run that a folder or file belongs to; None if it belongs to none, or no longer exists."""
    stored = _run_folder(path) / "config.toml"
    try:
        if path.suffix == ".safetensors" and path.is_file():
            with safetensors.safe_open(path, "pt") as file:
                config = (file.metadata() or {}).get("config")
            if config:
                return Config.from_dict(json.loads(config))
        elif stored.is_file() and path.exists():
            return Config.load(stored)
    except (PlrcError, ValueError, safetensors.SafetensorError):
        pass
    return None
