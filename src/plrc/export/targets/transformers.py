"""Export to transformers: a folder for `ResNetBackbone.from_pretrained(FOLDER)`, on which DETR can be built.

The folder holds model.safetensors and config.json. transformers is an optional package.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.errors import ExportError
from plrc.export import resnets
from plrc.export.formats import write_tensors
from plrc.export.resnets import ResNet, find_resnet
from plrc.export.target import LEVELS, Features, LoadedNetwork, State, Target
from plrc.files import write_json
from plrc.machine import installed_version
from plrc.model import naming
from plrc.pixels import RGB_CHANNELS, PixelStatistics

STAGES = ("stage1", "stage2", "stage3", "stage4")
SMALL_DETR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 2,
}
"""Settings of the detector's other parts, which the proof does not look at."""
DETR = (
    "DETR: DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, "
    "backbone_config=ResNetConfig.from_pretrained(FOLDER)), then load_state_dict of model.safetensors into its "
    "ResNetBackbone; its BatchNorm is frozen, so give the backbone a learning rate of its own"
)


def rename(backbone: str, student: State) -> State:
    """The student's tensors under the names of ResNetBackbone."""
    return resnets.rename(student, _resnet(backbone), naming.transformers)


def write(file: Path, backbone: str, student: State, metadata: dict[str, str]) -> None:
    """Write model.safetensors, and config.json into the same folder."""
    write_tensors(file, rename(backbone, student), metadata | {"format": "pt"})  # the format that transformers asks for
    write_json(file.with_name("config.json"), configuration(_resnet(backbone), student["conv1.weight"].shape[1]))


def configuration(net: ResNet, channels: int = RGB_CHANNELS) -> dict[str, Any]:
    """The settings of `transformers.ResNetConfig` for the same network on images of so many channels."""
    return {
        "architectures": ["ResNetBackbone"],
        "model_type": "resnet",
        "num_channels": channels,
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


def load(file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Load the folder as `from_pretrained` does, and the file into a DETR, whose frozen BatchNorm has no counters."""
    model = _from_pretrained(file.parent)
    inside = _inside_detr(model.config)
    inside.load_state_dict(tensors)
    return [
        LoadedNetwork("ResNetBackbone", model.state_dict(), _features(model)),
        LoadedNetwork(
            "DetrForObjectDetection's backbone", inside.state_dict(), _features(inside), keeps_counters=False
        ),
    ]


def _features(network: Any) -> Features:
    network.eval()

    def features(images: Tensor) -> dict[int, Tensor]:
        return dict(zip(LEVELS, network(images).feature_maps, strict=True))

    return features


def _from_pretrained(folder: Path) -> Any:
    """A ResNetBackbone with the folder's weights. Raises ExportError where names are missing or unexpected."""
    library: Any = import_module("transformers")
    shows_progress = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        model, info = library.ResNetBackbone.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    finally:
        if shows_progress:
            library.utils.logging.enable_progress_bar()
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if problems:
        raise ExportError(f"transformers' ResNetBackbone does not take the exported tensors: {problems}")
    return model


def _inside_detr(backbone_config: Any) -> Any:
    """The ResNetBackbone inside a new DETR."""
    library: Any = import_module("transformers")
    config = library.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone_config,
        **SMALL_DETR,
    )
    detector = library.DetrForObjectDetection(config)
    return next(module for module in detector.modules() if isinstance(module, library.ResNetBackbone))


def instructions(backbone: str, pixels: PixelStatistics) -> list[str]:
    """What has to be set in transformers."""
    return [
        "ResNetBackbone.from_pretrained(FOLDER)",
        DETR,
        "image processor: rescale to 0 to 1, image_mean and image_std as above",
    ]


def _resnet(backbone: str) -> ResNet:
    net = find_resnet(backbone, "transformers")
    if not net.plain:
        raise ExportError(f"transformers has no {backbone}: its ResNet has neither groups nor other widths")
    return net


TARGET = Target(
    name="transformers",
    package="transformers",
    version=partial(installed_version, "transformers"),
    rename=rename,
    load=load,
    instructions=instructions,
    endings=(),
    file_in_folder="model.safetensors",
    naming=naming.transformers,
    write=write,
)
