"""`plrc study`: a declared grid of runs, its table and its plot. Layer 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from plrc.cli.options import about, parse_plain
from plrc.cli.pretraining import STOPPED


@dataclass(frozen=True)
class Options:
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """Study file (TOML); those of the project are in studies/."""
    out: Path
    """Folder for the runs and lines.jsonl. To go on where a study stopped, name the folder again."""
    show: bool = False
    """Only the table of the lines that are there; run nothing."""
    plot: Path | None = None
    """Picture of the table to write as well: .png, .svg or .pdf."""
    metric: str = ""
    """Score of the table, such as auc_8. Empty: the file's."""


def study(arguments: Sequence[str]) -> int:
    """Run every combination that a study file declares, one line a run, and tell what the lines say.

    Repeated, the command goes on where it was stopped; several processes may share a folder.

    examples:
      plrc study studies/transfer.toml --out study/transfer
      plrc study studies/transfer.toml --out study/transfer --show --plot transfer.svg
    """
    given = parse_plain("study", Options, arguments, about(study))
    from plrc.study import Study, done, run_study, table

    declared = Study.load(given.file)
    lines = list(done(declared, given.out).values()) if given.show else run_study(declared, given.out)
    if lines is None:
        return STOPPED
    metric = given.metric or declared.metric
    print(f"{declared.title}: {len(lines)} of {len(declared.cells())} runs\n")
    print(table(lines, metric, declared.baseline))
    if given.plot:
        from plrc.study import numeric_axes, summary
        from plrc.visualize.study import save_study

        rows = summary(lines, metric, declared.baseline)
        save_study(given.plot, rows, metric, numeric_axes(rows))
    return 0
