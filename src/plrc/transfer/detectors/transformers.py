"""RT-DETR (v1 and v2), D-FINE and RF-DETR from transformers, an optional package, around our backbones.

The networks, their losses (Hungarian matching) and the choice of the best predictions are the library's. Images are
resized to squares, as its image processors do. Around the backbone of a detector of the same kind (transformers:FOLDER)
its folder decides how the network is built, not the settings.

Shapes: B images, H x W an image, S side of the square, Q queries, K classes, n objects of an image, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc import rng
from plrc.errors import ConfigError
from plrc.model.backbone import Backbone
from plrc.model.transformers_networks import (
    CLASSES,
    PREFIX,
    detector_type,
    folder_of,
    import_transformers,
    place_of_backbone,
    read_settings,
)
from plrc.transfer.norms import prepare_backbone
from plrc.transfer.protocols import DetectorConfig, InputConfig

STRIDES = (8, 16, 32)  # of the levels that RT-DETR and D-FINE read
SIZE_STEP = 32  # pixels between the sides that training draws from
BODY = "body"  # name of our backbone in the module that takes the place of the library's
PREDICTIONS = 100  # per image, as COCO's score counts them
HEAD_WIDTH = 32  # features of an attention head


def build_detector(
    backbone: Backbone, config: DetectorConfig, size: InputConfig, classes: int, masks: bool, seed: int
) -> nn.Module:
    """Build a detector of transformers; see `plrc.transfer.detectors.build_detector`."""
    if masks:
        raise ConfigError(f"{config.detector} predicts boxes alone; write --model.detector faster_rcnn for masks")
    library = import_transformers(f"the detector {config.detector}")
    prepare_backbone(backbone, config.norm, config.trainable_layers)
    network_class = getattr(library, CLASSES[config.detector])
    from_folder = is_built_from_folder(backbone.name, config.detector)
    if from_folder:
        settings = read_settings(folder_of(backbone.name))
        settings.num_labels = classes
    else:
        settings = network_class.config_class(**_settings(backbone, config, classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(seed, "heads"))
        network = network_class(settings)
    if from_folder:
        network.set_submodule(place_of_backbone(network), LibraryBody(backbone))
    elif config.detector == "rf_detr":
        network.model.backbone.backbone = TokenMap(backbone)
    else:
        network.model.backbone = Levels(backbone)
    return SquareDetector(network, size, backbone)


def is_built_from_folder(backbone: str, detector: str) -> bool:
    """Return whether a detector is built as the folder in the name of its backbone says: if it is of the same kind."""
    return backbone.startswith(PREFIX) and detector_type(folder_of(backbone)) == detector


class LibraryBody(nn.Module):
    """The backbone of a detector's folder in its own place: images [B, 3, S, S] -> the library's output."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Any:
        return self.body.net(images)


class Levels(nn.Module):
    """A backbone in the place of the library's: images [B, 3, S, S] -> a list of (features, mask), fine to coarse."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        levels = self.body(images)
        outputs = []
        for stride in STRIDES:
            features = levels[stride]
            is_image = torch.ones((len(images), *features.shape[2:]), dtype=torch.bool, device=images.device)
            outputs.append((features, is_image))
        return outputs


class FeatureMaps:
    """What a backbone of the library returns."""

    def __init__(self, feature_maps: tuple[Tensor, ...]) -> None:
        self.feature_maps = feature_maps


class TokenMap(nn.Module):
    """A vision transformer in the place of RF-DETR's: images [B, 3, S, S] -> its only feature map."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> FeatureMaps:
        return FeatureMaps(tuple(self.body(images).values()))


class SquareDetector(nn.Module):
    """A network of transformers with the inputs and outputs of torchvision's detectors.

    Args:
        network: The network.
        size: Sides of the squares that images are resized to, rounded up to a multiple that the backbone takes.
            Training draws a side from low, low + SIZE_STEP, ... high with PyTorch's generator.
        backbone: Its backbone, which decides which sides fit and how pixels are normalized.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: InputConfig, backbone: Backbone) -> None:
        super().__init__()
        self.network = network
        sides = [*range(round(size.train_size[0]), round(size.train_size[1]) + 1, SIZE_STEP), round(size.test_size)]
        multiple = max(STRIDES) if backbone.multiple == 1 else backbone.multiple
        fitting = [multiple if backbone.fixed else -(-side // multiple) * multiple for side in sides]
        self.train_sides = sorted(set(fitting[:-1]))
        self.test_side = fitting[-1]
        self._check_queries(min(fitting), backbone)
        self.register_buffer("mean", torch.tensor(backbone.pixels.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(backbone.pixels.std)[:, None, None], persistent=False)

    def _check_queries(self, side: int, backbone: Backbone) -> None:
        """Raise ConfigError if the smallest square has fewer feature positions than there are queries."""
        settings: Any = self.network.config
        from_folder = is_built_from_folder(backbone.name, settings.model_type)
        reads_all = settings.model_type == "rf_detr" or from_folder
        strides = backbone.channels if reads_all else STRIDES
        positions = sum((-(-side // stride)) ** 2 for stride in strides)
        if positions < settings.num_queries:
            fewer = "" if from_folder else f"--model.queries {positions}, or "
            raise ConfigError(
                f"squares of {side} px have {positions} feature positions, fewer than the detector's "
                f"{settings.num_queries} queries; write {fewer}larger --input.train-size, --input.test-size and "
                "--input.max-size"
            )

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Return the loss of a batch if there are targets, else the predictions of each image."""
        if targets is None:
            output = self.network(pixel_values=self._squares(images, self.test_side))
            predictions = []
            for image, corners, scores, classes in zip(
                images, *best_predictions(output.logits, output.pred_boxes), strict=True
            ):
                height, width = image.shape[1:]
                scale = corners.new_tensor([width, height, width, height])
                predictions.append({"boxes": corners * scale, "labels": classes + 1, "scores": scores})
            return predictions
        side = self.train_sides[int(torch.randint(len(self.train_sides), (1,)))]
        labels = []
        for image, target in zip(images, targets, strict=True):
            labels.append({"class_labels": target["labels"] - 1, "boxes": _shares(target["boxes"], image)})
        return {"loss": self.network(pixel_values=self._squares(images, side), labels=labels).loss}

    def _squares(self, images: Sequence[Tensor], side: int) -> Tensor:
        """Normalized squares [B, C, S, S]."""
        squares = []
        for image in images:
            normalized = ((image - self.mean) / self.std)[None]
            squares.append(F.interpolate(normalized, (side, side), mode="bilinear", antialias=True))
        return torch.cat(squares)


