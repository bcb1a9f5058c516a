"""Pictures of predictions, drawn by torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from plrc.data.channels import shown_pixels
from plrc.data.masks import decode_masks
from plrc.text import printable
from plrc.transfer.metrics import Prediction

_COLORS = tuple(to_hex(color) for color in colormaps["tab10"].colors)  # type: ignore[attr-defined]
_OPACITY = 0.5  # of masks
_SIDES_PER_WIDTH = 200  # shorter sides of an image per width of a line


def draw_prediction(image: Tensor, prediction: Prediction, classes: Sequence[str]) -> Image.Image:
    """Draw boxes with class and score, and masks, in a color for each class.

    Args:
        image: uint8 [C, H, W].
        prediction: What to draw.
        classes: Names of the classes, by number.
    """
    pixels = torch.from_numpy(shown_pixels(image)).permute(2, 0, 1).contiguous()
    height, width = pixels.shape[1:]
    if len(prediction.scores):
        colors = [_COLORS[number % len(_COLORS)] for number in prediction.classes]
        labels = []
        for number, score in zip(prediction.classes, prediction.scores, strict=True):
            labels.append(f"{printable(classes[number])} {score:.2f}")
        if prediction.masks:
            masks = torch.from_numpy(decode_masks(prediction.masks, height, width)).bool()
            pixels = draw_segmentation_masks(pixels, masks, alpha=_OPACITY, colors=colors)
        line = max(1, round(min(height, width) / _SIDES_PER_WIDTH))
        boxes = torch.from_numpy(prediction.boxes)
        pixels = draw_bounding_boxes(pixels, boxes, labels, colors, width=line)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
