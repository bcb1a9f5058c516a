"""Detectors of transformers, an optional package, in folders of `save_pretrained`: their backbones and their tensors.

The library itself builds and reads them, so that tensors have the names of its networks; names in the file may differ.
Nothing is downloaded, and no code in a folder is run.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from plrc.errors import ConfigError, MissingPackageError, WeightsError
from plrc.model.precision import HALF_TYPES
from plrc.pixels import IMAGENET, RGB_CHANNELS, PixelStatistics, statistics_problem
from plrc.text import some

PREFIX = "transformers:"  # of `model.backbone`
CLASSES = {
    "rt_detr": "RTDetrForObjectDetection",
    "rt_detr_v2": "RTDetrV2ForObjectDetection",
    "d_fine": "DFineForObjectDetection",
    "rf_detr": "RfDetrForObjectDetection",
}
"""`model_type` in config.json -> the class of the detector."""
UNNORMALIZED = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
USUAL_PIXELS = {"rt_detr": UNNORMALIZED, "rt_detr_v2": UNNORMALIZED, "d_fine": UNNORMALIZED, "rf_detr": IMAGENET}
"""What the library's image processors do without a file that says otherwise."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_HALF_CODES = {"F16": "float16", "BF16": "bfloat16"}  # of safetensors
PROBE_SIDE = 128  # of the images with which strides are measured; for transformers a multiple of their windows


@dataclass(frozen=True)
class LibraryBackbone:
    """The backbone of a detector in training mode.

    Attributes:
        net: The network.
        channels: {stride: channels}, from fine to coarse.
        multiple: Its images have sides that are multiples of this.
    """

    net: nn.Module
    channels: dict[int, int]
    multiple: int


def detector_type(path: Path) -> str:
    """Return the `model_type` of a detector's folder (or of its model.safetensors); empty for other paths."""
    folder = path.parent if path.name == WEIGHTS_FILE else path
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    kind = settings.get("model_type") if isinstance(settings, dict) else ""
    return str(kind) if kind in CLASSES else ""


def is_detector_folder(path: Path) -> bool:
    """Return whether a folder holds a detector of this library."""
    return path.is_dir() and detector_type(path) != ""


def folder_of(name: str) -> Path:
    """Return the folder that the name of a backbone, transformers:FOLDER, names.

    Raises:
        ConfigError: It holds no detector of `CLASSES`.
    """
    folder = Path(name.removeprefix(PREFIX))
    if not folder.is_dir():
        raise ConfigError(
            f"{name}: there is no folder {folder}; name a folder that save_pretrained wrote (if it has moved, name its "
            "new place as the backbone)"
        )
    if not detector_type(folder):
        raise ConfigError(f"{name}: {folder / CONFIG_FILE} is not that of a detector; it must be one of {_kinds()}")
    return folder


def read_settings(folder: Path) -> Any:
    """Return the library's configuration of a detector, for numbers in float32 whatever its file holds.

    Raises:
        ConfigError: The folder holds no detector, or its configuration cannot be used.
        MissingPackageError: transformers is not installed.
    """
    library = import_transformers(f"the detector in {folder}")
    kind = detector_type(folder)
    if not kind:
        raise ConfigError(f"{folder / CONFIG_FILE} is missing or not that of a detector; it must be one of {_kinds()}")
    try:
        settings = getattr(library, CLASSES[kind]).config_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many kinds
        raise ConfigError(f"transformers cannot use {folder / CONFIG_FILE}: {_one_line(error)}") from error
    settings.dtype = torch.float32
    settings.backbone_config.dtype = torch.float32
    return settings


