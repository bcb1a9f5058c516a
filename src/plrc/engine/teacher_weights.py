"""The weights of a frozen teacher, and their receipt `teacher.json` in the run folder.

A resumed run must use the same weights. They are not stored in the run folder; the receipt has their hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plrc import distributed
from plrc.config import Config
from plrc.engine.checkpoint import checkpoint_of
from plrc.engine.setup import Plan
from plrc.errors import ConfigError, WeightsError
from plrc.files import write_json
from plrc.model import Backbone, build_backbone
from plrc.model.start_pixels import refuse_other_channels, start_pixels
from plrc.model.starts import PRETRAINED, pretrained_weights, read_receipt, weights_receipt
from plrc.model.weights import Weights, load_into, read_weights
from plrc.pixels import PixelStatistics

TEACHER_RECEIPT = "teacher.json"
"""File in the run folder: the receipt of the frozen teacher's weights (`weights_receipt`)."""


def load_teacher(config: Config) -> tuple[Backbone, dict[str, Any]]:
    """Build the network of the frozen teacher, with its weights and pixel statistics.

    Args:
        config: Settings with `teacher.kind` frozen.

    Returns:
        (network, receipt of its weights).

    Raises:
        ConfigError: The settings name no weights, or the network cannot be built.
        WeightsError: The weights are missing or do not fit.
    """
    name = config.teacher.backbone or config.model.backbone
    init = _named_weights(config)
    weights = pretrained_weights(name) if init == PRETRAINED else _read_file(Path(init))
    channels = config.data.channels
    trained_pixels, _ = start_pixels(name, weights.metadata, weights.source)
    refuse_other_channels(trained_pixels, channels, init)
    backbone = build_backbone(name, in_channels=channels)
    report = load_into(backbone, weights)
    if report.inflated:  # the first convolution was converted from RGB to `channels`
        raise ConfigError(
            f"the frozen teacher ({init}) was trained on RGB, but data.channels is {channels}; name a teacher that was "
            f"trained on {channels} channels, or write --teacher.kind ema"
        )
    backbone.pixels = _choose_pixels(config, trained_pixels)
    return backbone, weights_receipt(init, weights, report, backbone)


def check_receipt(plan: Plan, receipt: dict[str, Any]) -> None:
    """Write teacher.json if it does not exist yet, and compare the weights with it; all processes call this.

    Args:
        plan: The run.
        receipt: The receipt of the loaded weights, from `load_teacher`.

    Raises:
        WeightsError: The weights have changed since the start of the run.
    """
    path = plan.out / TEACHER_RECEIPT
    if distributed.is_main() and not path.exists():
        write_json(path, receipt)
    distributed.barrier()
    stored = read_receipt(path)
    if weights_hash(stored) != weights_hash(receipt):
        raise WeightsError(
            f"the weights of the frozen teacher, {receipt['file']}, have changed since the start of the run (their "
            f"SHA-256 is now {weights_hash(receipt)[:12]}, not {weights_hash(stored)[:12]}); put the old weights back, "
            "or start a new run with another --out"
        )


def weights_hash(receipt: dict[str, Any]) -> str:
    """Return the hash of the weights of a receipt.

    It is the hash of the file; or of the tensors, if a library loaded them without naming a file.
    """
    return str(receipt.get("sha256") or receipt.get("content_sha256") or "")


def _named_weights(config: Config) -> str:
    """Return the setting that names the teacher's weights: a file, a run, or PRETRAINED."""
    if config.teacher.init:
        return config.teacher.init
    if config.teacher.backbone:
        raise ConfigError(
            "teacher.backbone names a network without weights; name them with --teacher.init FILE, or write "
            f"--teacher.init {PRETRAINED} for those of its library"
        )
    if not config.model.init:
        raise ConfigError(
            "teacher.kind frozen needs weights: name them with --teacher.backbone NAME --teacher.init FILE, "
            "or start from weights with --model.init FILE to anchor the student to them"
        )
    return config.model.init  # the teacher is an anchor: the student's own start weights


def _read_file(path: Path) -> Weights:
    """Read weights from a file, or from the newest checkpoint of a run."""
    if not path.exists():
        raise WeightsError(f"the weights of the frozen teacher, {path}, do not exist; put them back or name others")
    return read_weights(checkpoint_of(path))


def _choose_pixels(config: Config, trained_pixels: PixelStatistics) -> PixelStatistics:
    """Return the statistics that the teacher's pixels are normalized with.

    Args:
        config: The settings of the run.
        trained_pixels: The statistics that the teacher's weights were trained with.
    """
    if config.teacher.pixels is not None:
        return config.teacher.pixels
    is_anchor = not config.teacher.init  # it has the student's start weights, and normalizes pixels as the student does
    if is_anchor or trained_pixels.channels != config.data.channels:
        return config.data.pixels
    return trained_pixels