def _shares(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes x0 y0 x1 y1 in pixels [n, 4] -> center x, center y, width, height as shares of the image's sides."""
    height, width = image.shape[1:]
    corners = boxes.float() / boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)


def best_predictions(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the most confident pairs of query and class, at most PREDICTIONS.

    Args:
        logits: [B, Q, K].
        boxes: Center x, center y, width and height as shares of the image's sides, [B, Q, 4].

    Returns:
        Corners x0 y0 x1 y1 as shares [B, N, 4], scores [B, N] and classes from 0 [B, N].
    """
    probabilities = logits.float().sigmoid().flatten(1)
    classes = logits.shape[2]
    scores, chosen = probabilities.topk(min(PREDICTIONS, logits.shape[1] * classes))
    queries = (chosen // classes)[:, :, None].expand(-1, -1, 4)
    centers, sides = boxes.float().gather(1, queries).split(2, dim=2)
    corners = torch.cat([centers - sides / 2, centers + sides / 2], dim=2).clamp(0, 1)
    return corners, scores, chosen % classes


def _settings(backbone: Backbone, config: DetectorConfig, classes: int) -> dict[str, Any]:
    """The settings of the library's configuration.

    The backbone in them has the same channels as ours, which replaces it, and is otherwise as small as it can be.
    """
    heads = max(1, config.width // HEAD_WIDTH)
    if config.width % (4 * heads):
        raise ConfigError(f"model.width must be a multiple of {HEAD_WIDTH} for {config.detector}, got {config.width}")
    common = {
        "num_labels": classes,
        "d_model": config.width,
        "num_queries": config.queries,
        "decoder_layers": config.decoder_layers,
        "decoder_ffn_dim": config.hidden,
    }
    if config.detector == "rf_detr":
        return common | _token_settings(backbone, heads)
    missing = [str(stride) for stride in STRIDES if stride not in backbone.channels]
    if missing:
        raise ConfigError(
            f"{config.detector} reads features of strides 8, 16 and 32, and {backbone.name} has none of stride "
            f"{', '.join(missing)}; choose another model.backbone, or --model.detector rf_detr for a vision transformer"
        )
    if config.decoder_layers < 2:
        raise ConfigError(f"model.decoder_layers must be >= 2 for {config.detector}, got {config.decoder_layers}")
    channels = [backbone.channels[stride] for stride in STRIDES]
    placeholder = {
        "embedding_size": 8,
        "hidden_sizes": [8, *channels],
        "depths": [1, 1, 1, 1],
        "layer_type": "bottleneck",
        "out_indices": [2, 3, 4],
    }
    return common | {
        "backbone_config": _backbone_settings("RTDetrResNetConfig", placeholder),
        "encoder_in_channels": channels,
        "encoder_hidden_dim": config.width,
        "encoder_ffn_dim": config.hidden,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "decoder_in_channels": [config.width] * len(STRIDES),
    }


def _token_settings(backbone: Backbone, heads: int) -> dict[str, Any]:
    if len(backbone.channels) > 1:
        raise ConfigError(
            f"rf_detr reads the tokens of a vision transformer, and {backbone.name} has several levels; write "
            "--model.backbone timm:vit_small_patch16_dinov3 or another vision transformer, or --model.detector d_fine"
        )
    placeholder = {
        "hidden_size": next(iter(backbone.channels.values())),
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "mlp_ratio": 1,
        "out_indices": [1],
    }
    return {
        "backbone_config": _backbone_settings("RfDetrDinov2Config", placeholder),
        "decoder_self_attention_heads": heads,
        "decoder_cross_attention_heads": heads,
    }


def _backbone_settings(name: str, values: dict[str, Any]) -> Any:
    import transformers

    return getattr(transformers, name)(**values)
