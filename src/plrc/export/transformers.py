"""Hand-over to transformers: a folder for `ResNetBackbone.from_pretrained(FOLDER)`, which DETR can stand on.

Layer 5: imports model and this folder; transformers is an extra. The folder holds model.safetensors and config.json.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.errors import PlrcError
from plrc.export.formats import read_tensors, write_tensors
from plrc.export.pixels import pixels
from plrc.export.proof import Features, Proof, check_features, check_tensors, features_of, installed
from plrc.export.resnets import LEVELS, ResNet, check_structure, find_resnet, rename
from plrc.files import write_json
from plrc.model import naming
from plrc.model.naming import COUNTER

ENDINGS = ()  # --out names a folder
FILE = "model.safetensors"
STAGES = ("stage1", "stage2", "stage3", "stage4")
SMALL_DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 2,
}  # fmt: skip
"""Numbers of the detector's other parts, which the proof does not look at."""
DETR = (
    "DETR: DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, "
    "backbone_config=ResNetConfig.from_pretrained(FOLDER)), then load_state_dict of model.safetensors into its "
    "ResNetBackbone; its BatchNorm is frozen, so give the backbone a learning rate of its own"
)


def version() -> str:
    return installed("transformers")


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors under the names of ResNetBackbone."""
    return rename(student, _resnet(name), naming.transformers)


def write(path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """model.safetensors, and config.json beside it."""
    write_tensors(path, tensors(name, student), metadata | {"format": "pt"})  # the word that transformers asks for
    write_json(path.with_name("config.json"), configuration(_resnet(name)))


def configuration(net: ResNet) -> dict[str, Any]:
    """The settings of `transformers.ResNetConfig` for the same network."""
    return {
        "architectures": ["ResNetBackbone"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": list(net.widths),
        "depths": list(net.blocks),
        "layer_type": "bottleneck" if net.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "out_features": list(STAGES),
        "dtype": "float32",
    }


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Load the folder as `from_pretrained` does, and its weights into a DETR; compare both with the run's student.

    Raises PlrcError unless no tensor is left over on either side, every tensor is equal bit for bit, and features are
    equal at all four levels. DETR's frozen BatchNorm has no step counters.
    """
    net, expected = _resnet(name), tensors(name, student)
    state = read_tensors(path)
    check_tensors(state, expected, "the file")
    if not version():
        check_structure(state, net, naming.transformers)
        return Proof(len(state), unverified="transformers is not installed")
    model = _from_pretrained(path.parent)
    check_tensors(model.state_dict(), expected, "transformers' ResNetBackbone")
    inside = _in_detr(model, state)
    frozen = {key: value for key, value in expected.items() if not key.endswith(COUNTER)}
    check_tensors(inside.state_dict(), frozen, "the backbone of transformers' DETR")
    ours = features_of(name, student, LEVELS)

    def theirs(network: Any) -> Features:
        network.eval()
        return lambda images: dict(zip(LEVELS, network(images).feature_maps, strict=True))

    difference = max(check_features(theirs(network), ours) for network in (model, inside))
    return Proof(len(state), difference, networks=("ResNetBackbone", "DetrForObjectDetection's backbone"))


def _from_pretrained(folder: Path) -> Any:
    """A ResNetBackbone with the folder's weights. Raises PlrcError where a tensor is left over on either side."""
    library: Any = import_module("transformers")
    bar = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        model, info = library.ResNetBackbone.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    finally:
        if bar:
            library.utils.logging.enable_progress_bar()
    left = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if left:
        raise PlrcError(f"transformers' ResNetBackbone does not take the exported tensors: {left}")
    return model


def _in_detr(model: Any, state: dict[str, Tensor]) -> Any:
    """The ResNetBackbone inside a new DETR, with the weights loaded there as a user does it."""
    library: Any = import_module("transformers")
    config = library.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=model.config,
        **SMALL_DETR,
    )
    detector = library.DetrForObjectDetection(config)
    inside = next(module for module in detector.modules() if isinstance(module, library.ResNetBackbone))
    inside.load_state_dict(state)
    return inside


def settings(name: str) -> dict[str, Any]:
    return pixels() | {
        "set": [
            "ResNetBackbone.from_pretrained(FOLDER)",
            DETR,
            "image processor: rescale to 0 to 1, image_mean and image_std as above",
        ]
    }


def _resnet(name: str) -> ResNet:
    net = find_resnet(name, "transformers")
    if not net.plain:
        raise PlrcError(f"transformers has no {name}: its ResNet knows neither groups nor other widths")
    return net
