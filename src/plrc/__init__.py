"""plrc: self-supervised pre-training for object detectors with point-level region contrast and affinity distillation."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from plrc import objectives
from plrc.config import Config, ConfigError, PlrcError
from plrc.engine.pretrain import Run
from plrc.engine.pretrain import pretrain as _pretrain
from plrc.export import export_backbone, load_backbone
from plrc.presets import preset

__all__ = [
    "Config", "ConfigError", "PlrcError", "Run", "export_backbone", "load_backbone", "objectives", "preset", "pretrain",
]  # fmt: skip


def pretrain(config: Config, explicit: Set[str] = frozenset()) -> Run:
    """Pre-train a backbone as `config` says and keep an exported, verified copy of the newest weights in the run folder.

    `explicit`: dotted names of settings (such as "optim.lr") that must not be adapted to the data; with
    `Config(adapt=False)` nothing is. Bad input raises PlrcError. A run that is stopped by SIGTERM or Ctrl-C saves and
    returns with `finished=False`; call again with `run.resume` set.
    """
    return _pretrain(config, explicit, on_checkpoint=(_export,))


def _export(run: Path) -> None:
    export_backbone(run, "torchvision")
