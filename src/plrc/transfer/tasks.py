"""The tasks: the loss of a batch, and the scores of a set of images.

Shapes: B images, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from plrc.data.masks import encode_mask, mask_functions
from plrc.data.photometric import normalize
from plrc.measures.segmentation import IGNORED, confusion_matrix, semantic_metrics
from plrc.model.backbone import Backbone
from plrc.transfer.detectors import build_detector
from plrc.transfer.labels.datasets import DetectionImages, SemanticImages
from plrc.transfer.labels.splits import LabelledSet
from plrc.transfer.metrics import Prediction, coco_metrics, voc_metrics
from plrc.transfer.protocols import TransferConfig
from plrc.transfer.semantic import build_segmenter

MAIN_METRIC = {"detection": "AP", "instances": "AP_mask", "semantic": "mIoU"}
"""Task -> the score by which settings and weights are compared."""


class DetectionModel:
    """A detector of boxes, and for the task "instances" of masks.

    Attributes:
        model: The network.
        device: Where it is.
    """

    def __init__(self, config: TransferConfig, backbone: Backbone, classes: int, device: torch.device) -> None:
        mask_functions()  # raises now, not after days of training, if a package that scoring needs is missing
        self.config = config
        self.device = device
        self.masks = config.task == "instances"
        detector = build_detector(backbone, config.model, config.input, classes, self.masks, config.seed)
        self.model = detector.to(device)

    def training_images(self, labelled: LabelledSet) -> Dataset[Any]:
        """Return items by (epoch, index)."""
        return DetectionImages(labelled, self.config.input, train=True, masks=self.masks, seed=self.config.seed)

    def loss(self, batch: Sequence[tuple[Tensor, dict[str, Any]]]) -> Tensor:
        """Return the loss of a list of items, with the model in training mode."""
        images = []
        targets = []
        for image, target in batch:
            images.append(image.to(self.device).float() / 255)
            targets.append({name: t.to(self.device) for name, t in target.items() if isinstance(t, Tensor)})
        losses: dict[str, Tensor] = self.model(images, targets)
        return torch.stack(list(losses.values())).sum()

    @torch.no_grad()
    def score(self, labelled: LabelledSet) -> dict[str, float]:
        """Return scores in percent; the model stays in evaluation mode."""
        self.model.eval()
        images = DetectionImages(labelled, self.config.input, train=False, masks=False, seed=0)
        predictions = [self.predict(images[i][0]) for i in range(len(labelled.images))]
        scores = coco_metrics(labelled, predictions, "bbox")
        if self.masks:
            for name, value in coco_metrics(labelled, predictions, "segm").items():
                scores[f"{name}_mask"] = value
        else:
            for label, eleven_points in (("VOC", False), ("VOC07", True)):
                for name, value in voc_metrics(labelled, predictions, eleven_points).items():
                    scores[f"{name}_{label}"] = value
        return scores

    def zero_scores(self) -> dict[str, float]:
        """Return the scores of a model that has diverged."""
        names = ["AP", "AP50", "AP75"]
        scores = dict.fromkeys(names, 0.0)
        for label in ("mask",) if self.masks else ("VOC", "VOC07"):
            scores |= {f"{name}_{label}": 0.0 for name in names}
        return scores

    @torch.no_grad()
    def predict(self, image: Tensor) -> Prediction:
        """Return the predictions for an image, uint8 [C, H, W]; the model must be in evaluation mode."""
        output = self.model([image.to(self.device).float() / 255])[0]
        output = {name: tensor.cpu() for name, tensor in output.items()}
        masks = []
        if self.masks:
            masks = [encode_mask(mask) for mask in (output["masks"][:, 0] > 0.5).numpy()]
        return Prediction(
            boxes=output["boxes"].numpy(),
            scores=output["scores"].numpy(),
            classes=output["labels"].numpy() - 1,
            masks=tuple(masks),
        )


class SemanticModel:
    """A network that gives a class for every pixel; it has the methods of `DetectionModel`."""

    def __init__(self, config: TransferConfig, backbone: Backbone, classes: int, device: torch.device) -> None:
        self.config = config
        self.classes = classes
        self.device = device
        self.pixels = backbone.pixels
        self.model = build_segmenter(backbone, config.model, classes, config.seed).to(device)

    def training_images(self, labelled: LabelledSet) -> Dataset[Any]:
        return SemanticImages(labelled, self.config.input, train=True, seed=self.config.seed, pixels=self.pixels)

    def loss(self, batch: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        images = torch.stack([image for image, _ in batch]).to(self.device)
        labels = torch.stack([labels for _, labels in batch]).to(self.device).long()
        logits = self.model(normalize(images, self.pixels)).float()
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    @torch.no_grad()
    def score(self, labelled: LabelledSet) -> dict[str, float]:
        self.model.eval()
        images = SemanticImages(labelled, self.config.input, train=False, seed=0, pixels=self.pixels)
        counts = np.zeros((self.classes, self.classes), dtype=np.int64)
        for i in range(len(labelled.images)):
            image, labels = images[i]
            logits = self.model(normalize(image[None].to(self.device), self.pixels)).float()
            predicted = F.interpolate(logits, labels.shape, mode="bilinear", align_corners=False).argmax(dim=1)[0]
            counts += confusion_matrix(labels.numpy(), predicted.cpu().numpy(), self.classes)
        return semantic_metrics(counts)

    def zero_scores(self) -> dict[str, float]:
        return {"mIoU": 0.0, "accuracy": 0.0}


TaskModel = DetectionModel | SemanticModel


def build_task_model(config: TransferConfig, backbone: Backbone, classes: int, device: torch.device) -> TaskModel:
    """Build the model for `config.task` around a backbone that has its initial weights.

    Args:
        config: The transfer run.
        backbone: The backbone; it is changed in place.
        classes: Number of classes, without background for detectors.
        device: Where the model goes.
    """
    if config.task == "semantic":
        return SemanticModel(config, backbone, classes, device)
    return DetectionModel(config, backbone, classes, device)
