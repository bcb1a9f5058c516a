"""The command line: thin verbs over the library. Layer 6.

A mistake that the user can mend ends in one sentence on standard error and exit status 2; a run that was asked to stop
(SIGTERM, Ctrl-C) saves and ends with status 75: the same command with --resume goes on. PyTorch is imported by the verb
that needs it, after its options are known to be right.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import tyro

from plrc.config import Config, DataConfig, PlrcError
from plrc.presets import PRESETS, preset
from plrc.settings import read_toml

MISTAKE, STOPPED, INTERRUPTED = 2, 75, 130
ALIASES = {"data": "data.source", "out": "run.out", "resume": "run.resume", "devices": "run.devices"}
FIRST_TO_FAIL = "PLRC_FIRST_TO_FAIL"  # names the file by which processes agree on who tells the user

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """What the settings start from."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """One of the presets above."""
    method: Annotated[str, tyro.conf.arg(metavar="{image,points,plrc}")] = ""
    """Which terms are trained, with their weights: image contrast alone (MoCo v2), image and points, all three."""
    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """TOML file laid over the preset. Options given here are laid over both."""


@dataclass(frozen=True)
class Pretrain:
    start: Annotated[Start, tyro.conf.arg(name="")] = field(default_factory=Start)
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class Scan:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Folder, glob, .txt list, COCO .json, or Pascal VOC folder."""
    layout: Literal["auto", "folder", "glob", "list", "coco", "voc"] = "auto"
    """How to read the source; auto looks at it."""
    split: str = ""
    """VOC only: the list in ImageSets/Main."""
    exclude: str = ""
    """List file, folder or glob of images to leave out."""
    workers: int = 0
    """Parallel readers. 0: one a core."""


@dataclass(frozen=True)
class Export:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder (its newest checkpoint) or checkpoint file."""
    to: Literal["torchvision", "timm"]
    """The library that goes on with the weights."""
    out: Path | None = None
    """File to write, ending in .safetensors or .pt. None: exported/backbone.safetensors in the run folder."""


@dataclass(frozen=True)
class Demo:
    out: Path = Path("plrc-demo")
    """Folder to write into: empty, absent, or a demo that was stopped."""
    steps: int = 200
    """Optimiser steps."""


@dataclass(frozen=True)
class Doctor:
    pass


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
    config, explicit = parse_config(arguments)
    if config.run.devices > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(config, arguments)
    import plrc

    run = plrc.pretrain(config, explicit)
    if not run.finished:
        return STOPPED
    if os.environ.get("RANK", "0") == "0":
        print(f"finished; the backbone is {run.path / 'exported' / 'backbone.safetensors'}")
    return 0


def scan(arguments: Sequence[str]) -> int:
    """Read every image and say what can be used, what cannot, and why.

    examples:
      plrc scan photos/
      plrc scan voc/ --split trainval --exclude voc/ImageSets/Main/test.txt
    """
    given = _parse("scan", Scan, arguments)
    if given.workers < 0:
        raise PlrcError(f"--workers is {given.workers}; write 0 (one a core) or more")
    config = DataConfig(source=given.source, layout=given.layout, split=given.split, exclude=given.exclude)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from plrc.data.scan import scan

    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=None)
        report = scan(config, given.workers, lambda done, total: bar.update(task, completed=done, total=total))
    print(report.table())
    return 0


def export(arguments: Sequence[str]) -> int:
    """Hand the pre-trained backbone over, and prove that it arrived.

    examples:
      plrc export runs/first --to torchvision
      plrc export runs/first --to torchvision --out backbone.pt
    """
    given = _parse("export", Export, arguments)
    from plrc.export import export_backbone

    print(export_backbone(given.run, given.to, given.out).line())
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Render scenes, pre-train on them, and show what was learned: minutes on a CPU.

    examples:
      plrc demo
      plrc demo --out my-demo
    """
    given = _parse("demo", Demo, arguments)
    if given.steps < 1:
        raise PlrcError(f"--steps is {given.steps}; write at least 1")
    from plrc.demo import run_demo

    run_demo(given.out, given.steps)
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """Say what is installed, which device there is, and whether all of it works.

    examples:
      plrc doctor
    """
    _parse("doctor", Doctor, arguments)
    from plrc.doctor import report

    return report()


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "doctor": doctor,
    "scan": scan,
    "pretrain": pretrain,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command `plrc`; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that wait by spinning stall each other wherever a core is shared, by a loader process for instance: one
    # such process made a step on two cores twenty times slower. Must be set before PyTorch starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            verbs = [f"  {name:<10}{_help(name).splitlines()[0]}" for name in VERBS]
            print("usage: plrc VERB ...\n\nSelf-supervised pre-training for object detectors.\n", *verbs, sep="\n")
            print("\nEach verb explains itself: plrc VERB --help")
            return 0
        if arguments[0] == "--version":
            print(f"plrc {version('plrc')}")
            return 0
        if arguments[0] not in VERBS:
            raise PlrcError(f"there is no verb {arguments[0]!r}; did you mean plrc {_nearest(arguments[0], VERBS)}?")
        return VERBS[arguments[0]](arguments[1:])
    except SystemExit as end:  # --help of a verb
        return int(end.code or 0)
    except PlrcError as error:
        return _fail(MISTAKE, str(error))
    except OSError as error:
        about = f"cannot use {error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(MISTAKE, about)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")


