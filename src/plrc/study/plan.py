"""The content of a study file: settings that all runs share, and grids of values.

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
# Methods without pre-training (random weights, and those of `model.init`) -> the settings that change their results.
UNTRAINED = {RANDOM: ("seed", "model.backbone"), START: ("seed", "model.backbone", "model.init")}
METHODS = (*UNTRAINED, *get_args(Method))
KEYS = ("title", "metric", "baseline", "grid", "scenes", "pretrain", "probe", "transfer")
SCENE_SETTINGS = ("seed", "size")  # all other keys of [scenes] are splits
PROBE_SETTINGS = ("size", "images", "levels", "curve")  # all other keys of [probe] are settings of `LabelledConfig`
TRANSFER = "transfer."  # prefix of the settings of fine-tuning that a grid varies

OUT_PLACEHOLDER = Path("{out}")  # stands for the study's folder in a study file


@dataclass(frozen=True)
class Grid:
    """Settings whose every combination is a run.

    Attributes:
        name: Replaces the name of the method in tables; may be empty.
        axes: Values by axis. An axis is `method`, `preset`, the dotted name of a setting of pre-training, or
            `transfer.` and the dotted name of a setting of fine-tuning.
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
        transfer: The grid's settings of fine-tuning by dotted name, which override those of the study.
        weights: Hash of everything that changes the weights; the run's folder has this name. Runs with different
            fine-tuning can share it.
        name: Hash of everything that changes the results, which identifies the run.
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
        baseline: Method, or name of a grid, with which the others are compared, paired by seed.
        grids: The grids of runs.
        scenes: Settings of the scenes generated in {out}/scenes: number of images of each split, `seed` and `size`. If
            empty, no scenes are generated.
        pretrain: Settings of pre-training by dotted name. `preset` names the preset that they override.
        probe: Labelled data and settings of the linear probe. Empty: no probe.
        transfer: Settings of fine-tuning by dotted name. `preset` names the preset that they override. With
            `fractions`, a network is fine-tuned for each of these shares of the labels. Empty: no fine-tuning.
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
        methods = dict.fromkeys(run.axes["method"] for run in study.runs)  # each once, in the order of the file
        require(
            study.baseline in methods or "baseline" not in tables,
            f"there is no method {study.baseline!r} in the grids; write baseline = one of {', '.join(methods)}",
        )
        # Building the configurations raises an error if a setting cannot be used.
        for run in study.runs:
            config = study.pretrain_config(run, Path("out"))
            if run.method == START:
                require(config.model.init != "", f"method {START} scores the weights of model.init; set model.init")
            study.transfer_configs(run, "", Path("out"))
        study.labelled_config(Path("out"))
        return study

    @cached_property
    def runs(self) -> tuple[StudyRun, ...]:
        """All runs in the order of the file, each once.

        Raises:
            ConfigError: Two different runs have the same axes, or the same run has two names of a method.
        """
        by_name: dict[str, StudyRun] = {}
        for grid in self.grids:
            for values in itertools.product(*grid.axes.values()):
                run = self._run(grid, dict(zip(grid.axes, values, strict=True)))
                earlier = by_name.setdefault(run.name, run)  # a run that two grids declare is executed once
                require(
                    earlier.axes["method"] == run.axes["method"],
                    f"{earlier} and {run} are the same run; remove one of them, or change its settings",
                )
        by_axes: dict[str, StudyRun] = {}
        for run in by_name.values():
            axes = json.dumps(run.axes, sort_keys=True)
            require(axes not in by_axes, f'two different runs are called "{run}"; give each grid a name of its own')
            by_axes[axes] = run
        return tuple(by_name.values())

    def _run(self, grid: Grid, values: dict[str, Any]) -> StudyRun:
        """Return the run of a grid with these values of its axes."""
        values = {"seed": 0} | values
        method = values.pop("method", "plrc")
        settings: dict[str, Any] = {}
        transfer: dict[str, Any] = {}
        for axis, value in values.items():
            if axis.startswith(TRANSFER):
                transfer[axis.removeprefix(TRANSFER)] = value
            else:
                settings[axis] = value
        require(not transfer or bool(self.transfer), "a grid sets fine-tuning; write a table [transfer]")
        # Tables do not show settings without effect, nor those that the name of the grid stands for.
        shown_axes = {"method": grid.name or method, "seed": values["seed"]}
        for axis, value in values.items():
            varies = axis in grid.axes and len(grid.axes[axis]) > 1
            if _has_effect(axis, method) and (varies or not grid.name):
                shown_axes[axis] = value
        run = StudyRun(shown_axes, method, settings, transfer)
        weights = self._weights_content(run)
        results = {"weights": weights, "probe": self.probe, "transfer": self._transfer_content(run)}
        return dataclasses.replace(run, weights=digest(weights), name=digest(results))

    def _weights_content(self, run: StudyRun) -> dict[str, Any]:
        """Return every setting that changes the weights of a run.

        {out} and environment variables are not replaced, so the hash is the same on every machine; defaults are left
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
        """Return every setting that changes the results of fine-tuning, by the ending of the names of its scores."""
        configs = self._shared_transfer_configs(run, OUT_PLACEHOLDER, expand=False)
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
        preset_name = shared.pop("preset", "small_r18")
        preset_name = own.pop("preset", preset_name)
        config = preset(preset_name).with_values(shared | own)
        method = "plrc" if run.method in UNTRAINED else run.method  # the settings need a method
        # A method overrides values of the study, but not those of the grid, which are therefore applied again.
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
            Settings by the ending of the names of the scores: "_10" for a tenth of the labels, "" without `fractions`.
        """
        content = self._transfer_content(run)
        configs: dict[str, TransferConfig] = {}
        for ending, config in self._shared_transfer_configs(run, out).items():
            folder = out / "runs" / run.weights / f"transfer{ending}-{digest_with_labels(content[ending], labels)}"
            values = {"init": init, "run.out": str(folder), "run.resume": True, "run.keep_model": False}
            configs[ending] = config.with_values(values)
        return configs

    def _shared_transfer_configs(self, run: StudyRun, out: Path, expand: bool = True) -> dict[str, TransferConfig]:
        """Return `transfer_configs` before the initial weights and the folder are set."""
        if not self.transfer:
            return {}
        values = _expanded(self.transfer | run.transfer, out, expand)
        task = values.pop("task", "detection")
        fractions = values.pop("fractions", None)
        # Unless the study sets the backbone, it is that of pre-training, not that of the protocol.
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