def build_library_backbone(name: str, in_channels: int = RGB_CHANNELS) -> LibraryBackbone:
    """Build the backbone of a detector with random weights.

    It gives the feature maps that the detector reads; of several with the same stride, the last one counts.

    Args:
        name: transformers:FOLDER.
        in_channels: Channels of the images.

    Raises:
        ConfigError: The folder holds no detector, its backbone cannot be built, or takes other images.
        MissingPackageError: transformers is not installed.
    """
    folder = folder_of(name)
    if in_channels != RGB_CHANNELS:
        raise ConfigError(f"data.channels is {in_channels}, but the detector in {folder} takes RGB; write 3")
    library = import_transformers(f"the backbone {name}")
    settings = read_settings(folder).backbone_config
    try:
        net = library.AutoBackbone.from_config(settings).eval()
        unit = _window(settings)
        side = unit * max(2, -(-PROBE_SIDE // unit))
        with torch.no_grad():
            maps = net(torch.zeros(1, in_channels, side, side)).feature_maps
    except Exception as error:  # the library raises many kinds
        raise ConfigError(f"transformers cannot build the backbone in {folder}: {_one_line(error)}") from error
    channels = {side // features.shape[-1]: features.shape[1] for features in maps}
    if len(channels) not in (1, len(maps)) or list(channels) != sorted(channels):
        raise ConfigError(
            f"the backbone in {folder} gives feature maps of strides that are neither all different, from fine to "
            "coarse, nor all equal; choose another detector"
        )
    return LibraryBackbone(net.train(), channels, max(unit, *channels))


def read_maps(net: Any, channels: dict[int, int], images: Tensor) -> dict[int, Tensor]:
    """Compute the features of a detector's backbone.

    Args:
        net: The network.
        channels: {stride: channels}.
        images: Normalized images [B, 3, H, W].

    Returns:
        {stride: features [B, C, ceil(H / stride), ceil(W / stride)]}.

    Raises:
        ValueError: The network attends within windows and images are not square: it would mix up their rows.
    """
    height, width = images.shape[2:]
    if height != width and takes_squares_only(net):
        raise ValueError(f"RF-DETR's vision transformer takes square images, got {height} x {width}")
    maps = net(images).feature_maps
    return dict(zip(channels, maps[-len(channels) :], strict=True))


def takes_squares_only(net: Any) -> bool:
    """Return whether a network attends within windows, which would mix up the rows of images that are not square."""
    return getattr(getattr(net, "config", None), "num_windows", 1) > 1


def read_detector(folder: Path) -> Any:
    """Read a detector with the library's own `from_pretrained`, in float32 and evaluation mode.

    Raises:
        ConfigError: The folder holds no detector.
        WeightsError: The file is missing, damaged, or not that of this configuration.
        MissingPackageError: transformers is not installed.
    """
    settings = read_settings(folder)
    library = import_transformers(f"the detector in {folder}")
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise WeightsError(f"{folder} has no {WEIGHTS_FILE}; save the detector with save_pretrained once more")
    network_class = getattr(library, CLASSES[settings.model_type])
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            network, info = network_class.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # the library raises many kinds
        raise WeightsError(f"transformers cannot read {file}: {_one_line(error)}") from error
    problems = []
    for kind, names in info.items():
        if names:
            texts = [str(name[0] if isinstance(name, tuple) else name) for name in names]
            problems.append(f"{kind.replace('_', ' ')}: {some(sorted(texts))}")
    if problems:
        raise WeightsError(
            f"{file} does not hold the detector of {folder / CONFIG_FILE} ({'; '.join(problems)}); save both again "
            "with save_pretrained"
        )
    return network.eval()


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Read a detector as tensors under the names of the library's network, the path of the file, and its metadata.

    The tensors are float32; the metadata say as HALF_TYPES what the file holds besides.

    Raises: as `read_detector`.
    """
    file = folder / WEIGHTS_FILE
    state = read_detector(folder).state_dict()
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata() or {})
    half = ", ".join(half_types(folder))
    return state, str(file), metadata | {"backbone": f"{PREFIX}{folder}", HALF_TYPES: half}


def half_types(folder: Path) -> list[str]:
    """Return which of float16 and bfloat16 the file of a detector holds."""
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as opened:
        stored = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (not a dictionary)
    return [name for code, name in _HALF_CODES.items() if code in stored]


def place_of_backbone(network: Any) -> str:
    """Return the name of the backbone inside a detector, such as "model.backbone.model"."""
    from transformers.backbone_utils import BackboneMixin

    places = [name for name, module in network.named_modules() if isinstance(module, BackboneMixin)]
    return str(places[0])


def detector_pixels(folder: Path) -> PixelStatistics:
    """Return the statistics with which the detector's image processor normalizes pixels."""
    kind = detector_type(folder)
    usual = USUAL_PIXELS.get(kind, IMAGENET)
    for name in PROCESSOR_FILES:
        try:
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            settings = settings.get("image_processor", settings)
            if not settings.get("do_normalize", usual != UNNORMALIZED):
                return UNNORMALIZED
            mean = tuple(float(value) for value in settings.get("image_mean", IMAGENET.mean))
            std = tuple(float(value) for value in settings.get("image_std", IMAGENET.std))
        except (OSError, ValueError, TypeError, AttributeError):
            continue
        if not statistics_problem(mean, std):
            return PixelStatistics(mean, std)
    return usual


def import_transformers(purpose: str) -> Any:
    """Import the library. Raises MissingPackageError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(purpose, "transformers", "scipy") from error
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library from logging a table of the tensors and from showing progress."""
    logs = import_transformers("detectors").utils.logging
    verbosity = logs.get_verbosity()
    shows_progress = logs.is_progress_bar_enabled()
    logs.set_verbosity(logs.CRITICAL)
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if shows_progress:
            logs.enable_progress_bar()


def _window(settings: Any) -> int:
    """The side of what a vision transformer divides images into; 1 for a convolutional network."""
    patch = getattr(settings, "patch_size", 1)
    side = patch if isinstance(patch, int) else max(patch)
    return int(side * getattr(settings, "num_windows", 1))


def _kinds() -> str:
    return ", ".join(CLASSES)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
