"""What the explorer's page shows: images, networks (those of a run by step, and others), and their features.

Shapes: H x W pixels of an image as the networks see it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from plrc.config import DataConfig
from plrc.data.channels import shown_pixels
from plrc.data.image_errors import DecodeError
from plrc.data.sources import ImageList
from plrc.errors import DataError
from plrc.progress import OnProgress, ignore_progress
from plrc.text import printable
from plrc.visualize.dense_features import CompressedFeatures, compress, dense_features, fitted_size, native_stride
from plrc.visualize.explorer_inputs import ExplorerConfig, ExplorerImage, ExplorerNetwork
from plrc.visualize.page_size import describe_changes, fit_to_page

_SHOWN = 512  # pixels of the longer side of an image in the page
_THUMBNAIL = 72  # the same of its thumbnail
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Explorer:
    """The content of an explorer's page.

    Attributes:
        images: The images.
        networks: The networks.
        features: The features of all images by each network.
        config: How fine the features are.
        notes: What was left out or made coarser, and why.
    """

    images: list[ExplorerImage]
    networks: list[ExplorerNetwork]
    features: list[CompressedFeatures]
    config: ExplorerConfig
    notes: list[str]


def build_explorer(
    images: ImageList,
    positions: Sequence[int],
    data: DataConfig,
    networks: Sequence[ExplorerNetwork],
    config: ExplorerConfig,
    device: torch.device,
    on_progress: OnProgress = ignore_progress,
) -> Explorer:
    """Read images and compute their features by every network, as fine as the page's size allows.

    Args:
        images: All images.
        positions: Which of them to show; unreadable ones are left out and noted.
        data: How the run decodes images, so that its networks see what they were trained on.
        networks: The networks; at least one of them has a step.
        config: The finest features and the largest page.
        device: Where features are computed.
        on_progress: Called after each image of each network.

    Raises:
        DataError: No image can be read.
        ConfigError: The coarsest features do not fit into the page.
        PlrcError: A network cannot be loaded or has no features that can be shown.
    """
    shown, notes = _read_images(images, positions, data, config)
    if not shown:
        raise DataError(f"none of the {len(positions)} images can be read; {notes[0].removeprefix('left out ')}")
    fitted, kept = fit_to_page(config, shown, networks)
    if fitted != config:
        notes.append(
            f"to stay below {config.megabytes:g} MB: {describe_changes(config, fitted)} "
            "(raise --megabytes, or lower --limit)"
        )
    if fitted.stride != config.stride:  # the sides of an image are multiples of the stride
        shown = [replace(image, pixels=_scaled(image.pixels, fitted)) for image in shown]
    features = _compute_features(shown, kept, fitted, device, on_progress)
    return Explorer(shown, kept, features, fitted, notes)


def _read_images(
    images: ImageList, positions: Sequence[int], data: DataConfig, config: ExplorerConfig
) -> tuple[list[ExplorerImage], list[str]]:
    """Return the readable images, and a note for each unreadable one."""
    shown = []
    notes = []
    for position in positions:
        name = printable(images.names[position])
        try:
            pixels = images.decode(position, data, max(_SHOWN, config.image_size))
        except DecodeError as error:
            notes.append(f"left out {name}: {error.reason}")
            continue
        picture = Image.fromarray(shown_pixels(pixels))
        jpeg = _jpeg(picture, _SHOWN)
        thumbnail = _jpeg(picture, _THUMBNAIL)
        shown.append(ExplorerImage(name, _scaled(pixels, config), jpeg, thumbnail))
    return shown, notes


def _scaled(pixels: Tensor, config: ExplorerConfig) -> Tensor:
    size = fitted_size(pixels.shape[1], pixels.shape[2], config.image_size, config.stride)
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def _jpeg(picture: Image.Image, longest: int) -> bytes:
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _compute_features(
    images: Sequence[ExplorerImage],
    networks: Sequence[ExplorerNetwork],
    config: ExplorerConfig,
    device: torch.device,
    on_progress: OnProgress,
) -> list[CompressedFeatures]:
    """Compute the features of all images by each network; colors follow those of the run's newest student."""
    features: dict[int, CompressedFeatures] = {}
    reference_colors = None
    done = 0
    for index in _newest_first(networks):
        backbone, level = networks[index].load()
        backbone = backbone.to(device).eval()
        native = native_stride(backbone, level)
        grids = []
        for image in images:
            grids.append(dense_features(backbone, level, native, image.pixels, config.stride).half())
            done += 1
            on_progress(done, len(networks) * len(images))
        features[index] = compress(grids, config.components, reference_colors)
        if reference_colors is None:
            reference_colors = [features[index].colors(number) for number in range(len(images))]
    return [features[index] for index in range(len(networks))]


def _newest_first(networks: Sequence[ExplorerNetwork]) -> list[int]:
    """Return the networks' positions in order, but the first network of the newest step before all others."""
    newest = 0
    newest_step = -1
    for index, network in enumerate(networks):
        if network.step is not None and network.step > newest_step:
            newest = index
            newest_step = network.step
    return [newest, *(index for index in range(len(networks)) if index != newest)]
