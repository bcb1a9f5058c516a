"""`plrc pretrain`: read the options, build the configuration, train; --devices starts several processes."""

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
    """Which loss terms are used. image: image contrast alone (MoCo v2). pixel, region and points add point contrast:
    pixel of grid positions, region of whole regions, points of points in regions. plrc: like points, and affinity
    distillation."""
    config: str = setting("", metavar="FILE")
    """TOML file with settings that replace those of the preset. Options replace both."""


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
    import plrc  # only here, because it imports torch, which makes --help slow

    with progress("steps") as on_progress:
        result = plrc.pretrain(config, on_progress)
    if not result.finished:
        return STOPPED
    if is_first_process():
        print(f"finished; the backbone is {result.path / 'exported' / 'backbone.safetensors'}")
        report = result.path / "report.html"
        if report.exists():
            print(f"the report is {report}")
    return 0


def parse_config(arguments: Sequence[str]) -> Config:
    """Return the configuration that the options of `plrc pretrain` describe.

    Options replace settings of the TOML file, which replace those of the preset. Settings of file and options are
    pinned. If a run is resumed and neither preset nor file is named, the run's config.toml takes the place of the file.

    Args:
        arguments: The command line after the name of the command.

    Raises:
        ConfigError: If an option or the combination of settings cannot be used.
    """
    parser = CommandParser("pretrain", _about_with_presets())
    parser.add_fields(StartOptions)
    parser.add_fields(Config)
    options = parser.parse(arguments, compute_defaults=lambda given: _base_config(given).flat())
    if "preset" not in options and "config" not in options and _resumed_config_file(options) is None:
        advice = f"write --preset NAME ({', '.join(PRESETS)}) or --config FILE"
        if options.get("run.resume") and options.get("run.out"):
            raise ConfigError(f"there is no run in {options['run.out']} to resume; to start one, {advice}")
        raise ConfigError(f"nothing to start from: {advice}")
    settings = {name: value for name, value in options.items() if name not in ("preset", "method", "config")}
    return _base_config(options).with_values(settings)


def _base_config(options: dict[str, Any]) -> Config:
    """The configuration of --preset, --method and --config, before all other options."""
    resumed_file = _resumed_config_file(options)
    file = resumed_file or options.get("config")
    table = read_toml(file) if file else {}
    preset_name = options.get("preset") or table.get("preset", "custom")
    known_preset = preset_name
    if resumed_file and preset_name not in PRESETS:  # the run was started by a version of plrc with other presets
        known_preset = "custom"
    preset_config = preset(known_preset, options.get("method") or table.get("method", "plrc"))
    config = Config.from_dict(table, preset_config).with_values({"preset": preset_name}, pin=False)
    if "method" in options:  # --method replaces what the file says about terms
        config = config.with_values(_method_settings(preset_config), pin=False)
    return config


def _method_settings(config: Config) -> dict[str, Any]:
    """The settings that a method decides: its name, the kind of point contrast and the weights of the terms."""
    settings = {"method": config.method, "objectives.contrast": config.objectives.contrast}
    weights = {name: value for name, value in config.flat().items() if name.endswith("_weight")}
    return settings | weights


def _resumed_config_file(options: dict[str, Any]) -> Path | None:
    """The config.toml of the run to resume; None if nothing is resumed, or if a preset or a file is named."""
    if not options.get("run.resume") or "preset" in options or "config" in options:
        return None
    file = Path(options.get("run.out", "")) / "config.toml"
    return file if file.is_file() else None


def _about_with_presets() -> str:
    """The docstring of `run`, which ends with the heading of the presets, and a line for each preset."""
    width = max(map(len, PRESETS)) + 2
    preset_lines = [f"  {name:<{width}}{about(build).splitlines()[0]}" for name, build in PRESETS.items()]
    return "\n".join([about(run), *preset_lines])


def _launch(config: Config, arguments: Sequence[str]) -> int:
    """Run the same command in `run.devices` processes by torchrun. Returns the exit status of the first that failed."""
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
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # torchrun would repeat our error messages
    with tempfile.TemporaryDirectory() as folder:
        # Only the process that creates this file prints its error.
        os.environ[FIRST_FAILURE] = str(Path(folder) / "reported")
        try:
            command = ["--standalone", f"--nproc-per-node={devices}", "-m", "plrc", "pretrain", *arguments]
            torchrun.run(torchrun.parse_args(command))
        except ChildFailedError as failed:
            _, failure = failed.get_first_failure()
            return failure.exitcode
        except SignalException:
            return STOPPED
        finally:
            del os.environ[FIRST_FAILURE]
    return 0
