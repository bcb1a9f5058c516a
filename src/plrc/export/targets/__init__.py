"""The export targets by name. A new target is one module in this folder and one row here."""

from __future__ import annotations

from plrc.export.target import Target
from plrc.export.targets import detectron2, mmdetection, onnx, safetensors, timm, torchvision, transformers

_ALL = (
    torchvision.TARGET,
    timm.TARGET,
    transformers.TARGET,
    detectron2.TARGET,
    mmdetection.TARGET,
    safetensors.TARGET,
    onnx.TARGET,
)
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
