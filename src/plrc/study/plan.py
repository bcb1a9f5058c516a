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
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import LabelledConfig, TransferConfig

RANDOM = "random"
START = "start"
# Methods without pre-training (random weights, and those of `model.init`) -> the settings that change a result.
UNTRAINED = {RANDOM: ("seed", "model.backbone"), START: ("seed", "model.backbone", "model.init")}
METHODS = (*UNTRAINED, *get_args(Method))
KEYS = ("title", "metric", "baseline", "grid", "scenes", "pretrain", "probe", "transfer")
SCENE_SETTINGS = ("seed", "size")  # all other keys of [scenes] are splits
PROBE_SETTINGS = ("size", "images", "levels", "curve")  # all other keys of [probe] are settings of `LabelledConfig`
TRANSFER = "transfer."  # before the name of a setting of fine-tuning that a grid varies

OUT_PLACEHOLDER = Path("{out}")  # stands for the study's folder in a study file


@dataclass(frozen=True)
class Grid:
    """Settings whose every combination is a run.

    Attributes:
        name: What tables call the method of the runs, if `method` does not describe them; may be empty.
        axes: `method`, `preset`, a setting of pre-training by its dotted name, or one of fine-tuning with `transfer.`
            before it -> its values.
    """

    name: str
    axes: dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class StudyRun:
    """A run of a study.

    Attributes:
        axes: What tables show: `method` (or the name of the grid), `seed`, and the settings that vary.
        method: How the weights are made, one of `METHODS`.
        settings: The grid's settings of pre-training by dotted name, `seed` and possibly `preset` among them.
        transfer: The grid's settings of fine-tuning by dotted name, applied over those of the study.
        weights: Hash of everything that changes the weights; the run's folder has this name.
        name: Hash of everything that changes the results.
    """

    axes: dict[str, Any]
    method: str
    settings: dict[str, Any]
    transfer: dict[str, Any]
    weights: str = ""
    name: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{axis.rpartition('.')[2]} {value}" for axis, value in self.axes.items())


