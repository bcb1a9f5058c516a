"""The command line: thin verbs over the library. Layer 6.

A mistake that the user can mend (PlrcError) ends in one sentence on standard error and exit status 2; a run that was
asked to stop (SIGTERM, Ctrl-C) saves and ends with status 75: the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro

from plrc.config import Config, PlrcError, read_toml
from plrc.presets import PRESETS, preset

STOPPED = 75
ALIASES = {"data": "data.source", "out": "run.out", "resume": "run.resume", "devices": "run.devices"}


def pretrain(arguments: Sequence[str]) -> int:
    """Pre-train a backbone on unlabelled images.

    plrc pretrain --preset small_r18 --data photos/ --out runs/first
    plrc pretrain --preset small_r18 --data photos/ --out runs/first --resume
    plrc pretrain --preset small_r18 --method image --data voc/ --data.split trainval --out runs/moco
    plrc pretrain --preset paper_r50 --data 'train/**/*.jpg' --out runs/r50 --optim.lr 0.06 --devices 8
    plrc pretrain --config my.toml --out runs/mine

    --preset {presets}: a full configuration to start from
    --method image|points|plrc: which terms are trained (image is MoCo v2; points is without distillation)
    --config FILE: a TOML file laid over the preset; options given here are laid over both
    """
    config, explicit = parse_config(arguments)
    if config.run.devices > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(config.run.devices, arguments)
    import plrc

    run = plrc.pretrain(config, explicit)
    if not run.finished:
        return STOPPED
    print(f"finished: {run.path}; next: plrc export {run.path} --to torchvision")
    return 0


def parse_config(arguments: Sequence[str]) -> tuple[Config, frozenset[str]]:
    """(configuration, dotted names that the user set) from the options of `plrc pretrain`."""
    first = argparse.ArgumentParser(prog="plrc pretrain", add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--method")
    first.add_argument("--config")
    chosen, rest = first.parse_known_args(list(arguments))
    described = (pretrain.__doc__ or "").replace("{presets}", "|".join(PRESETS))
    names = list(Config().flat())
    given = frozenset(_option_names(rest, names))
    stored = _stored_config(rest) if not (chosen.preset or chosen.config) else None
    if stored:
        base, explicit = stored, frozenset(names)
    elif chosen.preset or chosen.config or {"-h", "--help"} & set(rest):
        table = read_toml(chosen.config) if chosen.config else {}
        name = chosen.preset or table.get("preset", "custom")
        method = chosen.method or table.get("method", "plrc")
        base = preset(name, method) if name != "custom" else Config(method=method)
        base = Config.from_dict(table, base).with_values({"method": method, "preset": name})
        flat = {f"{k}.{i}" for k, v in table.items() if isinstance(v, dict) for i in v} | set(table)
        explicit = given | frozenset(flat)
    else:
        raise PlrcError(f"name a preset: --preset {'|'.join(PRESETS)} (or --config FILE, or --resume a run in --out)")
    return tyro.cli(Config, args=rest, default=base, prog="plrc pretrain", description=described), explicit


def _option_names(arguments: Sequence[str], names: list[str]) -> list[str]:
    """Dotted names of the options among the arguments; an unknown one raises with the nearest name."""
    found = []
    for token in arguments:
        if not token.startswith("--") or token == "--help":
            continue
        written = token[2:].partition("=")[0].replace("-", "_")
        name = ALIASES.get(written, written)
        section, _, key = name.rpartition(".")
        plain = f"{section}.{key.removeprefix('no_')}".lstrip(".")
        if name not in names and plain not in names:
            near = difflib.get_close_matches(name, [*names, *ALIASES, "preset", "method", "config"], n=1, cutoff=0.0)
            raise PlrcError(f"unknown option {token.partition('=')[0]}; did you mean --{near[0].replace('_', '-')}?")
        found.append(name if name in names else plain)
    return found


def _stored_config(arguments: Sequence[str]) -> Config | None:
    """The configuration of the run folder in --out when --resume is given without a preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", "--run.out", dest="out")
    parser.add_argument("--resume", "--run.resume", dest="resume", action="store_true")
    known, _ = parser.parse_known_args(list(arguments))
    path = Path(known.out or "") / "config.toml"
    return Config.load(path) if known.resume and known.out and path.exists() else None


def _launch(devices: int, arguments: Sequence[str]) -> int:
    """The same command in `devices` processes of this machine, through torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return subprocess.call([*command, "-m", "plrc", "pretrain", *arguments])


def scan(arguments: Sequence[str]) -> int:
    """Read every image of a source and report what is usable, what is not and why; writes the cached index.

    plrc scan photos/
    plrc scan voc/ --split trainval --exclude voc/ImageSets/Main/test.txt
    """

    def run(source: tyro.conf.Positional[str], split: str = "", exclude: str = "", workers: int = 0) -> int:
        """Args:
        source: folder, glob, .txt list, COCO .json, or Pascal VOC folder.
        split: VOC only: the list in ImageSets/Main.
        exclude: list file, folder or glob of images to leave out.
        workers: parallel readers; 0: one a core.
        """
        from rich.progress import track_scan

        return 0

    return tyro.cli(run, args=list(arguments), prog="plrc scan", description=scan.__doc__)


def export(arguments: Sequence[str]) -> int:
    """Hand the pre-trained backbone over, and prove that it arrived.

    plrc export runs/first --to torchvision
    plrc export runs/first --to torchvision --out backbone.pt
    """

    def run(path: tyro.conf.Positional[Path], to: Literal["torchvision"], out: Path | None = None) -> int:
        """Args:
        path: run folder or checkpoint.
        to: whose loader the file is for.
        out: file to write (.safetensors or .pt); default: exported/backbone.safetensors in the run folder.
        """
        from plrc.export import export_backbone

        print(export_backbone(path, to, out))
        return 0

    return tyro.cli(run, args=list(arguments), prog="plrc export", description=export.__doc__)


def demo(arguments: Sequence[str]) -> int:
    """Render scenes, pre-train a small network on them, and show what it learned. About five minutes on two cores.

    plrc demo
    plrc demo --out my-demo
    """

    def run(out: Path = Path("plrc-demo"), steps: int = 0) -> int:
        """Args:
        out: folder to write into; must be empty or absent.
        steps: optimiser steps; 0: the demo's own number.
        """
        from plrc.demo import run_demo

        return run_demo(out, steps)

    return tyro.cli(run, args=list(arguments), prog="plrc demo", description=demo.__doc__)


def doctor(arguments: Sequence[str]) -> int:
    """Say what is installed, which device there is, and whether each kernel and decoder works.

    plrc doctor
    """

    def run() -> int:
        from plrc.doctor import report

        return report()

    return tyro.cli(run, args=list(arguments), prog="plrc doctor", description=doctor.__doc__)


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
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print("plrc: self-supervised pre-training for object detectors\n")
            for name, verb in VERBS.items():
                print(f"  plrc {name:<10}{(verb.__doc__ or '').splitlines()[0]}")
            print("\nEach verb explains itself: plrc VERB --help")
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(f"plrc {version('plrc')}")
            return 0
        if arguments[0] not in VERBS:
            near = difflib.get_close_matches(arguments[0], VERBS, n=1, cutoff=0.0)[0]
            raise PlrcError(f"there is no verb {arguments[0]!r}; did you mean plrc {near}?")
        return VERBS[arguments[0]](arguments[1:])
    except PlrcError as error:
        print(f"plrc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("plrc: interrupted", file=sys.stderr)
        return 130
