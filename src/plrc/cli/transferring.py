"""`plrc transfer` and `plrc compare`: was it worth it? Layer 6."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plrc.cli.options import about, parse, parse_plain, subcommand, written
from plrc.cli.pretraining import STOPPED
from plrc.errors import PlrcError
from plrc.settings import read_toml
from plrc.transfer.protocols import (
    PROTOCOLS,
    DetectorConfig,
    InputConfig,
    LabelledConfig,
    OptimConfig,
    Task,
    TransferConfig,
    TransferRunConfig,
    protocol,
)

SMALL: dict[str, str] = {
    "detection": "small_detection",
    "instances": "small_instances",
    "semantic": "small_semantic",
}  # the protocol of a task where none is named
KINDS = (*SMALL, "probe")


@dataclass(frozen=True)
class Start:
    """What the settings start from."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """One of the protocols above. Empty: the small one of the task."""
    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """TOML file laid over the protocol. Options given here are laid over both."""


@dataclass(frozen=True)
class Transfer:
    start: Annotated[Start, tyro.conf.arg(name="")] = field(default_factory=Start)
    settings: Annotated[TransferConfig, tyro.conf.arg(name="")] = field(default_factory=TransferConfig)


@dataclass(frozen=True)
class Grid:
    """What is compared."""

    init: Annotated[tuple[str, ...], tyro.conf.arg(metavar="random|torchvision|RUN|FILE|NAME=RUN,RUN,... ...")] = ()
    """Initial weights; random is always among them. NAME=RUN,RUN: seed s takes the run number s of them."""
    fractions: tuple[float, ...] = ()
    """Shares of the training images whose labels are used. Empty: all of them."""
    shots: tuple[int, ...] = ()
    """Images of each class whose labels are used, instead of shares."""
    seeds: int = 5
    """Runs of each kind; their intervals come from these."""
    lrs: tuple[float, ...] = ()
    """Learning rates to choose from, on validation images. Empty: half, once and twice that of the protocol."""
    processes: int = 1
    """Runs at a time."""


INSTEAD = {
    "data.fraction": "takes --fractions",
    "data.shots": "takes --shots",
    "optim.lr": "takes --lrs",
    "run.resume": "goes on by itself when its command is repeated",
}  # settings of a single run that a comparison sets itself: the three classes below take them out of its help


@dataclass(frozen=True)
class ComparedLabels(LabelledConfig):
    """Which labelled images."""

    fraction: tyro.conf.Suppress[float] = 1.0
    shots: tyro.conf.Suppress[int] = 0


@dataclass(frozen=True)
class ComparedTuning(OptimConfig):
    """Optimisation: SGD with momentum, linear warm-up, steps down by ten."""

    lr: tyro.conf.Suppress[float] = 0.02


@dataclass(frozen=True)
class ComparedRuns(TransferRunConfig):
    """How it runs; never changes a number."""

    out: Annotated[str, tyro.conf.arg(aliases=("--out",))] = ""
    """Folder of the comparison: absent or empty, or one to go on with."""
    resume: tyro.conf.Suppress[bool] = False


@dataclass(frozen=True)
class Comparing:
    task: Task
    """What the detector does."""
    start: Annotated[Start, tyro.conf.arg(name="")] = field(default_factory=Start)
    grid: Annotated[Grid, tyro.conf.arg(name="")] = field(default_factory=Grid)
    data: ComparedLabels = field(default_factory=ComparedLabels)
    input: InputConfig = field(default_factory=InputConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    optim: ComparedTuning = field(default_factory=ComparedTuning)
    run: ComparedRuns = field(default_factory=ComparedRuns)
    partial: bool = False
    """Take files that lack some of the backbone's tensors."""
    evaluations: int = 4
    """How many times, evenly spaced, the validation images are scored: the curve against iterations."""


@dataclass(frozen=True)
class Probe:
    data: str
    """Folder with labels: masks, or boxes where there are none."""
    init: str = "random"
    """Initial weights: random, torchvision, a run folder or a file."""
    out: Path | None = None
    """JSON file for the result."""
    backbone: str = ""
    """torchvision ResNet. Empty: the one that the weights are of, else resnet50."""
    layout: Literal["auto", "voc", "coco", "folders", "cityscapes"] = "auto"
    """How to read the folder; auto looks at it."""
    train: str = ""
    """Split that the probe is fitted on. Empty: chosen by name."""
    test: str = ""
    """Split that it is scored on. Empty: chosen by name (test, else val)."""
    fraction: float = 1.0
    """Share of the training images whose labels are used."""
    size: int = 224
    """Longer side of the images in pixels."""
    images: int = 1000
    """Most images that are read, of each split."""
    seed: int = 0
    """Subset, random weights, pixels that the probe is fitted on."""


def transfer(arguments: Sequence[str]) -> int:
    """Fine-tune a detector from given weights and score it, or fit a linear probe to frozen features.

    usage: plrc transfer detection|instances|semantic|probe --data DIR --init random|torchvision|RUN|FILE --out DIR

    examples:
      plrc transfer probe --data camvid/ --init runs/first
      plrc transfer detection --data voc/ --init runs/first --out transfer/first
      plrc transfer semantic --data camvid/ --init random --optim.lr 0.05 --out random
      plrc transfer instances --preset coco_fpn_1x --schedule 2x --data coco/ --out coco-2x
      plrc transfer detection --preset voc_c4_24k --data VOC/ --init its.pth --out its

    protocols:
    """
    kind = subcommand("transfer", "task", arguments, KINDS, lambda: _help(transfer))
    if kind is None:
        return 0
    if kind == "probe":
        return _probe(arguments[1:])
    config = parse_transfer(kind, arguments[1:])
    config.check_named()
    from plrc.transfer.finetune import transfer as tune

    result = tune(config)
    if result is None:
        return STOPPED
    print(f"the result is {Path(config.run.out) / 'result.json'}")
    return 0