def digest_with_labels(settings: dict[str, Any], labels: str) -> str:
    """Return a hash of the settings of a measurement and of the labels that it is made on.

    Args:
        settings: The settings.
        labels: Digest of the labels.
    """
    return digest({**settings, "labels of": labels})


def _has_effect(axis: str, method: str) -> bool:
    """Return whether an axis changes the results of a method: without pre-training, few settings do."""
    if method not in UNTRAINED or axis.startswith(TRANSFER):
        return True
    return axis in UNTRAINED[method]


def _changed_settings(config: Config | TransferConfig) -> dict[str, Any]:
    """Return the settings that affect results and do not have the default value, by dotted name."""
    defaults = type(config)().result_settings()
    return {name: value for name, value in config.result_settings().items() if value != defaults[name]}


def _expanded(values: dict[str, Any], out: Path, expand: bool = True) -> dict[str, Any]:
    """Return a copy of some settings, with {out} and environment variables in their strings replaced."""
    expanded = dict(values)
    if not expand:
        return expanded
    for name, value in values.items():
        if isinstance(value, str):
            text = os.path.expandvars(value.replace("{out}", str(out)))
            require("$" not in text, f"{value} names an environment variable that is not set; set it")
            expanded[name] = text
    return expanded


def _read_grid(table: dict[str, Any]) -> Grid:
    """Return the grid of a table [[grid]]."""
    entries = flatten(table)
    name = entries.pop("name", "")
    require(isinstance(name, str), f"the name of a grid must be a string, got {name!r}")
    defaults = Config().flat() | {"method": "plrc"}
    for setting, default in TransferConfig().flat().items():
        if not setting.startswith(("task", "data.")):  # the task and the labels are the same in all runs of a study
            defaults[TRANSFER + setting] = default
    axes = {}
    for axis, entry in entries.items():
        if axis not in defaults:
            raise ConfigError(f"there is no setting {axis} to vary; did you mean {nearest(axis, defaults)}?")
        values = _axis_values(entry, is_list_setting=isinstance(defaults[axis], tuple))
        require(bool(values), f"the axis {axis} has no values; write at least one")
        if axis == "method":
            for method in values:
                require(method in METHODS, f"there is no method {method!r}; write some of {', '.join(METHODS)}")
            require(not name or len(values) == 1, f"the grid {name!r} has several methods; write a grid for each")
        axes[axis] = values
    return Grid(name, axes)


def _axis_values(entry: Any, is_list_setting: bool) -> tuple[Any, ...]:
    """Return the values of an axis from its entry in the file: a list of values, or a single value.

    If the values of the setting are themselves lists, [0.2, 0.9] is a single value, and [[0.2, 0.9], [0.3, 1.0]] are
    two.
    """
    if not isinstance(entry, list):
        return (entry,)
    if is_list_setting and not all(isinstance(value, list) for value in entry):
        return (entry,)
    return tuple(entry)