def parse_config(arguments: Sequence[str]) -> tuple[Config, frozenset[str]]:
    """(configuration, dotted names that the user set) from the options of `plrc pretrain`.

    Preset, then the TOML file, then the options. To resume without naming either, the run's own configuration is taken,
    all of it as if the user had set it.
    """
    given = _written(arguments, [*Config().flat(), "config"])
    stored = Path(given.get("run.out", "")) / "config.toml"
    resumed = "run.resume" in given and not {"preset", "config"} & given.keys() and stored.is_file()
    if not (resumed or {"preset", "config", "help"} & given.keys()):
        raise PlrcError(f"nothing to start from: write --preset NAME ({', '.join(PRESETS)}) or --config FILE")
    table = read_toml(stored if resumed else given["config"]) if resumed or given.get("config") else {}
    name = given.get("preset") or table.get("preset", "custom")
    known = "custom" if resumed and name not in PRESETS else name
    start = preset(known, given.get("method") or table.get("method", "plrc"))
    terms = {key: value for key, value in start.flat().items() if key == "method" or key.endswith("_weight")}
    base = Config.from_dict(table, start).with_values({"preset": name} | (terms if "method" in given else {}))
    config = _parse("pretrain", Pretrain, arguments, default=Pretrain(settings=base)).settings
    in_table = {f"{section}.{key}" for section, values in table.items() if isinstance(values, dict) for key in values}
    return config, frozenset((given.keys() | table.keys() | in_table) & config.flat().keys() - {"preset", "method"})


def _written(arguments: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """{name: what stands after it} of the options among the arguments; an unknown one raises with the nearest name."""
    names, found = [*names, "help"], {}
    for token, after in zip(arguments, [*arguments[1:], ""], strict=False):
        written, equals, value = ("--help" if token == "-h" else token).partition("=")
        if not written.startswith("--"):
            continue
        plain = written[2:].replace("-", "_")
        section, dot, key = plain.rpartition(".")
        positive = f"{section}{dot}{key.removeprefix('no_')}"
        candidates = plain, ALIASES.get(plain), positive, ALIASES.get(positive)
        known = [name for name in candidates if name in names]
        if not known:
            near = _nearest(plain, [*names, *(a for a, name in ALIASES.items() if name in names)])
            raise PlrcError(f"unknown option {written}; did you mean --{near.replace('_', '-')}?")
        found[known[0]] = value if equals else after
    return found


def _nearest(word: str, names: Iterable[str]) -> str:
    """The name that is most like the word, in whole and after its last dot."""

    def likeness(name: str) -> float:
        pairs = (word, name), (word.rpartition(".")[2], name.rpartition(".")[2])
        return sum(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)

    return max(names, key=likeness)


def _parse(verb: str, options: type[T], arguments: Sequence[str], **given: Any) -> T:
    """The options of a verb, typed. tyro's boxed complaint becomes one sentence."""
    if options is not Pretrain:
        hints = get_type_hints(options, include_extras=True).items()
        _written(
            arguments, [name for name, hint in hints if get_origin(hint) is not Annotated]
        )  # Annotated: positional
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed: T = tyro.cli(options, args=list(arguments), prog=f"plrc {verb}", description=_help(verb), **given)
            return parsed
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box.getvalue()).splitlines()[1:]]
        body = takewhile(_is_text, dropwhile(lambda line: not _is_text(line), lines))
        raise PlrcError(f"{' '.join(body).rstrip('.')}; see: plrc {verb} --help") from None


def _is_text(line: str) -> bool:
    return bool(line.strip("─-"))


def _help(verb: str) -> str:
    """What a verb does and how it is called."""
    text = inspect.cleandoc(VERBS[verb].__doc__ or "")
    if verb == "pretrain":
        text += "".join(
            f"\n  {name:<11}{inspect.cleandoc(p.__doc__ or '').splitlines()[0]}" for name, p in PRESETS.items()
        )
    return text


def _fail(status: int, sentence: str) -> int:
    """Tell the user; of the processes of one `--devices` run only the first to fail does."""
    if FIRST_TO_FAIL in os.environ:
        try:
            Path(os.environ[FIRST_TO_FAIL]).touch(exist_ok=False)
        except FileExistsError:
            return status
    print(f"plrc: {sentence}", file=sys.stderr)
    return status


def _launch(config: Config, arguments: Sequence[str]) -> int:
    """The same command in `run.devices` processes here, through torchrun; the first failure is the status."""
    import logging

    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    devices, gpus = config.run.devices, torch.cuda.device_count()
    if config.run.device != "cpu" and 0 < gpus < devices:
        raise PlrcError(f"--devices is {devices} but there are {gpus} GPUs; write --devices {gpus} or --run.device cpu")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
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
