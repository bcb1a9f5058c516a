"""Labels of any kind as maps of one size: the class and the object of each pixel.

Shapes: n images, S the side of a map, H x W an image of C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from plrc.data.masks import decode_masks
from plrc.measures.segmentation import IGNORED
from plrc.pixels import IMAGENET, RGB_CHANNELS
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.splits import LabelledSet


@dataclass(frozen=True)
class PixelLabels:
    """Images of one size, with labels for every pixel.

    Attributes:
        images: uint8 [n, C, S, S]; an image lies at the upper left, the rest has ImageNet's mean color (gray if the
            images are not RGB).
        classes: uint8 [n, S, S]; 255 is ignored. With labelled objects, 0 is the background.
        objects: int32 [n, S, S]: 0 background, above 0 an object, -1 unlabelled.
    """

    images: Tensor
    classes: Tensor
    objects: Tensor


def rasterize(labelled: LabelledSet, side: int) -> PixelLabels:
    """Scale images to a longer side of `side` pixels and draw their labels at that size.

    Objects are drawn by their masks, or by their boxes if they have none, the largest first, so that none is hidden.
    """
    count = len(labelled.images)
    mean = IMAGENET.mean if labelled.channels == RGB_CHANNELS else (0.5,) * labelled.channels
    color = (255 * torch.tensor(mean)).to(torch.uint8)[:, None, None]
    images = color.expand(-1, side, side).repeat(count, 1, 1, 1)
    classes = torch.full((count, side, side), IGNORED, dtype=torch.uint8)
    objects = torch.full((count, side, side), -1, dtype=torch.int32)
    for i, item in enumerate(labelled.images):
        pixels = labelled.read_pixels(item).float()
        height, width = scaled_size(pixels.shape[1], pixels.shape[2], side)
        scaled = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
        images[i, :, :height, :width] = scaled.round().clamp(0, 255).to(torch.uint8)
        class_map, object_map = _draw(item, labelled)
        classes[i, :height, :width] = _nearest(class_map, height, width).to(torch.uint8)
        objects[i, :height, :width] = _nearest(object_map, height, width).to(torch.int32)
    return PixelLabels(images, classes, objects)


def scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Compute the height and width of an image whose longer side is scaled to `side` pixels."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _nearest(values: NDArray[np.integer], height: int, width: int) -> Tensor:
    values_1hw = torch.from_numpy(values)[None, None].float()
    return F.interpolate(values_1hw, (height, width), mode="nearest-exact")[0, 0]


def _draw(item: LabelledImage, labelled: LabelledSet) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """(class of each pixel, object of each pixel), both [H, W]."""
    if labelled.table is not None:
        class_map = labelled.read_classes(item)
        return class_map, np.full(class_map.shape, -1)
    classes = np.zeros((item.height, item.width), dtype=np.int32)
    objects = np.zeros((item.height, item.width), dtype=np.int32)
    masks = decode_masks(item.segments, item.height, item.width).astype(bool)
    for i in np.argsort(-item.areas):
        if len(masks):
            where = masks[i]
        else:
            x0, y0, x1, y1 = item.boxes[i].round().astype(int)
            where = np.zeros(classes.shape, dtype=bool)
            where[y0:y1, x0:x1] = True
        classes[where] = IGNORED if item.ignored[i] else item.classes[i] + 1
        objects[where] = -1 if item.ignored[i] else i + 1
    return classes, objects
