"""Settings of the networks: backbone and projection heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plrc.settings import require, require_at_least


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and projection heads."""

    backbone: str = "resnet50"
    """A torchvision ResNet (resnet18, resnet50, ...), timm:NAME (needs timm), or your own function that returns a
    network: package.module:function or path/to/file.py:function (docs/HANDOVER.md)."""
    stride: int = 32
    """The feature level to train, as its stride if `layer4_stride` is 2. Later layers are not trained."""
    layer4_stride: Literal[1, 2] = 2
    """torchvision ResNets: stride of layer4 during pre-training. 1 doubles the resolution of the feature grid; the
    weight tensors keep their shapes."""
    init: str = ""
    """Initial weights of the backbone: a plrc run, an export, or a state-dict file. Empty: random."""
    contrast_hidden: int = 2048
    """Hidden width of the head for the image and point terms."""
    contrast_dim: int = 128
    """Output width of the head for the image and point terms."""
    distill_hidden: int = 2048
    """Hidden width of the head for affinity distillation."""
    distill_dim: int = 256
    """Output width of the head for affinity distillation."""
    bn_groups: int = 8
    """Each process splits its batch into this many groups with separate BatchNorm statistics. The teacher gets the
    images in other groups than the student, so that batch statistics do not leak which images belong together. With
    several processes, 1 is enough: each process is a group."""
    sync_bn: bool = False
    """Several processes on GPUs: share BatchNorm statistics over the processes. If bn_groups > 1, each group shares
    them with the groups of the same number in the other processes."""

    def __post_init__(self) -> None:
        for name in ("stride", "contrast_hidden", "contrast_dim", "distill_hidden", "distill_dim", "bn_groups"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        if ":" in self.backbone:  # timm:NAME or a function of the user
            require(self.layer4_stride == 2, "model.layer4_stride 1 is for torchvision ResNets only; write 2")
