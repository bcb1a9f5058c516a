"""Export of a trained backbone to the library that continues with it, and its proof.

`export_backbone` writes a file and proves it; `load_backbone` loads a trained backbone.
"""

from __future__ import annotations

from plrc.export.features import DenseFeatures, load_backbone
from plrc.export.receipt import Receipt
from plrc.export.targets import TARGETS
from plrc.export.write import BACKBONE_PREFIX, default_target, export_backbone

__all__ = [
    "BACKBONE_PREFIX",
    "TARGETS",
    "DenseFeatures",
    "Receipt",
    "default_target",
    "export_backbone",
    "load_backbone",
]
