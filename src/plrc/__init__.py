"""plrc: self-supervised pre-training for object detectors with point-level region contrast and affinity distillation.

The public names, explicit. What needs PyTorch is imported when it is first used, so that `plrc --help` answers at once.
"""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plrc.config import Config
from plrc.errors import ConfigError, PlrcError
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


def pretrain(config: Config) -> Run:
    """Pre-train a backbone as `config` says; the run folder keeps its newest weights exported and verified, and its
    report.html tells how the run is doing.

    Settings that the user chose are not adapted to the data: those that `Config.with_values` set or a file names, and
    those whose value is not that of `preset(config.preset, config.method)`. With `Config(adapt=False)` nothing is
    adapted. Bad input raises PlrcError. A run that is stopped by SIGTERM or Ctrl-C saves and returns with
    `finished=False`; call again with `run.resume` set.
    """
    from plrc.engine.pretrain import pretrain

    start = preset(config.preset if config.preset in PRESETS else "custom", config.method)
    changed = [name for name, _, _ in config.differences(start)]
    config = replace(config, pinned=config.pinned.union(changed))
    report = _LiveReport(config.run.report_every_minutes)
    try:
        return pretrain(config, on_checkpoint=(_export, report))
    finally:
        report.finish()


def _export(run: Path) -> None:
    """The newest weights in the names of the library that the backbone is from."""
    from plrc.export import export_backbone, library_of

    name = Config.load(run / "config.toml").model.backbone  # this process trained it: whose code it is was settled
    export_backbone(run, library_of(name), backbone=name)


class _LiveReport:
    """Writes RUN/report.html after a save, if `minutes` have passed since it last did, and at the end of the run.

    A report that fails ends no run: that is told once, and no other is tried.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.run: Path | None = None  # once this process has saved something there
        self.due = 0.0 if minutes else float("inf")

    def __call__(self, run: Path) -> None:
        self.run = run
        if time.monotonic() >= self.due:
            self.write(run)

    def finish(self) -> None:
        if self.run and self.due != float("inf"):
            self.write(self.run)

    def write(self, run: Path) -> None:
        try:
            from plrc.visualize.report import write_report

            write_report(run)
            self.due = time.monotonic() + 60 * self.minutes
        except Exception as error:  # whatever it is, training is worth more
            self.due = float("inf")
            print(f"warning: {run / 'report.html'} cannot be written ({error!r}); training is not touched by that")
