"""`plrc pretrain`: options, configuration, training; --devices starts several processes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plrc.cli.options import CommandParser, about
from plrc.cli.output import FIRST_FAILURE, STOPPED, is_first_process, progress
from plrc.config import Config
from plrc.errors import ConfigError
from plrc.machine import cores
from plrc.presets import PRESETS, preset
from plrc.settings import read_toml, setting


@dataclass(frozen=True)
class StartOptions:
    preset: str = setting("", metavar="NAME")
    """A preset from the list above."""
    method: str = setting("", metavar="{image,pixel,region,points,plrc}")
    """Which terms are trained: image contrast alone (MoCo v2); image and point contrast between grid positions
    (pixel), whole regions (region) or points of regions (points); these and affinity distillation (plrc)."""
    config: str = setting("", metavar="FILE")
    """TOML file laid over the preset. Options given here are laid over both."""


def run(arguments: Sequence[str]) -> int:
    """Pre-train a backbone on unlabelled images.

    examples:
      plrc pretrain --preset small_r18 --data photos/ --out runs/first
      plrc pretrain --out runs/first --resume
      plrc pretrain --preset small_r18 --data voc/ --data.split trainval --out runs/voc
      plrc pretrain --preset small_r18 --method image --data photos/ --out runs/moco
      plrc pretrain --preset paper_r50 --data imagenet/train --out runs/r50 --devices 8
      plrc pretrain --config mine.toml --optim.lr 0.06 --out runs/mine

    presets:
    """
    config = parse_config(arguments)
    if config.run.devices > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(config, arguments)
    import plrc

    with progress("steps") as on_progress:
        finished_run = plrc.pretrain(config, on_progress)
    if not finished_run.finished:
        return STOPPED
    if is_first_process():
        print(f"finished; the backbone is {finished_run.path / 'exported' / 'backbone.safetensors'}")
        report = finished_run.path / "report.html"
        if report.exists():
            print(f"the report is {report}")
    return 0


def parse_config(arguments: Sequence[str]) -> Config:
    """Return the configuration that the options of `plrc pretrain` describe.

    Preset, then the TOML file, then the options; what the file and the options set is pinned. To resume without naming
    a preset or a file, the run's own configuration is taken, all of it pinned.

    Args:
        arguments: The command line after the name of the command.

    Raises:
        ConfigError: An option, or the combination of settings, cannot be used.
    """
    parser = CommandParser("pretrain", _about())
    parser.add_fields(StartOptions)
    parser.add_fields(Config)
    values = parser.parse(arguments, defaults=lambda values: _starting_point(values).flat())
    if not (values.keys() & {"preset", "config"} or _resumed_config(values)):
        presets = f"write --preset NAME ({', '.join(PRESETS)}) or --config FILE"
        if values.get("run.resume") and values.get("run.out"):
            raise ConfigError(f"there is no run in {values['run.out']} to resume; to start one, {presets}")
        raise ConfigError(f"nothing to start from: {presets}")
    chosen = {name: value for name, value in values.items() if name not in ("preset", "method", "config")}
    return _starting_point(values).with_values(chosen)


def _starting_point(values: dict[str, Any]) -> Config:
    """The configuration below the options: preset, method and TOML file."""
    stored = _resumed_config(values)
    file = stored or values.get("config")
    table = read_toml(file) if file else {}
    name = values.get("preset") or table.get("preset", "custom")
    known = "custom" if stored and name not in PRESETS else name  # a run of another version
    start = preset(known, values.get("method") or table.get("method", "plrc"))
    base = Config.from_dict(table, start).with_values({"preset": name}, pin=False)
    if "method" in values:  # its terms replace those of the file
        base = base.with_values(_terms(start), pin=False)
    return base


def _terms(config: Config) -> dict[str, Any]:
    """The settings that a method decides."""
    chosen = {"method": config.method, "objectives.contrast": config.objectives.contrast}
    weights = {name: value for name, value in config.flat().items() if name.endswith("_weight")}
    return chosen | weights


def _resumed_config(values: dict[str, Any]) -> Path | None:
    """The configuration of the run to resume, if no preset and no file is named."""
    stored = Path(values.get("run.out", "")) / "config.toml"
    named = "preset" in values or "config" in values
    return stored if values.get("run.resume") and not named and stored.is_file() else None


def _about() -> str:
    lines = [f"  {name:<11}{about(build).splitlines()[0]}" for name, build in PRESETS.items()]
    return "\n".join([about(run), *lines])


def _launch(config: Config, arguments: Sequence[str]) -> int:
    """Run the same command in `run.devices` processes through torchrun; the first failure is the exit status."""
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    devices = config.run.devices
    gpus = torch.cuda.device_count()
    if config.run.device != "cpu" and 0 < gpus < devices:
        raise ConfigError(
            f"--devices is {devices} but there are {gpus} GPUs; write --devices {gpus} or --run.device cpu"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # it would report our processes' errors again
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FIRST_FAILURE] = str(Path(folder) / "reported")
        try:
            command = ["--standalone", f"--nproc-per-node={devices}", "-m", "plrc", "pretrain", *arguments]
            torchrun.run(torchrun.parse_args(command))
        except ChildFailedError as failed:
            return failed.get_first_failure()[1].exitcode
        except SignalException:
            return STOPPED
        finally:
            del os.environ[FIRST_FAILURE]
    return 0
