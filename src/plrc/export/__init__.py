"""Hand-over of a trained backbone: written in the names of the library that goes on with it, then proven.

Layer 5: imports engine and below, never transfer, visualize or bench. `export_backbone` writes a file and verifies it;
`load_backbone` gives a trained backbone back. A new target is one file like `torchvision.py` and one line in TARGETS.
"""

from __future__ import annotations

from pathlib import Path

from plrc.config import Config, PlrcError
from plrc.engine.checkpoint import checkpoint_of
from plrc.export.write import BACKBONE, TARGETS, Receipt, export_backbone, library_of
from plrc.model.backbone import Backbone, build_backbone
from plrc.model.weights import load_into, read_weights, stored_name

__all__ = ["BACKBONE", "TARGETS", "Receipt", "export_backbone", "library_of", "load_backbone"]


def load_backbone(path: str | Path, layer4_stride: int = 2, backbone: str = "") -> Backbone:
    """A trained backbone in eval mode: images [B, 3, H, W] -> {s: features [B, channels[s], ceil(H / s), ceil(W / s)]}.

    Images are float, normalised with ImageNet's mean and standard deviation. `path`: a run folder (its newest
    checkpoint), a checkpoint, or an exported .safetensors or .pt file. A file that does not say which backbone it holds
    needs its name in `backbone` (resnet50, timm:NAME, ...). With `layer4_stride=1` (torchvision ResNets) the level
    called 32 has the lattice of level 16. Raises PlrcError where the weights do not fit.
    """
    path = Path(path)
    weights = read_weights(checkpoint_of(path))
    stored = stored_name(weights.metadata)
    name = stored or backbone
    if not name:
        raise PlrcError(f"{path} does not say which backbone it holds; name it, such as backbone='resnet50'")
    if backbone not in ("", name):
        raise PlrcError(f"{path} holds a {name}, not a {backbone}; leave `backbone` out")
    model = Config().with_values({"model.backbone": name, "model.layer4_stride": layer4_stride}).model
    net = build_backbone(model.backbone, model.layer4_stride)
    load_into(net, weights)
    return net.eval()
