"""`plrc export RUN --check-in FILE:FUNCTION`: options -> a detector of the user's own, looked into. Layer 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from plrc.cli.options import parse_plain

NOT_INSIDE = 1  # exit status


@dataclass(frozen=True)
class CheckIn:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder (its newest checkpoint), checkpoint, or exported file."""
    check_in: str
    """A function that builds your detector as your own trainer does, weights and all, and returns it or the trainer:
    package.module:function or path/to/file.py:function."""
    out: Path | None = None
    """JSON file for what was found."""


def asked(arguments: Sequence[str]) -> bool:
    return any(token.partition("=")[0].replace("_", "-") == "--check-in" for token in arguments)


def check_in(arguments: Sequence[str], about: str) -> int:
    """0 if all weights are inside, else 1."""
    given = parse_plain("export", CheckIn, arguments, about)
    from plrc.export.detector_check import verify_detector
    from plrc.files import write_json
    from plrc.model.user_code import call_function

    report = verify_detector(given.run, call_function(given.check_in))
    print(report.table())
    if given.out:
        write_json(given.out, report.to_json())
    return 0 if report.complete else NOT_INSIDE
