"""Hand-over of a trained backbone: written in the names of the library that goes on with it, then proven.

Layer 5: imports engine and below, never transfer, visualize or bench. `export_backbone` writes a file and verifies it;
`load_backbone` gives a trained backbone back. A new target is one file like `torchvision.py` and one line in TARGETS.
"""

from __future__ import annotations

from plrc.export.features import DenseFeatures, load_backbone
from plrc.export.write import BACKBONE, TARGETS, Receipt, export_backbone, library_of

__all__ = ["BACKBONE", "TARGETS", "DenseFeatures", "Receipt", "export_backbone", "library_of", "load_backbone"]
