"""Data sets of labelled images for PyTorch: items to train on, and to score.

Shapes: H x W an image of C channels, h x w after scaling or cropping, n objects.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from plrc import rng
from plrc.data.channel_statistics import measure_pixels
from plrc.data.image_errors import DecodeError
from plrc.data.masks import decode_masks
from plrc.data.sources import ImageList
from plrc.data.workers import reading
from plrc.errors import DataError
from plrc.measures.segmentation import IGNORED
from plrc.pixels import IMAGENET, RGB_CHANNELS, PixelStatistics
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.splits import LabelledSet
from plrc.transfer.protocols import InputConfig


class DetectionImages(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Images with boxes, and optionally masks, at full size: resizing is left to the detector.

    Args:
        labelled: The images.
        input: How an image enters the network.
        train: True: items by (epoch, index), without the ignored objects, mirrored with probability `input.flip_prob`;
            the draws follow from (seed, epoch, index). False: items by index, unchanged, with all objects.
        masks: Whether items have masks.
        seed: Seed of the draws.
    """

    def __init__(self, labelled: LabelledSet, input: InputConfig, train: bool, masks: bool, seed: int) -> None:  # noqa: A002
        self.labelled = labelled
        self.input = input
        self.train = train
        self.masks = masks
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labelled.images)

    def __getitem__(self, key: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return uint8 [C, H, W], and "boxes" [n, 4], "labels" [n] from 1, "masks" uint8 [n, H, W], "image" (index)."""
        epoch, index = key if self.train else (0, key)
        item = self.labelled.images[index]
        kept = ~item.ignored if self.train else np.ones_like(item.ignored)
        image = _read_pixels(item, self.labelled)
        boxes = torch.from_numpy(item.boxes[kept])
        target: dict[str, Any] = {"labels": torch.from_numpy(item.classes[kept] + 1), "image": index}
        if self.masks:
            segments = tuple(segment for segment, keep in zip(item.segments, kept, strict=True) if keep)
            target["masks"] = torch.from_numpy(decode_masks(segments, item.height, item.width))
        if self.train and _is_mirrored(self.input, self.seed, epoch, index):
            image = image.flip(-1)
            boxes = torch.stack([item.width - boxes[:, 2], boxes[:, 1], item.width - boxes[:, 0], boxes[:, 3]], dim=1)
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        return image, {"boxes": boxes, **target}


class SemanticImages(Dataset[tuple[Tensor, Tensor]]):
    """Images with a class for every pixel.

    Args:
        labelled: The images.
        input: How an image enters the network.
        train: True: items by (epoch, index), scaled by a draw from `input.train_size`, cropped at random to
            `input.crop`, padded at the right and bottom if the image is smaller (the mean color, label 255), and
            mirrored with probability `input.flip_prob`. False: items by index, the image scaled by `input.test_size`,
            the labels unchanged.
        seed: Seed of the draws.
        pixels: The statistics of the network, whose mean color is 0 after normalization.
    """

    def __init__(
        self,
        labelled: LabelledSet,
        input: InputConfig,  # noqa: A002
        train: bool,
        seed: int,
        pixels: PixelStatistics = IMAGENET,
    ) -> None:
        self.padding = [round(255 * mean) for mean in pixels.mean]
        self.labelled = labelled
        self.input = input
        self.train = train
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labelled.images)

    def __getitem__(self, key: Any) -> tuple[Tensor, Tensor]:
        """Return uint8 [C, h, w] and uint8 labels: [h, w] to train on, [H, W] to score."""
        epoch, index = key if self.train else (0, key)
        item = self.labelled.images[index]
        image = _read_pixels(item, self.labelled)
        labels = torch.from_numpy(self.labelled.read_classes(item))
        if not self.train:
            return _scale(image, self.input.test_size), labels
        draws = rng.generator(self.seed, "crops", epoch, index)
        image = _scale(image, draws.uniform(*self.input.train_size))
        labels = F.interpolate(labels[None, None], image.shape[1:], mode="nearest-exact")[0, 0]
        height = int(self.input.crop[0]) or image.shape[1]
        width = int(self.input.crop[1]) or image.shape[2]
        y, x = draws.random(2)
        image, labels = _crop(image, labels, height, width, y, x, self.padding)
        if _is_mirrored(self.input, self.seed, epoch, index):
            image = image.flip(-1)
            labels = labels.flip(-1)
        return image, labels


def usual_pixels(labelled: LabelledSet, given: PixelStatistics | None) -> PixelStatistics:
    """Return the statistics of pixels for weights that do not say theirs.

    Args:
        labelled: The training images.
        given: What the user set; None: nothing.

    Returns:
        What the user set, else ImageNet's for RGB, else statistics measured on the images.

    Raises:
        DataError: Statistics are to be measured, and no image can be read.
    """
    if given is not None or labelled.channels == RGB_CHANNELS:
        return given or IMAGENET
    names = tuple(os.path.abspath(item.path) for item in labelled.images)
    return measure_pixels(ImageList("/", names, "list"), range(len(names)), labelled.decoding)[0]


def _read_pixels(item: LabelledImage, labelled: LabelledSet) -> Tensor:
    try:
        with reading(item.path):
            image = labelled.read_pixels(item)
    except DecodeError as error:
        raise DataError(f"{error}; fix or remove this file and start again") from error
    if tuple(image.shape[1:]) != (item.height, item.width):
        raise DataError(f"{item.path} has changed since its labels were read; start again")
    return image


def _is_mirrored(config: InputConfig, seed: int, epoch: int, index: int) -> bool:
    return bool(rng.generator(seed, "mirror", epoch, index).random() < config.flip_prob)


def _scale(image: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _crop(
    image: Tensor, labels: Tensor, height: int, width: int, y: float, x: float, color: list[int]
) -> tuple[Tensor, Tensor]:
    """A window of this size, its corner at the shares y and x of the possible range.

    Where the image is smaller, it is padded with `color`.
    """
    top = round(y * max(0, image.shape[1] - height))
    left = round(x * max(0, image.shape[2] - width))
    image = image[..., top : top + height, left : left + width]
    labels = labels[..., top : top + height, left : left + width]
    padded_image = torch.tensor(color, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
    padded_labels = torch.full((height, width), IGNORED, dtype=torch.uint8)
    padded_image[:, : image.shape[1], : image.shape[2]] = image
    padded_labels[: labels.shape[0], : labels.shape[1]] = labels
    return padded_image, padded_labels
