"""plrc: self-supervised pre-training for object detectors with point-level region contrast and affinity distillation.

The public names, explicit. What needs PyTorch is imported when it is first used, so that `plrc --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Set
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plrc.config import Config, ConfigError, PlrcError
from plrc.presets import PRESETS, preset

if TYPE_CHECKING:
    from plrc import objectives
    from plrc.engine.pretrain import Run
    from plrc.export import export_backbone, load_backbone

__all__ = [
    "Config", "ConfigError", "PlrcError", "Run", "export_backbone", "load_backbone", "objectives", "preset", "pretrain",
]  # fmt: skip
_LATER = {"Run": "plrc.engine.pretrain", "export_backbone": "plrc.export", "load_backbone": "plrc.export"}


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return import_module("plrc.objectives")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'plrc' has no attribute {name!r}")


def pretrain(config: Config, explicit: Set[str] | None = None) -> Run:
    """Pre-train a backbone as `config` says; the run folder keeps its newest weights exported and verified.

    `explicit`: dotted names of settings (such as "optim.lr") that must not be adapted to the data; None: all whose
    value is not that of `preset(config.preset, config.method)`. With `Config(adapt=False)` nothing is adapted. Bad
    input raises PlrcError. A run that is stopped by SIGTERM or Ctrl-C saves and returns with `finished=False`; call
    again with `run.resume` set.
    """
    from plrc.engine.pretrain import pretrain

    if explicit is None:
        start = preset(config.preset if config.preset in PRESETS else "custom", config.method)
        explicit = {name for name, _, _ in config.differences(start)}
    return pretrain(config, explicit, on_checkpoint=(_export,))


def _export(run: Path) -> None:
    """The newest weights in the names of the library that the backbone is from."""
    from plrc.export import export_backbone, library_of

    name = Config.load(run / "config.toml").model.backbone  # this process trained it: whose code it is was settled
    export_backbone(run, library_of(name), backbone=name)
