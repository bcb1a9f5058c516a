"""A study as its file declares it: settings that all runs share, and grids of values.

Each combination of the values of a grid is a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from plrc.config import Config, Method
from plrc.errors import ConfigError
from plrc.presets import preset, with_method
from plrc.settings import flatten, read_toml, require
from plrc.text import nearest
from plrc.transfer.protocols import LabelledConfig, TransferConfig, protocol

RANDOM = "random"
METHODS = (RANDOM, *get_args(Method))
KEYS = ("title", "metric", "baseline", "grid", "scenes", "pretrain", "probe", "transfer")
SCENE_SETTINGS = ("seed", "size")  # all other keys of [scenes] are splits
PROBE_SETTINGS = ("size", "images", "levels", "curve")  # all other keys of [probe] are settings of `LabelledConfig`

OUT_PLACEHOLDER = Path("{out}")  # stands for the study's folder in a study file


@dataclass(frozen=True)
class StudyRun:
    """A run of a study.

    Attributes:
        axes: Setting that varies -> its value in this run; `method` and `seed` are always among them.
        name: Hash of everything that changes the results of the run.
    """

    axes: dict[str, Any]
    name: str

    def __str__(self) -> str:
        return ", ".join(f"{axis.rpartition('.')[2]} {value}" for axis, value in self.axes.items())


@dataclass(frozen=True)
class Study:
    """The content of a study file; `docs/STUDIES.md` has an example.

    In strings, {out} stands for the folder of the study, and $NAME for an environment variable.

    Attributes:
        title: Title of the table and the page.
        metric: Score that the table shows.
        baseline: Method that the others are compared with, paired by seed.
        grids: Axis -> its values. An axis is `method`, or a setting of pre-training by its dotted name.
        scenes: Settings of the scenes generated in {out}/scenes: number of images of each split, `seed` and `size`. If
            empty, no scenes are generated.
        pretrain: Settings of pre-training by dotted name, applied over those of `preset`.
        probe: Labelled data and settings of the linear probe. Empty: no probe.
        transfer: Settings of a detector by dotted name, applied over those of `preset`. Empty: no detector.
    """

    title: str
    metric: str
    baseline: str
    grids: tuple[dict[str, tuple[Any, ...]], ...]
    scenes: dict[str, Any]
    pretrain: dict[str, Any]
    probe: dict[str, Any]
    transfer: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read and check a study file.

        Args:
            path: TOML file.

        Raises:
            ConfigError: The file cannot be read, or declares something that cannot be used.
        """
        tables = read_toml(path)
        for name in sorted(tables):
            require(name in KEYS, f"{path} has an unknown table {name}; a study file may have {', '.join(KEYS)}")
        grids = tables.get("grid", [])
        require(isinstance(grids, list) and bool(grids), f"{path} declares no runs; write a table [[grid]]")
        study = cls(
            title=str(tables.get("title", Path(path).stem)),
            metric=str(tables.get("metric", "miou_8")),
            baseline=str(tables.get("baseline", RANDOM)),
            grids=tuple(_read_grid(grid) for grid in grids),
            scenes=dict(tables.get("scenes", {})),
            pretrain=flatten(tables.get("pretrain", {})),
            probe=dict(tables.get("probe", {})),
            transfer=flatten(tables.get("transfer", {})),
        )
        require(study.baseline in METHODS, f"there is no method {study.baseline!r}; write one of {', '.join(METHODS)}")
        require(bool(study.probe or study.transfer), f"{path} measures nothing; write a table [probe] or [transfer]")
        # Building the configurations raises an error if a setting cannot be used.
        for run in study.runs:
            study.pretrain_config(run, Path("out"))
        study.labelled_config(Path("out"))
        return study

    @cached_property
    def runs(self) -> tuple[StudyRun, ...]:
        """All runs in the order of the file, each once.

        Runs with random weights are not pre-trained: of the axes they keep only method, seed and backbone.
        """
        runs: dict[str, StudyRun] = {}
        for grid in self.grids:
            for values in itertools.product(*grid.values()):
                axes: dict[str, Any] = {"method": "plrc", "seed": 0}  # if the grid does not set them
                axes.update(zip(grid, values, strict=True))
                if axes["method"] == RANDOM:
                    axes = {axis: axes[axis] for axis in ("method", "seed", "model.backbone") if axis in axes}
                run = StudyRun(axes, self._name(axes))
                runs.setdefault(run.name, run)
        return tuple(runs.values())

    def _name(self, axes: dict[str, Any]) -> str:
        """Return the hash of every setting that changes a result.

        {out} and environment variables are not replaced, so the name is the same on every machine.
        """
        run = StudyRun(axes, name="")  # only the axes matter below
        config = self.pretrain_config(run, OUT_PLACEHOLDER, expand=False)
        content: dict[str, Any] = {"probe": self.probe, "scenes": self.scenes, "method": axes["method"], "transfer": {}}
        if axes["method"] == RANDOM:
            content["pretrain"] = {"model.backbone": config.model.backbone, **axes}
        else:
            content["pretrain"] = config.result_settings()
        if self.transfer:
            content["transfer"] = self.transfer_config(run, "", OUT_PLACEHOLDER, expand=False).result_settings()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def pretrain_config(self, run: StudyRun, out: Path, expand: bool = True) -> Config:
        """Return the settings of a run's pre-training, which writes into OUT/runs/NAME/pretrain.

        Settings that the file or an axis sets are pinned.

        Args:
            run: The run. For random weights, which are not pre-trained, the settings of method plrc are returned.
            out: Folder of the study.
            expand: Replace {out} and environment variables in strings.
        """
        axes = _expanded(run.axes, out, expand)
        method = axes.pop("method")
        shared = _expanded(self.pretrain, out, expand)
        config = preset(shared.pop("preset", "small_r18")).with_values(shared | axes)
        folder = out / "runs" / run.name / "pretrain"
        if method == RANDOM:
            method = "plrc"  # not trained, but the settings need a method
        # An axis may set a value that the method sets too, so the axes are applied again.
        config = with_method(config, method).with_values(axes)
        return config.with_values({"run.out": str(folder), "run.resume": True}, pin=False)

    def labelled_config(self, out: Path) -> LabelledConfig:
        """Return the labelled data of the probe.

        Args:
            out: Folder of the study.
        """
        fields = [field.name for field in dataclasses.fields(LabelledConfig)]
        settings = {}
        for key, value in _expanded(self.probe, out).items():
            if key in fields:
                settings[f"data.{key}"] = value
            elif key not in PROBE_SETTINGS:
                best = nearest(key, [*PROBE_SETTINGS, *fields])
                raise ConfigError(f"there is no setting probe.{key}; did you mean probe.{best}?")
        return TransferConfig().with_values(settings).data

    def transfer_config(self, run: StudyRun, init: str, out: Path, expand: bool = True) -> TransferConfig:
        """Return the settings of a run's fine-tuning, which writes into OUT/runs/NAME/transfer.

        Args:
            run: The run.
            init: Initial weights, see `TransferConfig.init`.
            out: Folder of the study.
            expand: Replace {out} and environment variables in strings.
        """
        values = _expanded(self.transfer, out, expand)
        task = values.pop("task", "detection")
        config = protocol(values.pop("preset", f"small_{task}"), task)
        folder = out / "runs" / run.name / "transfer"
        run_values = {
            "init": init,
            "seed": run.axes["seed"],
            "run.out": str(folder),
            "run.resume": True,
            "run.keep_model": False,
        }
        return config.with_values(values | run_values)


def _expanded(values: dict[str, Any], out: Path, expand: bool = True) -> dict[str, Any]:
    """Return a copy of some settings, with {out} and environment variables in their strings replaced."""
    expanded = dict(values)
    for name, value in values.items():
        if expand and isinstance(value, str):
            text = os.path.expandvars(value.replace("{out}", str(out)))
            require("$" not in text, f"{value} names an environment variable that is not set; set it")
            expanded[name] = text
    return expanded


def _read_grid(grid: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return axis -> its values from a table [[grid]]; a single value stands for a list of one."""
    known = ("method", *Config().flat())
    axes = {}
    for axis, entry in flatten(grid).items():
        require(axis in known, f"there is no setting {axis} to vary; did you mean {nearest(axis, known)}?")
        values = tuple(entry) if isinstance(entry, list) else (entry,)
        require(bool(values), f"the axis {axis} has no values; write at least one")
        if axis == "method":
            for method in values:
                require(method in METHODS, f"there is no method {method!r}; write some of {', '.join(METHODS)}")
        axes[axis] = values
    return axes
