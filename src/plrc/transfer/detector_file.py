"""The fine-tuned model that a transfer run keeps, with its settings and classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plrc.errors import ConfigError, RunError, WeightsError
from plrc.files import parse_json
from plrc.machine import plrc_version
from plrc.model.backbone import build_backbone
from plrc.model.start_pixels import stored_pixels
from plrc.model.user_code import trusted_backbone
from plrc.model.weights import refuse_non_finite
from plrc.pixels import PixelStatistics
from plrc.runtime import choose_device
from plrc.settings import read_toml
from plrc.transfer.metrics import Prediction
from plrc.transfer.protocols import TransferConfig
from plrc.transfer.tasks import DetectionModel

WEIGHTS = "model.safetensors"
CLASSES_KEY = "classes"
CONFIG_KEY = "transfer"
"""Names in the metadata of the file."""


@dataclass(frozen=True)
class Detector:
    """A fine-tuned detector.

    Attributes:
        classes: Names of the classes, by number.
        config: The configuration of its run.
        source: The file of its weights.
        model: The detector as the run scored it, in evaluation mode.
    """

    classes: tuple[str, ...]
    config: TransferConfig
    source: Path
    model: DetectionModel

    def predict(self, image: Tensor) -> Prediction:
        """Find the objects in an image. Images may have any size; they are resized as in the run.

        Args:
            image: RGB as decoded, uint8 [3, H, W]; for a run with `data.channels` N, [N, H, W].

        Returns:
            Boxes in pixels of the image, scores, numbers of classes and, for the task "instances", masks.

        Raises:
            ValueError, TypeError: Images of another shape or dtype.
        """
        channels = self.config.data.channels
        if image.dtype != torch.uint8:
            raise TypeError(f"the image is of {str(image.dtype).removeprefix('torch.')}; give uint8, as decoded")
        if image.ndim != 3 or len(image) != channels or 0 in image.shape:
            raise ValueError(f"the image has the shape {list(image.shape)}; give [{channels}, H, W]")
        return self.model.predict(image)


def load_detector(run: str | Path, device: str = "auto", backbone: str = "") -> Detector:
    """Load the detector that a transfer run has fine-tuned.

    Args:
        run: Folder of a run of `plrc transfer detection` or `instances`, or its model.safetensors.
        device: auto, cpu, cuda, cuda:N or mps.
        backbone: The function that builds a backbone of your own (package.module:function or file.py:function). It is
            imported only if you give it here, even if the run stores its name. For a run on the backbone of a
            detector's folder that has moved: transformers:FOLDER.

    Returns:
        The detector, in evaluation mode.

    Raises:
        RunError: The folder has no such run, or the run keeps no model.
        WeightsError: The file cannot be read, or does not fit.
        ConfigError: `device` or `backbone` cannot be used.
        MissingPackageError: faster-coco-eval, or the library of the backbone or the detector, is not installed.

    Examples:
        >>> import plrc
        >>> from torchvision.io import decode_image
        >>> detector = plrc.load_detector("transfer/first")  # doctest: +SKIP
        >>> prediction = detector.predict(decode_image("photo.jpg", mode="RGB"))  # doctest: +SKIP
        >>> [detector.classes[number] for number in prediction.classes]  # doctest: +SKIP
        ['fish', 'fish', 'stingray']
    """
    file = kept_model(Path(run))
    metadata = _read_metadata(file)
    config, classes, pixels = _parse_metadata(metadata, str(file))
    if config.task == "semantic":
        raise RunError(
            f"{run} is a run of the task semantic, which predicts no boxes; name one of detection or instances"
        )
    tensors = safetensors.torch.load_file(file)
    refuse_non_finite(tensors, str(file))
    name = trusted_backbone(metadata["backbone"], backbone, how="--backbone {}")
    if backbone and backbone != name:
        raise ConfigError(f"{run} has a {name}, not a {backbone}; leave --backbone out")
    chosen = choose_device(device)
    network = build_backbone(name, in_channels=pixels.channels)
    network.pixels = pixels
    model = DetectionModel(config, network, len(classes), chosen)
    try:
        model.model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{file} does not fit the detector of its configuration: {reason}") from error
    model.model.eval()
    return Detector(classes, config, file, model)


def model_metadata(
    config: TransferConfig, classes: Sequence[str], backbone: str, pixels: PixelStatistics
) -> dict[str, str]:
    """Return the metadata of the file of a model, from which `load_detector` builds it.

    A backbone of user code or of a detector's folder (transformers:FOLDER) is not in the file, and needs both.

    Args:
        config: The configuration of the run.
        classes: Names of the classes, by number.
        backbone: Name of the backbone.
        pixels: The statistics that images are normalized with.
    """
    return {
        "format": "plrc",
        "backbone": backbone,
        CLASSES_KEY: json.dumps(list(classes)),
        CONFIG_KEY: json.dumps(config.to_dict()),
        "plrc_version": plrc_version(),
        **pixels.metadata(),
    }


def is_transfer_run(run: Path) -> bool:
    """Return whether a folder is that of a transfer run, finished or not, or a file is its model."""
    if run.is_dir():
        config = run / "config.toml"
        return config.is_file() and "task" in read_toml(config)
    return run.suffix == ".safetensors" and run.is_file() and CONFIG_KEY in _read_metadata(run)


def kept_model(run: Path) -> Path:
    """Return the file of the model that a transfer run keeps. Raises RunError, which says why there is none."""
    if run.is_file():
        return run
    if (run / WEIGHTS).is_file():
        return run / WEIGHTS
    if not run.is_dir():
        raise RunError(f"{run} does not exist; name the folder of a run of plrc transfer")
    if not (run / "config.toml").is_file():
        raise RunError(f"{run} is not a run folder (no config.toml); name the folder of a run of plrc transfer")
    if not is_transfer_run(run):
        raise RunError(
            f"{run} is a run of plrc pretrain, which has no detector; fine-tune one with plrc transfer detection "
            f"--init {run}"
        )
    if not (run / "result.json").is_file():
        raise RunError(f"{run} is not finished and has no model yet; continue it with --resume")
    raise RunError(
        f"{run} keeps no model ({WEIGHTS}), as runs of a comparison or study and those with --run.no-keep-model; "
        "repeat it with plrc transfer --run.keep-model and another --out"
    )


def _read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises WeightsError if it cannot be read."""
    try:
        with safe_open(file, framework="pt") as content:
            return dict(content.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} is no readable safetensors file ({error}); name the folder of a run of plrc transfer"
        ) from error


def _parse_metadata(metadata: dict[str, str], source: str) -> tuple[TransferConfig, tuple[str, ...], PixelStatistics]:
    """The configuration, the classes and the statistics of pixels. Raises WeightsError if the file has none."""
    pixels = stored_pixels(metadata, source)
    if pixels is None or not {CLASSES_KEY, CONFIG_KEY, "backbone"} <= metadata.keys():
        raise WeightsError(
            f"{source} does not name its classes and settings (it is no model of plrc transfer, or of an earlier "
            "version); repeat the run of plrc transfer"
        )
    try:
        classes = tuple(map(str, parse_json(metadata[CLASSES_KEY])))
        values = parse_json(metadata[CONFIG_KEY])
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the metadata of {source} cannot be read ({error}); copy the file again") from error
    return TransferConfig.from_dict(values), classes, pixels
