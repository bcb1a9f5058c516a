"""`plrc pretrain`: options -> a configuration, and several processes where they are asked for. Layer 6."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from plrc.cli.options import about, parse, written
from plrc.config import Config
from plrc.errors import PlrcError
from plrc.machine import cores
from plrc.presets import PRESETS, preset
from plrc.settings import read_toml

STOPPED = 75
FIRST_TO_FAIL = "PLRC_FIRST_TO_FAIL"  # names the file by which processes agree on who tells the user


@dataclass(frozen=True)
class Start:
    """What the settings start from."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """One of the presets above."""
    method: Annotated[str, tyro.conf.arg(metavar="{image,pixel,region,points,plrc}")] = ""
    """Which terms are trained: image contrast alone (MoCo v2); image and point contrast between lattice positions
    (pixel), whole regions (region) or points of regions (points); these and affinity distillation (plrc)."""
    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """TOML file laid over the preset. Options given here are laid over both."""


@dataclass(frozen=True)
class Pretrain:
    start: Annotated[Start, tyro.conf.arg(name="")] = field(default_factory=Start)
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def pretrain(arguments: Sequence[str]) -> int:
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

    run = plrc.pretrain(config)
    if not run.finished:
        return STOPPED
    if os.environ.get("RANK", "0") == "0":
        print(f"finished; the backbone is {run.path / 'exported' / 'backbone.safetensors'}")
        if (report := run.path / "report.html").exists():
            print(f"the report is {report}")
    return 0


def parse_config(arguments: Sequence[str]) -> Config:
    """The configuration that the options of `plrc pretrain` ask for; settings that the user wrote are pinned.

    Preset, then the TOML file, then the options. To resume without naming either, the run's own configuration is taken,
    all of it as if the user had set it.
    """
    given = written(arguments, [*Config().flat(), "config"])
    stored = Path(given.get("run.out", "")) / "config.toml"
    resumed = "run.resume" in given and not {"preset", "config"} & given.keys() and stored.is_file()
    if not (resumed or {"preset", "config", "help"} & given.keys()):
        why = "nothing to start from: "
        if "run.resume" in given and given.get("run.out"):
            why = f"there is no run in {given['run.out']} to go on with; to start one, "
        raise PlrcError(f"{why}write --preset NAME ({', '.join(PRESETS)}) or --config FILE")
    table = read_toml(stored if resumed else given["config"]) if resumed or given.get("config") else {}
    name = given.get("preset") or table.get("preset", "custom")
    known = "custom" if resumed and name not in PRESETS else name
    start = preset(known, given.get("method") or table.get("method", "plrc"))
    chosen = ("method", "objectives.contrast")
    terms = {key: value for key, value in start.flat().items() if key in chosen or key.endswith("_weight")}
    base = Config.from_dict(table, start).with_values(
        {"preset": name} | (terms if "method" in given else {}), pin=False
    )
    config = parse("pretrain", Pretrain, arguments, _help(), default=Pretrain(settings=base)).settings
    flat = config.flat()
    options = given.keys() & flat.keys() - {"preset", "method"}
    return config.with_values({name: flat[name] for name in options})


def _help() -> str:
    lines = [f"  {name:<11}{about(build).splitlines()[0]}" for name, build in PRESETS.items()]
    return "\n".join([about(pretrain), *lines])


def _launch(config: Config, arguments: Sequence[str]) -> int:
    """The same command in `run.devices` processes here, through torchrun; the first failure is the status."""
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    devices, gpus = config.run.devices, torch.cuda.device_count()
    if config.run.device != "cpu" and 0 < gpus < devices:
        raise PlrcError(f"--devices is {devices} but there are {gpus} GPUs; write --devices {gpus} or --run.device cpu")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its report of a failure that was already told
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FIRST_TO_FAIL] = str(Path(folder) / "told")
        try:
            command = ["--standalone", f"--nproc-per-node={devices}", "-m", "plrc", "pretrain", *arguments]
            torchrun.run(torchrun.parse_args(command))
        except ChildFailedError as failed:
            return failed.get_first_failure()[1].exitcode
        except SignalException:
            return STOPPED
        finally:
            del os.environ[FIRST_TO_FAIL]
    return 0