@dataclass(frozen=True)
class Study:
    """The content of a study file; `docs/STUDIES.md` has an example.

    In strings, {out} stands for the folder of the study, and $NAME for an environment variable.

    Attributes:
        title: Title of the table and the page.
        metric: Score that the table shows.
        baseline: Method, or name of a grid, that the others are compared with, paired by seed.
        grids: The grids of runs.
        scenes: Settings of the scenes generated in {out}/scenes: number of images of each split, `seed` and `size`. If
            empty, no scenes are generated.
        pretrain: Settings of pre-training by dotted name, applied over those of `preset`.
        probe: Labelled data and settings of the linear probe. Empty: no probe.
        transfer: Settings of a detector by dotted name, applied over those of `preset`. Empty: no detector. With
            `fractions`, there is a detector for each of these shares of the labels.
    """

    title: str
    metric: str
    baseline: str
    grids: tuple[Grid, ...]
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
        require(bool(study.probe or study.transfer), f"{path} measures nothing; write a table [probe] or [transfer]")
        methods = dict.fromkeys(run.axes["method"] for run in study.runs)
        require(
            study.baseline in methods or "baseline" not in tables,
            f"there is no method {study.baseline!r} in the grids; write baseline = one of {', '.join(methods)}",
        )
        # Building the configurations raises an error if a setting cannot be used.
        for run in study.runs:
            config = study.pretrain_config(run, Path("out"))
            has_start = run.method != START or config.model.init != ""
            require(has_start, f"method {START} scores the weights of model.init; set model.init")
            study.transfer_configs(run, "", Path("out"))
        study.labelled_config(Path("out"))
        return study

    @cached_property
    def runs(self) -> tuple[StudyRun, ...]:
        """All runs in the order of the file, each once.

        Raises:
            ConfigError: Two different runs have the same axes, or two names are given to the same run.
        """
        runs: dict[str, StudyRun] = {}
        for grid in self.grids:
            for values in itertools.product(*grid.axes.values()):
                run = self._run(grid, dict(zip(grid.axes, values, strict=True)))
                earlier = runs.setdefault(run.name, run)
                require(
                    earlier.axes["method"] == run.axes["method"],
                    f"{earlier} and {run} are the same run; remove one of them, or change its settings",
                )
        by_axes: dict[str, StudyRun] = {}
        for run in runs.values():
            other = by_axes.setdefault(json.dumps(run.axes, sort_keys=True), run)
            require(other is run, f'two different runs are called "{run}"; give each grid a name of its own')
        return tuple(runs.values())

    def _run(self, grid: Grid, settings: dict[str, Any]) -> StudyRun:
        """Return the run of a grid with these values of its axes."""
        settings = {"seed": 0} | settings
        method = settings.pop("method", "plrc")
        # Tables do not show settings without effect, nor those that the name of the grid stands for.
        axes = {"method": grid.name or method, "seed": settings["seed"]}
        for axis, value in settings.items():
            has_effect = method not in UNTRAINED or axis in UNTRAINED[method] or axis.startswith(TRANSFER)
            varies = len(grid.axes.get(axis, ())) > 1
            if has_effect and (varies or not grid.name):
                axes[axis] = value
        own = {axis: value for axis, value in settings.items() if not axis.startswith(TRANSFER)}
        tuning = {axis.removeprefix(TRANSFER): value for axis, value in settings.items() if axis.startswith(TRANSFER)}
        require(not tuning or bool(self.transfer), "a grid sets fine-tuning; write a table [transfer]")
        run = StudyRun(axes, method, own, tuning)
        weights = self._weights_content(run)
        results = {"weights": weights, "probe": self.probe, "transfer": self._transfer_content(run)}
        return dataclasses.replace(run, weights=digest(weights), name=digest(results))

    def _weights_content(self, run: StudyRun) -> dict[str, Any]:
        """Return every setting that changes the weights of a run.

        {out} and environment variables are not replaced, so the name is the same on every machine; defaults are left
        out, so it stays the same when plrc gets new settings.
        """
        config = self.pretrain_config(run, OUT_PLACEHOLDER, expand=False)
        content: dict[str, Any] = {"method": run.method, "scenes": self.scenes}
        if run.method in UNTRAINED:
            values = config.flat()
            content["pretrain"] = {name: values[name] for name in UNTRAINED[run.method]}
            return content
        content["pretrain"] = _changed_settings(config)
        if config.adapt:
            content["pinned"] = sorted(name for name in config.pinned if not name.startswith("run."))
        if self.probe.get("curve"):
            content["curve"] = self.probe  # the curve needs all checkpoints, of which a finished run keeps one
        return content

    def _transfer_content(self, run: StudyRun) -> dict[str, Any]:
        """Return every setting that changes the results of fine-tuning, by the ending of its scores."""
        configs = self._transfer_configs(run, OUT_PLACEHOLDER, expand=False)
        return {ending: _changed_settings(config) for ending, config in configs.items()}

    def pretrain_config(self, run: StudyRun, out: Path, expand: bool = True) -> Config:
        """Return the settings of a run's pre-training, which writes into OUT/runs/WEIGHTS/pretrain.

        Settings that the file or an axis sets are pinned.

        Args:
            run: The run. For weights that are not pre-trained, the settings of method plrc are returned.
            out: Folder of the study.
            expand: Replace {out} and environment variables in strings.
        """
        own = _expanded(run.settings, out, expand)
        shared = _expanded(self.pretrain, out, expand)
        name = shared.pop("preset", "small_r18")
        config = preset(own.pop("preset", name)).with_values(shared | own)
        method = "plrc" if run.method in UNTRAINED else run.method  # the settings need a method
        # The grid may set a value that the method sets too, so its values are applied again.
        config = with_method(config, method).with_values(own)
        folder = out / "runs" / run.weights / "pretrain"
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

    def transfer_configs(self, run: StudyRun, init: str, out: Path, labels: str = "") -> dict[str, TransferConfig]:
        """Return the settings of a run's fine-tunings, which write into folders in OUT/runs/WEIGHTS.

        Args:
            run: The run.
            init: Initial weights, see `TransferConfig.init`.
            out: Folder of the study.
            labels: Digest of the labels; the names of the folders depend on it.

        Returns:
            Ending of the names of the scores -> settings: "_10" for a tenth of the labels, "" without `fractions`.
        """
        content = self._transfer_content(run)
        configs = self._transfer_configs(run, out)
        for ending, config in configs.items():
            name = f"transfer{ending}-{digest({**content[ending], 'labels of': labels})}"
            folder = out / "runs" / run.weights / name
            values = {"init": init, "run.out": str(folder), "run.resume": True, "run.keep_model": False}
            configs[ending] = config.with_values(values)
        return configs

    def _transfer_configs(self, run: StudyRun, out: Path, expand: bool = True) -> dict[str, TransferConfig]:
        """Return the settings of fine-tuning without initial weights and folder, by the ending of the scores."""
        if not self.transfer:
            return {}
        values = _expanded(self.transfer | run.transfer, out, expand)
        task = values.pop("task", "detection")
        fractions = values.pop("fractions", None)
        # Unless the file sets it, the network is that of pre-training, whatever the protocol's is.
        backbone = self.pretrain_config(run, out, expand).model.backbone
        config = protocol(values.pop("preset", f"small_{task}"), task)
        config = config.with_values({"model.backbone": backbone, "seed": run.settings["seed"]} | values)
        if fractions is None:
            return {"": config}
        is_list = isinstance(fractions, list) and len(fractions) > 0
        require(is_list, f"transfer.fractions must be a list such as [0.1, 0.5], got {fractions!r}")
        require(config.data.fraction == 1, "transfer.fractions and transfer.data.fraction are both set; set only one")
        return {f"_{100 * share:g}": config.with_values({"data.fraction": share}) for share in fractions}


