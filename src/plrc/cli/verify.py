"""`plrc verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.cli.options import about, positional, read_options

NOT_INSIDE = 1  # exit status


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    run: Path = positional("RUN")
    """Run folder (its newest checkpoint), checkpoint, or exported file."""
    detector: str = positional("FILE:FUNCTION")
    """A function that builds your detector as your own trainer does, weights and all, and returns it or the trainer:
    package.module:function or path/to/file.py:function."""
    out: Path | None = None
    """JSON file for the result."""


def run(arguments: Sequence[str]) -> int:
    """Build your own detector and check that all pre-trained weights are inside; exit status 1 if they are not.

    examples:
      plrc verify runs/first my_detector.py:build
      plrc verify runs/first my_detector.py:build --out inside.json
    """
    options = read_options("verify", VerifyOptions, arguments, about(run))
    from plrc.export.detector_check import verify_detector
    from plrc.files import write_json
    from plrc.model.user_code import call_function

    report = verify_detector(options.run, call_function(options.detector))
    print(report.table())
    if options.out:
        write_json(options.out, report.to_json())
    return 0 if report.complete else NOT_INSIDE
