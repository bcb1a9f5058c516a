"""A study as its file declares it: settings that all runs share, and grids whose every combination is a run.

Layer 6: imports presets and below. Reads the one TOML file that it is given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from plrc.config import Config, Method
from plrc.presets import preset, with_method
from plrc.settings import flatten, read_toml, require
from plrc.text import nearest
from plrc.transfer.protocols import LabelledConfig, TransferConfig, protocol

RANDOM = "random"
METHODS = (RANDOM, *get_args(Method))
TABLES = ("title", "metric", "baseline", "grid", "scenes", "pretrain", "probe", "transfer")
SCENES = ("seed", "size")  # of [scenes], beside the splits
Fill = Callable[[Any, Path], Any]
"""What stands in a study file -> what it stands for."""
PROBE = ("size", "images", "levels", "curve")  # of [probe], beside the labelled data


def _filled(value: Any, out: Path) -> Any:
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(value.replace("{out}", str(out)))
    require("$" not in text, f"{value} names an environment variable that is not set; set it")
    return text


def _as_written(value: Any, out: Path) -> Any:
    return value


@dataclass(frozen=True)
class Cell:
    """One run: its place on the axes (`method` and `seed` always among them); its name, a hash of all it computes."""

    axes: dict[str, Any]
    name: str

    def __str__(self) -> str:
        return ", ".join(f"{axis.rpartition('.')[2]} {value}" for axis, value in self.axes.items())


@dataclass(frozen=True)
class Study:
    """The content of a study file; see `docs/STUDIES.md` for an example.

    In texts, {out} stands for the study's folder, and $NAME for an environment variable.
    """

    title: str
    metric: str
    """The score that tables show."""
    baseline: str
    """The method that the others are paired with, seed by seed."""
    grids: tuple[dict[str, tuple[Any, ...]], ...]
    """Axis -> its values. An axis is `method`, or a setting of pre-training by its dotted name."""
    scenes: dict[str, Any]
    """Generated scenes in {out}/scenes: split -> number; `seed`, `size`. Empty: none."""
    pretrain: dict[str, Any]
    """Settings of pre-training by dotted name, over those of `preset`."""
    probe: dict[str, Any]
    """Labelled data and settings of the dense probe. Empty: no probe."""
    transfer: dict[str, Any]
    """Settings of a detector by dotted name, over those of `preset`. Empty: no detector."""

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read and check a study file. Raises ConfigError with one sentence for each mistake."""
        found = read_toml(path)
        unknown = sorted(set(found) - set(TABLES))
        require(not unknown, f"{path} has an unknown table {next(iter(unknown), '')}; write {', '.join(TABLES)}")
        grids = found.get("grid", [])
        require(isinstance(grids, list) and bool(grids), f"{path} declares no runs; write a table [[grid]]")
        study = cls(
            title=str(found.get("title", Path(path).stem)),
            metric=str(found.get("metric", "miou_8")),
            baseline=str(found.get("baseline", RANDOM)),
            grids=tuple({axis: _values(axis, values) for axis, values in flatten(grid).items()} for grid in grids),
            scenes=dict(found.get("scenes", {})),
            pretrain=flatten(found.get("pretrain", {})),
            probe=dict(found.get("probe", {})),
            transfer=flatten(found.get("transfer", {})),
        )
        require(study.baseline in METHODS, f"there is no method {study.baseline!r}; write one of {', '.join(METHODS)}")
        require(bool(study.probe or study.transfer), f"{path} measures nothing; write a table [probe] or [transfer]")
        for cell in study.cells():
            study.config(cell, Path("out"))
        study.labelled(Path("out"))
        return study

    def cells(self) -> list[Cell]:
        """All runs, in the order of the file, each once. Random weights have no axes but the seed and the backbone."""
        cells: dict[str, Cell] = {}
        for grid in self.grids:
            for values in itertools.product(*grid.values()):
                axes = {"method": "plrc", "seed": 0} | dict(zip(grid, values, strict=True))
                if axes["method"] == RANDOM:
                    axes = {axis: axes[axis] for axis in ("method", "seed", "model.backbone") if axis in axes}
                cell = Cell(axes, self._name(axes))
                cells.setdefault(cell.name, cell)
        return list(cells.values())

    def _name(self, axes: dict[str, Any]) -> str:
        """The hash of every setting that changes a number, places as the file writes them."""
        cell, out = Cell(axes, ""), Path("{out}")
        config = self.config(cell, out, _as_written)
        trained = axes["method"] != RANDOM
        content = {
            "pretrain": config.numbers() if trained else {"model.backbone": config.model.backbone, **axes},
            "transfer": self.detector(cell, "", out, _as_written).numbers() if self.transfer else {},
            "probe": self.probe, "scenes": self.scenes, "method": axes["method"],
        }  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def config(self, cell: Cell, out: Path, fill: Fill = _filled) -> Config:
        """Settings of the cell's pre-training, in OUT/runs/NAME/pretrain; of random weights, what they start."""
        own = {axis: fill(value, out) for axis, value in cell.axes.items() if axis != "method"}
        method = "plrc" if cell.axes["method"] == RANDOM else cell.axes["method"]
        shared = {name: fill(value, out) for name, value in self.pretrain.items() if name != "preset"}
        config = preset(self.pretrain.get("preset", "small_r18")).with_values(shared | own)
        run = {"run.out": str(out / "runs" / cell.name / "pretrain"), "run.resume": True}
        return with_method(config, method).with_values(own | run)

    def labelled(self, out: Path) -> LabelledConfig:
        """The labelled data of the probe."""
        known = (*PROBE, *(field.name for field in dataclasses.fields(LabelledConfig)))
        for key in self.probe:
            require(key in known, f"there is no setting probe.{key}; did you mean probe.{nearest(key, known)}?")
        named = {f"data.{key}": _filled(value, out) for key, value in self.probe.items() if key not in PROBE}
        return TransferConfig().with_values(named).data

    def detector(self, cell: Cell, init: str, out: Path, fill: Fill = _filled) -> TransferConfig:
        """Settings of the cell's detector, in OUT/runs/NAME/transfer."""
        task = self.transfer.get("task", "detection")
        start = protocol(self.transfer.get("preset", f"small_{task}"), task)
        values = {name: fill(value, out) for name, value in self.transfer.items() if name not in ("preset", "task")}
        folder = out / "runs" / cell.name / "transfer"
        own = {"init": init, "seed": cell.axes["seed"], "run.out": str(folder), "run.resume": True}
        return start.with_values(values | own | {"run.keep_model": False})


def _values(axis: str, values: Any) -> tuple[Any, ...]:
    known = ("method", *Config().flat())
    require(axis in known, f"there is no setting {axis} to vary; did you mean {nearest(axis, known)}?")
    found = tuple(values) if isinstance(values, list) else (values,)
    require(bool(found), f"the axis {axis} has no values; write at least one")
    if axis == "method":
        for value in found:
            require(value in METHODS, f"there is no method {value!r}; write some of {', '.join(METHODS)}")
    return found
