"""The tasks: what a batch's loss is, and how a data set is scored. Layer 5: imports model and this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
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


class Work(ABC):
    """A model for a task, on a device."""

    def __init__(self, config: TransferConfig, backbone: Backbone, classes: int, device: torch.device) -> None:
        self.config, self.classes, self.device = config, classes, device
        self.model = self.build(backbone).to(device)

    @abstractmethod
    def build(self, backbone: Backbone) -> nn.Module:
        """The network, around a backbone that holds its initial weights."""

    @abstractmethod
    def training_images(self, labelled: LabelledSet) -> Dataset[Any]:
        """Items by (epoch, index)."""

    @abstractmethod
    def loss(self, batch: list[Any]) -> Tensor:
        """Of a list of items."""

    @abstractmethod
    def score(self, labelled: LabelledSet) -> dict[str, float]:
        """Scores in percent; the model's mode is left at evaluation."""

    @abstractmethod
    def nothing(self) -> dict[str, float]:
        """The scores of a model that has diverged: 0."""


class Detection(Work):
    """Boxes, and with `masks` instance masks."""

    masks = False

    def build(self, backbone: Backbone) -> nn.Module:
        mask_functions()  # a package that scoring needs is missed now and not after days of training
        config = self.config
        return build_detector(backbone, config.model, config.input, self.classes, self.masks, config.seed)

    def training_images(self, labelled: LabelledSet) -> Dataset[Any]:
        return DetectionImages(labelled, self.config.input, train=True, masks=self.masks, seed=self.config.seed)

    def loss(self, batch: list[Any]) -> Tensor:
        images = [image.to(self.device).float() / 255 for image, _ in batch]
        targets = [{k: v.to(self.device) for k, v in t.items() if isinstance(v, Tensor)} for _, t in batch]
        losses: dict[str, Tensor] = self.model(images, targets)
        return torch.stack(list(losses.values())).sum()

    @torch.no_grad()
    def score(self, labelled: LabelledSet) -> dict[str, float]:
        self.model.eval()
        images = DetectionImages(labelled, self.config.input, train=False, masks=False, seed=0)
        predictions = [self._predict(images[i][0]) for i in range(len(labelled.images))]
        scores = coco_metrics(labelled, predictions, "bbox")
        if self.masks:
            scores |= {f"{name}_mask": value for name, value in coco_metrics(labelled, predictions, "segm").items()}
        else:
            for label, eleven_points in (("VOC", False), ("VOC07", True)):
                found = voc_metrics(labelled, predictions, eleven_points)
                scores |= {f"{name}_{label}": value for name, value in found.items()}
        return scores

    def nothing(self) -> dict[str, float]:
        names = ["AP", "AP50", "AP75"]
        extra = ("mask",) if self.masks else ("VOC", "VOC07")
        return dict.fromkeys([*names, *(f"{name}_{label}" for label in extra for name in names)], 0.0)

    def _predict(self, image: Tensor) -> Prediction:
        found = {k: v.cpu() for k, v in self.model([image.to(self.device).float() / 255])[0].items()}
        masks = [encode_mask(m) for m in (found["masks"][:, 0] > 0.5).numpy()] if self.masks else []
        classes = found["labels"].numpy() - 1
        return Prediction(found["boxes"].numpy(), found["scores"].numpy(), classes, tuple(masks))


class Instances(Detection):
    """Boxes and masks."""

    masks = True


class Semantic(Work):
    """A class for every pixel."""

    def build(self, backbone: Backbone) -> nn.Module:
        return build_segmenter(backbone, self.config.model, self.classes, self.config.seed)

    def training_images(self, labelled: LabelledSet) -> Dataset[Any]:
        return SemanticImages(labelled, self.config.input, train=True, seed=self.config.seed)

    def loss(self, batch: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        images = torch.stack([image for image, _ in batch]).to(self.device)
        labels = torch.stack([labels for _, labels in batch]).to(self.device).long()
        total = F.cross_entropy(self.model(normalize(images)).float(), labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    @torch.no_grad()
    def score(self, labelled: LabelledSet) -> dict[str, float]:
        self.model.eval()
        images = SemanticImages(labelled, self.config.input, train=False, seed=0)
        counts = np.zeros((self.classes, self.classes), dtype=np.int64)
        for i in range(len(labelled.images)):
            image, labels = images[i]
            logits = self.model(normalize(image[None].to(self.device))).float()
            predicted = F.interpolate(logits, labels.shape, mode="bilinear", align_corners=False).argmax(dim=1)[0]
            counts += confusion_matrix(labels.numpy(), predicted.cpu().numpy(), self.classes)
        return semantic_metrics(counts)

    def nothing(self) -> dict[str, float]:
        return {"mIoU": 0.0, "accuracy": 0.0}


TASKS: dict[str, Callable[[TransferConfig, Backbone, int, torch.device], Work]] = {
    "detection": Detection,
    "instances": Instances,
    "semantic": Semantic,
}
MAIN_METRIC = {"detection": "AP", "instances": "AP_mask", "semantic": "mIoU"}
