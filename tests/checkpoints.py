"""Small detectors of transformers with random weights, in folders of its own `save_pretrained`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plrc.model.transformers_networks import place_of_backbone

KINDS = ("rt_detr", "rt_detr_v2", "d_fine", "rf_detr")
SIDE = 96  # of images that all of them take, in pixels
WIDTHS = [16, 32, 64, 128]
TRANSFORMER = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 16,
    "decoder_layers": 2,
    "encoder_in_channels": WIDTHS[1:],
    "decoder_in_channels": [32, 32, 32],
}


def detector_settings(kind: str, classes: Sequence[str], depth: int = 1) -> Any:
    """The library's configuration of a detector whose backbone has `depth` blocks in each stage."""
    import transformers as library

    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    backbone: Any
    if kind == "rf_detr":
        backbone = library.RfDetrDinov2Config(
            hidden_size=32,
            num_hidden_layers=3 + depth,
            num_attention_heads=2,
            patch_size=8,
            image_size=64,
            num_windows=2,
            mlp_ratio=2,
            out_indices=[2, 3 + depth],
        )
        return library.RfDetrConfig(
            backbone_config=backbone,
            d_model=32,
            num_queries=16,
            decoder_layers=2,
            decoder_ffn_dim=32,
            decoder_self_attention_heads=2,
            decoder_cross_attention_heads=2,
            **labels,
        )
    if kind == "d_fine":
        backbone = library.HGNetV2Config(
            stem_channels=[3, 8, 16],
            stage_in_channels=[16, 16, 32, 64],
            stage_mid_channels=[8, 8, 16, 16],
            stage_out_channels=WIDTHS,
            stage_num_blocks=[1, 1, depth, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            embedding_size=16,
            hidden_sizes=WIDTHS,
            depths=[1, 1, 1, 1],
            out_indices=[2, 3, 4],
        )
        return library.DFineConfig(backbone_config=backbone, **TRANSFORMER, **labels)
    backbone = library.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=WIDTHS, depths=[1, 1, depth, 1], layer_type="bottleneck", out_indices=[2, 3, 4]
    )
    settings_class = library.RTDetrConfig if kind == "rt_detr" else library.RTDetrV2Config
    return settings_class(backbone_config=backbone, **TRANSFORMER, **labels)


def save_detector(
    kind: str, folder: Path, classes: Sequence[str] = ("cat", "dog", "owl"), seed: int = 0, depth: int = 1
) -> Path:
    """Build a detector with random weights, whose BatchNorm has seen images, and save it as the library does."""
    import transformers as library

    settings = detector_settings(kind, classes, depth)
    network_class = getattr(library, type(settings).__name__.replace("Config", "ForObjectDetection"))
    library.utils.logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = network_class(settings)
        backbone = library.AutoBackbone.from_config(settings.backbone_config).train()
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        backbone(torch.rand(4, 3, SIDE, SIDE))
    network.get_submodule(place_of_backbone(network)).load_state_dict(backbone.state_dict(), strict=False)
    network.save_pretrained(folder)
    return folder


def save_in_half(folder: Path, out: Path, kind: torch.dtype) -> Path:
    """Save a detector in half precision, as its users do."""
    import transformers as library

    settings = library.AutoConfig.from_pretrained(folder)
    network_class = getattr(library, type(settings).__name__.replace("Config", "ForObjectDetection"))
    network_class.from_pretrained(folder, dtype=kind).save_pretrained(out)
    return out
