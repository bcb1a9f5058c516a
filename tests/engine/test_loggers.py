"""The loggers of a run, each with its real package: what they hold, resume, faults, and what is not installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.runs import after_steps, power_cut

from plrc.config import Config
from plrc.engine.loggers import LOGGERS, MetricLoggers
from plrc.engine.pretrain import pretrain
from plrc.engine.runlog import RunLog
from plrc.errors import ConfigError, MissingPackageError, RunError

Tiny = Callable[..., Config]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights & Biases without a server, MLflow in a folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    yield
    import wandb

    wandb.teardown()  # its service process


def wandb_history(out: Path) -> list[dict[str, Any]]:
    """The lines of all W&B files of a run folder, read with W&B's own reader."""
    import wandb
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    wandb.teardown()  # its service process writes what it holds, as at the end of a user's process
    lines = []
    for file in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = record.history.item
            if items:
                lines.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return lines


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_wandb_and_mlflow_hold_the_numbers_of_metrics_jsonl_and_continue_a_resumed_run(
    tiny: Tiny, tmp_path: Path, offline: None
) -> None:
    config = tiny(run__loggers=("wandb", "mlflow"), run__checkpoint_every_steps=2, run__workers=0)
    with pytest.raises(RuntimeError, match="power cut"), after_steps(4, power_cut):
        pretrain(config)
    out = Path(config.run.out)
    identifiers = json.loads((out / "loggers.json").read_text())
    import mlflow

    client = mlflow.MlflowClient()
    assert client.get_run(identifiers["mlflow"]).info.status == "FAILED"
    pretrain(config.with_values({"run.resume": True}))

    assert json.loads((out / "loggers.json").read_text()) == identifiers
    assert not (out / "tensorboard").exists()
    run = client.get_run(identifiers["mlflow"])
    assert run.info.status == "FINISHED" and run.info.run_name == "run" and run.data.params["optim.steps"] == "4"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    expected = {record["step"]: record["point_loss"] for record in records if record["kind"] == "train"}
    logged = {point.step: point.value for point in client.get_metric_history(identifiers["mlflow"], "train/point_loss")}
    assert logged == expected and set(expected) == {1, 2, 3, 4}
    history = wandb_history(out)
    assert {line["step"]: line["train/point_loss"] for line in history if "train/point_loss" in line} == expected
    assert any("health/feature_std" in line for line in history)


def test_a_run_stopped_early_is_killed_in_mlflow(tmp_path: Path, offline: None) -> None:
    import mlflow

    with RunLog(tmp_path, 0, 10, main=True, loggers=("mlflow",)) as log:
        log.record(5, "train", {"loss": 1.0})
    identifier = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    assert mlflow.MlflowClient().get_run(identifier).info.status == "KILLED"


def test_a_run_that_ends_with_its_time_is_finished_in_mlflow(tiny: Tiny, offline: None) -> None:
    import mlflow

    run = pretrain(tiny(optim__hours=1e-6, run__loggers=("mlflow",)))
    assert run.finished
    identifier = json.loads((run.path / "loggers.json").read_text())["mlflow"]
    assert mlflow.MlflowClient().get_run(identifier).info.status == "FINISHED"


def test_a_missing_package_is_named_before_anything_is_written(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    config = tiny(run__loggers=("tensorboard", "wandb"))
    with pytest.raises(MissingPackageError, match=r"run.loggers wandb need wandb; install with: pip install wandb"):
        pretrain(config)
    assert not Path(config.run.out).exists()


def test_unknown_loggers_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"run.loggers must be a list of tensorboard, wandb, mlflow, got \['comet'\]"):
        tiny(run__loggers=["comet"])
    assert tiny(run__loggers="mlflow").run.loggers == ("mlflow",)
    assert tiny(run__loggers=[]).run.loggers == ()


class Broken:
    """A logger whose server goes away at step 2."""

    title = "the broken logger"
    identifier = ""

    def __init__(self, *arguments: object) -> None:
        self.steps: list[int] = []

    def log(self, step: int, values: object) -> None:
        if step == 2:
            raise ConnectionError("no route to host\nand a second line")
        self.steps.append(step)

    def close(self, status: str) -> None:
        raise ValueError("not now")


def test_a_logger_that_fails_is_left_out_and_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGERS, "mlflow", Broken)
    warnings: list[str] = []
    loggers = MetricLoggers(("mlflow",), tmp_path, 0, {}, warnings.append)
    for step in range(1, 5):
        loggers.log(step, {"train/loss": 1.0})
    loggers.close("finished")
    assert warnings == [
        "the broken logger ends at step 2 (no route to host); metrics.jsonl continues",
    ]


def test_a_logger_that_cannot_start_ends_the_run_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with (
        pytest.raises(RunError, match=r"the logger mlflow cannot be started \(.*; fix this or leave it out of run"),
        RunLog(tmp_path, 0, 10, main=True, loggers=("mlflow",)),
    ):
        pass
