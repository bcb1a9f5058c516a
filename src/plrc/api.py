"""Pre-training as users call it: the training loop, with the export and the report of its run."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import plrc.engine.pretrain as engine
from plrc.config import Config
from plrc.export import default_target, export_backbone
from plrc.notebook import notebook_output
from plrc.presets import PRESETS, preset
from plrc.progress import OnProgress

logger = logging.getLogger(__name__)


def pretrain(config: Config, on_progress: OnProgress | None = None) -> engine.Run:
    """Pre-train a backbone (METHOD sections 2 to 4).

    When training finishes, or is stopped by SIGTERM or Ctrl-C, the run folder holds the newest checkpoint and the
    backbone in `exported/`, which was verified against the checkpoint. `report.html` shows how the run is doing and is
    updated at checkpoints. To resume a stopped run, call again with `run.resume` set.

    Settings that the user chose are not adapted to the data: those that were set with `Config.with_values` or that a
    TOML file names, and those that differ from `preset(config.preset, config.method)`. `Config(adapt=False)` adapts
    nothing.

    Args:
        config: All settings. `data.source` and `run.out` are required.
        on_progress: Called with the step, the number of steps and a line about the losses, now and then. None: a
            notebook shows the log and the progress in one output that is updated; elsewhere nothing is shown, but
            `logging` gets it all.

    Returns:
        The run folder, the last step and the results of the health checks. `finished` is False if training was stopped.

    Raises:
        PlrcError: The settings, the images or the run folder cannot be used, or training had to end.

    Examples:
        >>> import plrc
        >>> config = plrc.preset("small_r18").with_values({"data.source": "photos/", "run.out": "runs/first"})
        >>> run = plrc.pretrain(config)
        >>> run.finished, run.path
        (True, PosixPath('runs/first'))
    """
    start = preset(config.preset if config.preset in PRESETS else "custom", config.method)
    changed = [name for name, _, _ in config.differences(start)]
    config = replace(config, pinned=config.pinned.union(changed))
    report = LiveReport(config.run.report_every_minutes)
    with notebook_output() as show_in_notebook:
        try:
            return engine.pretrain(
                config,
                on_checkpoint=(report.update,),
                on_finish=(export_run, report.write),
                on_progress=on_progress or show_in_notebook,
            )
        except Exception:
            report.write_after_failure()
            raise


def export_run(run: Path) -> None:
    """Export the newest weights of a run of this process for the library that its backbone comes from.

    Args:
        run: The run folder. The backbone that it names may be a user's own function, which is imported.
    """
    backbone = Config.load(run / "config.toml").model.backbone
    export_backbone(run, default_target(backbone), backbone=backbone)


class LiveReport:
    """Keeps `report.html` in a run folder up to date. A failing report is logged once and disables reports.

    Args:
        minutes: Minimum time between two updates. 0: no report.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._enabled = minutes > 0
        self._next_time = 0.0
        self._run: Path | None = None

    def update(self, run: Path) -> None:
        """Write the report if the last one is old enough."""
        self._run = run
        if time.monotonic() >= self._next_time:
            self.write(run)

    def write_after_failure(self) -> None:
        """Write the report of a run that has saved a checkpoint in this process."""
        if self._run is not None:
            self.write(self._run)

    def write(self, run: Path) -> None:
        """Write the report now."""
        if not self._enabled:
            return
        try:
            from plrc.visualize.report import write_report

            write_report(run)
        except Exception as error:  # no error of the report may stop training
            logger.warning("cannot write %s (%r); training continues without reports", run / "report.html", error)
            self._enabled = False
        self._next_time = time.monotonic() + 60 * self._minutes
