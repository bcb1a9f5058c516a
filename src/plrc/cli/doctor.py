"""`plrc doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plrc.cli.options import about, read_options
from plrc.cli.output import console

FAULTS_FOUND = 1  # exit status


@dataclass(frozen=True)
class DoctorOptions:
    pass


def run(arguments: Sequence[str]) -> int:
    """Show what is installed, which device there is, and whether all of it works.

    examples:
      plrc doctor
    """
    read_options("doctor", DoctorOptions, arguments, about(run))
    from rich.markup import escape
    from rich.table import Table

    from plrc.doctor import examine

    diagnosis = examine()
    table = Table("what", "state", title=diagnosis.platform)
    for what, state in diagnosis.states.items():
        table.add_row(what, escape(state))
    console().print(table)
    for fault in diagnosis.faults:
        print(f"fault: {fault}")
    if diagnosis.faults:
        print(f"faults: {len(diagnosis.faults)}")
        return FAULTS_FOUND
    print("all that plrc needs works here")
    return 0
