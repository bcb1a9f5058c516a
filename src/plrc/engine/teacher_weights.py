"""The weights of a frozen teacher, and their receipt in the run folder: `teacher.json`.

A resumed run must use the same weights.
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
"""In the run folder: the weights of the frozen teacher (`weights_receipt`)."""


def load_teacher(config: Config) -> tuple[Backbone, dict[str, Any]]:
    """Build the network of the frozen teacher, with its weights and pixel statistics.

    Args:
        config: Settings that want a frozen teacher.

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
    refuse_other_channels(start_pixels(name, weights.metadata, weights.source)[0], channels, init)
    backbone = build_backbone(name, in_channels=channels)
    report = load_into(backbone, weights)
    if report.inflated:
        raise ConfigError(
            f"the frozen teacher ({init}) was trained on RGB, but data.channels is {channels}; name a teacher that was "
            f"trained on {channels} channels, or write --teacher.kind ema"
        )
    backbone.pixels = _pixels(config, name, weights)
    return backbone, weights_receipt(init, weights, report, backbone)


def check_receipt(plan: Plan, receipt: dict[str, Any]) -> None:
    """Write teacher.json at a fresh start, and compare the weights with it; all processes call this.

    Args:
        plan: The run.
        receipt: That of the weights which were loaded now.

    Raises:
        WeightsError: They are others than at the start of the run.
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
    """The hash of a receipt: of the file, or of the tensors if a library loaded them without naming a file."""
    return str(receipt.get("sha256") or receipt.get("content_sha256") or "")


def _named_weights(config: Config) -> str:
    """What names the teacher's weights: a file, a run, or PRETRAINED."""
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
    return config.model.init  # the anchor


def _read_file(path: Path) -> Weights:
    if not path.exists():
        raise WeightsError(f"the weights of the frozen teacher, {path}, do not exist; put them back or name others")
    return read_weights(checkpoint_of(path))


def _pixels(config: Config, name: str, weights: Weights) -> PixelStatistics:
    """The statistics that the teacher's pixels are normalized with."""
    if config.teacher.pixels is not None:
        return config.teacher.pixels
    if not config.teacher.init:  # an anchor has the start weights of the student
        return config.data.pixels
    pixels, _ = start_pixels(name, weights.metadata, weights.source)
    return pixels if pixels.channels == config.data.channels else config.data.pixels
