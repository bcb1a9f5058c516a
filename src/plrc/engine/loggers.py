"""Where the numbers of a run are shown besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow (`run.loggers`).

A package is imported only if its logger is asked for. The account, server and project are those of the package's own
environment variables, such as WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from plrc.errors import MissingPackageError, RunError
from plrc.files import parse_json, write_json

IDS_FILE = "loggers.json"
"""In the run folder: logger -> the identifier of this run there, with which a resumed run continues it."""
PROJECT = "plrc"

Status = Literal["finished", "stopped", "failed"]


class MetricLogger(Protocol):
    """Shows the numbers of one run. Every method may raise any error of its package.

    Attributes:
        title: What messages call it.
        identifier: With which a resumed run continues there; empty if that needs none.
    """

    title: str
    identifier: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values of a step, by names such as "train/loss". A resumed run may log a step again."""
        ...

    def close(self, status: Status) -> None:
        """Write what is pending, and record how the run ended."""
        ...


class TensorBoardLogger:
    """Writes RUN/tensorboard. Points after `start_step` of a resumed run are hidden: those steps are trained again."""

    title = "the TensorBoard file"

    def __init__(self, out: Path, start_step: int, settings: Mapping[str, Any], identifier: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.identifier = ""
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start_step + 1 if start_step > 0 else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, status: Status) -> None:
        self._writer.close()


class WandbLogger:
    """Logs to Weights & Biases, which keeps its files in RUN/wandb."""

    title = "Weights & Biases"

    def __init__(self, out: Path, start_step: int, settings: Mapping[str, Any], identifier: str) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=out.resolve().name,
            dir=str(out),
            config=dict(settings),
            id=identifier or None,
            resume="allow" if identifier else None,
            # create_new: a run of the application's own is left alone
            settings=wandb.Settings(console="off", silent=True, reinit="create_new"),
        )
        self.identifier: str = self._run.id
        self._run.define_metric("*", step_metric="step")  # W&B's own steps cannot go back, as those of a resumed run do

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, status: Status) -> None:
        self._run.finish(exit_code=1 if status == "failed" else 0)


class MlflowLogger:
    """Logs to MLflow."""

    title = "MLflow"
    statuses: Mapping[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

    def __init__(self, out: Path, start_step: int, settings: Mapping[str, Any], identifier: str) -> None:
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient()  # not `mlflow.start_run`: the application may have a run of its own
        if identifier:
            self.identifier = identifier
            self._client.update_run(identifier, status="RUNNING")
            return
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        self.identifier = self._client.create_run(number, run_name=out.resolve().name).info.run_id
        parameters = [Param(name, str(value)) for name, value in settings.items()]
        for start in range(0, len(parameters), 100):  # MLflow takes at most 100 at a time
            self._client.log_batch(self.identifier, params=parameters[start : start + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        milliseconds = int(1000 * time.time())
        metrics = [Metric(name, float(value), milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self.identifier, metrics=metrics)

    def close(self, status: Status) -> None:
        self._client.set_terminated(self.identifier, self.statuses[status])


LOGGERS: dict[str, Callable[[Path, int, Mapping[str, Any], str], MetricLogger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
"""Value of `run.loggers`, which is also the name of its package -> the logger.

Its arguments: the run folder, the step from which the run continues, the settings to show, and the identifier of the
run if it was logged there before.
"""


def check_loggers(names: Iterable[str]) -> None:
    """Raise MissingPackageError if the package of a logger is not installed. Nothing is imported."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(f"runs with run.loggers {name}", name)


class MetricLoggers:
    """All loggers of a run. One that fails while the run goes on is reported once and left out from then on.

    Args:
        names: Keys of `LOGGERS`.
        out: The run folder.
        start_step: The step from which the run continues.
        settings: The configuration by dotted name, which the loggers show.
        warn: Called with a sentence about a logger that failed.

    Raises:
        RunError: A logger cannot be started, for example because its server does not answer.
    """

    def __init__(
        self,
        names: Iterable[str],
        out: Path,
        start_step: int,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._open: dict[str, MetricLogger] = {}
        identifiers = _read_identifiers(out / IDS_FILE)
        for name in dict.fromkeys(names):
            try:
                logger = LOGGERS[name](out, start_step, settings, identifiers.get(name, ""))
            except Exception as error:
                self.close("failed")
                advice = "fix this or leave it out of run.loggers, and repeat the command with --resume"
                raise RunError(f"the logger {name} cannot be started ({_reason(error)}); {advice}") from error
            self._open[name] = logger
            if logger.identifier and logger.identifier != identifiers.get(name):
                identifiers[name] = logger.identifier
                write_json(out / IDS_FILE, identifiers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values of a step."""
        for name in list(self._open):
            self._log_to(name, step, values)

    def close(self, status: Status) -> None:
        """Close all loggers."""
        for logger in self._open.values():
            self._close(logger, status)
        self._open.clear()

    def _log_to(self, name: str, step: int, values: Mapping[str, float]) -> None:
        logger = self._open[name]
        try:
            logger.log(step, values)
        except Exception as error:  # no error of a logger may stop training
            del self._open[name]
            with contextlib.suppress(Exception):  # it is reported already
                logger.close("failed")
            self._warn(f"{logger.title} ends at step {step} ({_reason(error)}); metrics.jsonl continues")

    def _close(self, logger: MetricLogger, status: Status) -> None:
        try:
            logger.close(status)
        except Exception as error:
            self._warn(f"{logger.title} could not be closed ({_reason(error)}); metrics.jsonl is complete")


def _reason(error: Exception) -> str:
    """The first line of an error's message."""
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__


def _read_identifiers(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    stored: dict[str, str] = parse_json(path.read_text(encoding="utf-8"))
    return stored