def digest(content: dict[str, Any]) -> str:
    """Return a hash of 16 hexadecimal digits.

    Args:
        content: Strings, numbers, booleans, lists and dicts.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _changed_settings(config: Config | TransferConfig) -> dict[str, Any]:
    """Return the settings that affect results and do not have the default value, by dotted name."""
    defaults = type(config)().result_settings()
    return {name: value for name, value in config.result_settings().items() if value != defaults[name]}


def _expanded(values: dict[str, Any], out: Path, expand: bool = True) -> dict[str, Any]:
    """Return a copy of some settings, with {out} and environment variables in their strings replaced."""
    expanded = dict(values)
    for name, value in values.items():
        if expand and isinstance(value, str):
            text = os.path.expandvars(value.replace("{out}", str(out)))
            require("$" not in text, f"{value} names an environment variable that is not set; set it")
            expanded[name] = text
    return expanded


def _read_grid(table: dict[str, Any]) -> Grid:
    """Return the grid of a table [[grid]]; a single value stands for a list of one."""
    values_of = flatten(table)
    name = values_of.pop("name", "")
    require(isinstance(name, str), f"the name of a grid must be a string, got {name!r}")
    # Settings of fine-tuning, too, but for its task and its labels, which are those of the study.
    tuning = {name: value for name, value in TransferConfig().flat().items() if not name.startswith(("task", "data."))}
    known = Config().flat() | {"method": "plrc"} | {f"{TRANSFER}{name}": value for name, value in tuning.items()}
    axes = {}
    for axis, entry in values_of.items():
        require(axis in known, f"there is no setting {axis} to vary; did you mean {nearest(axis, known)}?")
        values = tuple(entry) if isinstance(entry, list) else (entry,)
        is_pair = isinstance(known[axis], tuple) and not all(isinstance(value, list) for value in values)
        if is_pair:
            values = (entry,)  # the setting itself is a list
        require(bool(values), f"the axis {axis} has no values; write at least one")
        if axis == "method":
            for method in values:
                require(method in METHODS, f"there is no method {method!r}; write some of {', '.join(METHODS)}")
            require(not name or len(values) == 1, f"the grid {name!r} has several methods; write a grid for each")
        axes[axis] = values
    return Grid(name, axes)
