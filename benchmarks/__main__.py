"""Command line of the benchmarks: `python -m benchmarks KIND [options] [--json FILE]`."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import detectors, epoch, listing, loader, objectives, race, scaling, step, teacher
from benchmarks.report import Bench
from plrc.errors import PlrcError

KINDS: dict[str, Callable[..., Bench]] = {
    "objectives": objectives.run,
    "step": step.run,
    "teacher": teacher.run,
    "loader": loader.run,
    "epoch": epoch.run,
    "scaling": scaling.run,
    "listing": listing.run,
    "race": race.run,
    "detectors": detectors.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark, print its table, and write its JSON file; returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    kind = options.pop("kind")
    json_file = options.pop("json")
    try:
        bench = KINDS[kind](**options)
        print(bench.table())
        if json_file:
            bench.save(json_file)
    except PlrcError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure what plrc costs on this machine."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, run in KINDS.items():
        text = inspect.cleandoc(run.__doc__ or "")
        kind = kinds.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_options(kind, run)
        kind.add_argument("--json", type=Path, metavar="FILE", help="file for machine, versions, settings and figures")
    return parser


def _add_options(parser: argparse.ArgumentParser, run: Callable[..., Bench]) -> None:
    """One option for each parameter of the benchmark; its docstring explains them."""
    for name, parameter in inspect.signature(run).parameters.items():
        flag = f"--{name.replace('_', '-')}"
        default = parameter.default
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(flag, nargs="+", type=type(default[0]), default=default, help=f"default: {default}")
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"default: {default}")


if __name__ == "__main__":
    sys.exit(main())