def compare(arguments: Sequence[str]) -> int:
    """Fine-tune from several initial weights, fairly, and say which to use.

    Same detector, schedule and data order for each, the same few learning rates, chosen on validation images. Repeat
    the command to go on after a stop; nothing is run twice.

    examples:
      plrc compare --task detection --data voc/ --init runs/first --seeds 5 --out compare
      plrc compare --task detection --data voc/ --init theirs.pth --shots 1 10 --out few
      plrc compare --task semantic --data camvid/ --init mine=runs/s0,runs/s1 --out camvid

    protocols:
    """
    names = [n for n in TransferConfig().flat() if n not in ("init", "seed", "task", "preset")]
    names += [f.name for f in dataclasses.fields(Grid)]
    given = written(arguments, ["task", "preset", "config", *names])
    task = given.get("task", "detection")
    base = _base(task, given)
    start = Comparing(
        task=base.task, data=ComparedLabels(**vars(base.data)), input=base.input, model=base.model,
        optim=ComparedTuning(**vars(base.optim)), run=ComparedRuns(**vars(base.run) | {"keep_model": False}),
        partial=base.partial, evaluations=max(base.evaluations, 4),
    )  # fmt: skip
    if "task" not in given and "help" not in given:
        raise PlrcError(f"no task named: write --task {'|'.join(SMALL)}")
    if single := [name for name in INSTEAD if name in given]:
        raise PlrcError(f"--{single[0]} is for a single run; a comparison {INSTEAD[single[0]]}")
    options = parse("compare", Comparing, arguments, _help(compare), default=start)
    grid = options.grid
    sections = {name: vars(getattr(options, name)) for name in ("data", "input", "model", "optim", "run")}
    plain = {"partial": options.partial, "evaluations": options.evaluations}
    config = TransferConfig.from_dict(sections | plain, base)
    config.check_named()
    if not grid.init:
        raise PlrcError("no initial weights named: write --init RUN or --init FILE; random weights are compared anyway")
    if grid.fractions and grid.shots:
        raise PlrcError("--fractions and --shots are both given; write one of them")
    lrs = grid.lrs or tuple(float(f"{config.optim.lr * factor:.6g}") for factor in (0.5, 1.0, 2.0))
    from plrc.compare.inits import build_comparison
    from plrc.compare.run import run_comparison
    from plrc.compare.summary import table

    comparison = build_comparison(
        config, grid.init, grid.fractions or (1.0,), grid.shots, grid.seeds, lrs, grid.processes
    )
    found = run_comparison(comparison)
    if found is None:
        return STOPPED
    print(table(found))
    from plrc.visualize.comparison import write_comparison_page

    print(f"the page is {write_comparison_page(found, Path(config.run.out) / 'comparison.html')}")
    return 0


def parse_transfer(task: str, arguments: Sequence[str]) -> TransferConfig:
    """The settings of `plrc transfer TASK`: protocol, then the TOML file, then the options."""
    names = [name for name in TransferConfig().flat() if name not in ("task", "preset")]
    base = _base(task, written(arguments, ["preset", "config", *names]))
    return parse(f"transfer {task}", Transfer, arguments, _help(transfer), default=Transfer(settings=base)).settings


def _base(task: str, given: dict[str, str]) -> TransferConfig:
    table = read_toml(given["config"]) if given.get("config") else {}
    name = given.get("preset") or table.get("preset") or SMALL.get(task, "")
    return TransferConfig.from_dict(table | {"task": task, "preset": name}, protocol(name, task))


def _probe(arguments: Sequence[str]) -> int:
    """Fit a linear classifier to frozen features: which class is each pixel? Minutes on a CPU.

    Random weights are probed beside it. mIoU and accuracy are in percent; the level of stride 32 is layer4, read at
    stride 16. Classes come from masks, or from boxes where there are none. Grouping AUC: how well the affinity of two
    points tells whether they lie on one object, with pairs matched for distance (0.5 is chance).

    examples:
      plrc transfer probe --data camvid/ --init runs/first
      plrc transfer probe --data voc/ --init random --backbone resnet18
    """
    given = parse_plain("transfer probe", Probe, arguments, about(_probe))
    data = LabelledConfig(
        source=given.data, layout=given.layout, train=given.train, test=given.test, fraction=given.fraction
    )
    from plrc.transfer.dense import dense_probe

    inits = [given.init] if given.init == "random" else [given.init, "random"]
    result, *others = dense_probe(data, inits, given.backbone, given.size, given.images, given.seed)
    print(result.table())
    for other in others:
        print(other.table(notes=False))
    if given.out:
        result.save(given.out)
        print(f"the result is {given.out}")
    return 0


def _help(verb: Callable[..., object]) -> str:
    return "\n".join([about(verb), *(f"  {name:<22}{about(b).splitlines()[0]}" for name, b in PROTOCOLS.items())])
