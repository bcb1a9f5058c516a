"""`plrc compare`: fine-tune from several initial weights and recommend one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plrc.cli.options import CommandParser
from plrc.cli.output import STOPPED
from plrc.cli.transfer import StartOptions, starting_point, with_protocols
from plrc.errors import ConfigError
from plrc.settings import setting
from plrc.transfer.protocols import Task, TransferConfig

INSTEAD = {
    "data.fraction": "--data.fraction is for a single run; a comparison takes --fractions",
    "data.shots": "--data.shots is for a single run; a comparison takes --shots",
    "optim.lr": "--optim.lr is for a single run; a comparison takes --lrs",
    "run.resume": "--resume is for a single run; a comparison continues when its command is repeated",
}


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    task: Task
    """What the detector does."""
    init: tuple[str, ...] = setting((), metavar="INIT")
    """Initial weights: random (always compared), pretrained, a run folder, a file, the folder of a detector of
    transformers, or NAME=RUN,RUN,... (seed s takes run number s of the list)."""
    fractions: tuple[float, ...] = ()
    """Shares of the training images whose labels are used. Empty: all of them."""
    shots: tuple[int, ...] = ()
    """Images of each class whose labels are used, instead of shares."""
    seeds: int = 5
    """Runs per kind, with different seeds; intervals are computed from them."""
    lrs: tuple[float, ...] = ()
    """Learning rates to choose from, on validation images. Empty: half, once and twice that of the protocol."""
    processes: int = 1
    """Runs at a time."""


GRID_NAMES = frozenset(GridOptions.__dataclass_fields__)


def run(arguments: Sequence[str]) -> int:
    """Fine-tune from several initial weights, fairly, and recommend the best.

    Same detector, schedule and data order for each, the same few learning rates, chosen on validation images. Repeat
    the command to continue after a stop; nothing is run twice.

    examples:
      plrc compare --task detection --data voc/ --init runs/first --seeds 5 --out compare
      plrc compare --task detection --data voc/ --init theirs.pth --shots 1 10 --out few
      plrc compare --task semantic --data camvid/ --init mine=runs/s0,runs/s1 --out camvid

    protocols:
    """
    grid, config = parse_comparison(arguments)
    from plrc.compare.weights import compare_weights

    fractions = grid.fractions or (1.0,)
    result = compare_weights(config, grid.init, fractions, grid.shots, grid.seeds, grid.lrs, grid.processes)
    if not result.finished:
        return STOPPED
    print(result)
    print(f"the page is {result.path / 'comparison.html'}")
    return 0


def parse_comparison(arguments: Sequence[str]) -> tuple[GridOptions, TransferConfig]:
    """Return what is compared, and the settings that all runs share, from the options of `plrc compare`."""
    parser = CommandParser("compare", with_protocols(run), refused=INSTEAD)
    parser.add_fields(StartOptions)
    parser.add_fields(GridOptions)
    parser.add_fields(TransferConfig, exclude=("init", "seed"))
    values = parser.parse(arguments, compute_defaults=lambda given: _shared_settings(given).flat() | {"init": ()})
    grid = GridOptions(**{name: value for name, value in values.items() if name in GRID_NAMES})
    chosen = values.keys() - GRID_NAMES - {"preset", "config"}
    config = _shared_settings(values).with_values({name: values[name] for name in chosen})
    config.check_named()
    if not grid.init:
        raise ConfigError(
            "no initial weights named: write --init RUN or --init FILE; random weights are always compared"
        )
    if grid.fractions and grid.shots:
        raise ConfigError("--fractions and --shots are both given; write only one")
    return grid, config


def _shared_settings(values: dict[str, object]) -> TransferConfig:
    """The settings below the options."""
    return starting_point(str(values.get("task", "detection")), values).for_comparison()
