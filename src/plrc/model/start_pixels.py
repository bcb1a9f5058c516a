"""The pixel statistics that given weights were trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plrc.errors import WeightsError
from plrc.files import file_sha256, parse_json
from plrc.model.timm_networks import PREFIX
from plrc.model.transformers_networks import PREFIX as DETECTOR_PREFIX
from plrc.model.transformers_networks import detector_pixels
from plrc.pixels import IMAGENET, MEAN_KEY, RGB_CHANNELS, STD_KEY, PixelStatistics, statistics_problem

_CAFFE_AUTHORS = ("Detectron2 Model Zoo", "Caffe2", "MSRA")  # as Detectron2's files name where they are from


def start_pixels(backbone: str, metadata: Mapping[str, Any], source: str = "") -> tuple[PixelStatistics, str]:
    """Find the pixel statistics of weights that a backbone starts from.

    A file that says its statistics is right; a run or an export of plrc without them was trained with ImageNet's. Other
    weights of a timm network have those of timm's configuration, those of a detector of transformers those of its image
    processor, and all others ImageNet's.

    Args:
        backbone: Name of the backbone, such as "resnet50", "timm:NAME" or "transformers:FOLDER".
        metadata: What the weights file holds besides tensors; empty for a library's own weights.
        source: Path of the weights file, for errors.

    Returns:
        (the statistics, where they are from).

    Raises:
        WeightsError: The file says statistics that cannot be used.
    """
    stored = stored_pixels(metadata, source) or _receipt_pixels(Path(source))
    if stored is not None:
        return stored, source or "the weights file"
    if is_of_plrc(metadata, source):
        return IMAGENET, source or "the weights file"
    if backbone.startswith(PREFIX):
        name = backbone.removeprefix(PREFIX)
        configured = _timm_pixels(name)
        if configured is not None:
            return configured, f"timm's configuration of {name}"
    if backbone.startswith(DETECTOR_PREFIX):
        folder = Path(backbone.removeprefix(DETECTOR_PREFIX))
        return detector_pixels(folder), f"the image processor of the detector in {folder}"
    return IMAGENET, "ImageNet"


def foreign_conventions(metadata: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Describe how the networks of a public collection differ from plrc's, though their tensors have the same shapes.

    Args:
        metadata: What the weights file holds besides tensors.
        source: Path of the weights file.

    Returns:
        A sentence, if the file is of Detectron2's model zoo or of Caffe2.
    """
    author = metadata.get("__author__")
    if author not in _CAFFE_AUTHORS:
        return ()
    return (
        (
            f"{source} is marked as a file of {author}: most of its ResNets were trained on blue-green-red pixels, "
            "0 to 255 minus a mean, with the stride in the 1 x 1 convolutions; here they see normalized red-green-blue "
            "pixels, with the stride in the 3 x 3 convolutions, so that their features differ from that network's"
        ),
    )


def is_of_plrc(metadata: Mapping[str, Any], source: str = "") -> bool:
    """Return whether plrc wrote a weights file: an export of any target, or a checkpoint of a pre-training run.

    Args:
        metadata: What the file holds besides tensors.
        source: Path of the file. An export that holds nothing but tensors is recognized by the receipt in its folder.
    """
    for table in (metadata, _table(metadata, "meta")):
        if "plrc_version" in table or table.get("format") == "plrc" or table.get("__author__") == "plrc":
            return True
    return "objectives" in _table(metadata, "config") or "plrc_version" in _receipt(Path(source))


def refuse_other_channels(trained: PixelStatistics, channels: int, source: str) -> None:
    """Check that weights can start a network for images of so many channels; those for RGB always can.

    Args:
        trained: The statistics that the weights were trained with.
        channels: `data.channels`.
        source: What the user named, for the message.

    Raises:
        WeightsError: They were trained on images of another number of channels.
    """
    if trained.channels not in (RGB_CHANNELS, channels):
        raise WeightsError(
            f"{source} was trained on images of {trained.channels} channels, but data.channels is {channels}; write "
            f"--data.channels {trained.channels} (plrc transfer probe: --channels)"
        )


def stored_pixels(metadata: Mapping[str, Any], source: str = "") -> PixelStatistics | None:
    """Return the pixel statistics that the metadata of an export, or the configuration of a checkpoint, hold.

    Raises:
        WeightsError: They cannot be used.
    """
    tables = [metadata, _table(metadata, "meta"), _table(_table(metadata, "config"), "data")]
    for table, mean_key, std_key in zip(tables, (MEAN_KEY, MEAN_KEY, "mean"), (STD_KEY, STD_KEY, "std"), strict=True):
        if table.get(mean_key) or table.get(std_key):
            return _parsed(table.get(mean_key), table.get(std_key), source)
    return None


def _receipt(file: Path) -> dict[str, Any]:
    """The receipt of an export; empty if there is none of this file in its folder."""
    receipt = file.with_name(f"{file.name}.receipt.json") if file.name else file
    if not receipt.is_file() or not file.is_file():
        return {}
    try:
        content: dict[str, Any] = parse_json(receipt.read_text(encoding="utf-8"))
        return content if content["sha256"] == file_sha256(file) else {}
    except (OSError, ValueError, KeyError, TypeError):  # another program's file of that name
        return {}


def _receipt_pixels(file: Path) -> PixelStatistics | None:
    """The statistics in the receipt of an export, for files such as .pt that hold nothing but tensors.

    None if there is no receipt of this file in its folder.
    """
    try:
        settings = _receipt(file)["settings"]
        pixel_max = int(settings["pixels"].rpartition(" ")[2])  # of "0 to 255"
        mean = tuple(round(float(value) / pixel_max, 8) for value in settings["mean"])
        std = tuple(round(float(value) / pixel_max, 8) for value in settings["std"])
        return PixelStatistics(mean, std)
    except (ValueError, KeyError, TypeError, AttributeError):  # no receipt, or another program's file of that name
        return None


def _parsed(mean: Any, std: Any, source: str) -> PixelStatistics:
    """Statistics from two lists of numbers, or the JSON text of them."""
    try:
        means = _numbers(mean)
        stds = _numbers(std)
        problem = statistics_problem(means, stds, channels=max(len(means), len(stds)))
    except (TypeError, ValueError):
        problem = f"{MEAN_KEY} and {STD_KEY} must be lists of a number for each channel"
    if problem:
        raise WeightsError(f"the pixel statistics in {source or 'the weights file'} cannot be used: {problem}")
    return PixelStatistics(means, stds)


def _numbers(value: Any) -> tuple[float, ...]:
    """Numbers from a list, or from the JSON text of one. Raises TypeError or ValueError."""
    numbers = json.loads(value) if isinstance(value, str) else value
    return tuple(float(number) for number in numbers)


def _table(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A dictionary in the metadata; empty if there is none with this name."""
    table = metadata.get(name)
    return table if isinstance(table, Mapping) else {}


def _timm_pixels(name: str) -> PixelStatistics | None:
    """The statistics in timm's configuration of a network; None if it has none, or timm is not installed."""
    try:
        import timm
    except ImportError:
        return None
    try:
        configured = timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError):  # no such network or tag, which is an error later
        return None
    if configured is None or statistics_problem(configured.mean, configured.std):
        return None
    return PixelStatistics(tuple(map(float, configured.mean)), tuple(map(float, configured.std)))
