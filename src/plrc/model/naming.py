"""ResNets of detectron2 and transformers in a file: their tensors under torchvision's names. Layer 2: imports nothing.

timm and mmdetection use torchvision's names for a ResNet, so there is nothing to do for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

START = r"(^|\.)"  # a prefix may stand before the names
_DETECTRON2 = (
    (START + r"stem\.conv1\.norm\.", r"\1bn1."),
    (START + r"stem\.conv1\.", r"\1conv1."),
    *((START + rf"res{stage + 1}\.(\d+)\.", rf"\1layer{stage}.\2.") for stage in range(1, 5)),
    (r"(\.\d+\.)conv(\d)\.norm\.", r"\1bn\2."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)
_TRANSFORMERS = (
    (START + r"embedder\.embedder\.convolution\.", r"\1conv1."),
    (START + r"embedder\.embedder\.normalization\.", r"\1bn1."),
    *((START + rf"encoder\.stages\.{stage - 1}\.layers\.(\d+)\.", rf"\1layer{stage}.\2.") for stage in range(1, 5)),
    *((rf"\.layer\.{i - 1}\.convolution\.", f".conv{i}.") for i in range(1, 4)),
    *((rf"\.layer\.{i - 1}\.normalization\.", f".bn{i}.") for i in range(1, 4)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
_NAMINGS = {
    "res2.0.conv1.norm.weight": _DETECTRON2,
    "encoder.stages.0.layers.0.layer.0.normalization.weight": _TRANSFORMERS,
}
"""A tensor that every ResNet of a library has -> what turns its names into torchvision's."""


def torchvision_names(names: Iterable[str]) -> dict[str, str]:
    """{name in a file: torchvision's name for it}, prefixes kept; the same name where the file holds no such ResNet."""
    out = {name: name for name in names}
    for sign, rules in _NAMINGS.items():
        if any(name == sign or name.endswith(f".{sign}") for name in out):
            for pattern, by in rules:
                out = {name: re.sub(pattern, by, now) for name, now in out.items()}
    return out
