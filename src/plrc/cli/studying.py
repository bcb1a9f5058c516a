"""`plrc study`: a declared grid of runs, its table, page and plot. Layer 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from plrc.cli.options import about, parse_plain
from plrc.cli.pretraining import STOPPED
from plrc.errors import PlrcError


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
    from plrc.study import Study, content, read_lines, run_study, table

    declared = Study.load(given.file)
    lines = list(read_lines(declared, given.out).values()) if given.show else run_study(declared, given.out)
    if lines is None:
        return STOPPED
    metric = given.metric or declared.metric
    known = sorted({name for line in lines for name in line["scores"]})
    if lines and metric not in known:
        raise PlrcError(f"no run has a score {metric}; write --metric with one of {', '.join(known)}")
    print(f"{declared.title}: {len(lines)} of {len(declared.runs)} runs\n")
    print(table(lines, metric, declared.baseline))
    from plrc.visualize.study import save_study, write_study_page

    text = given.file.read_text(encoding="utf-8")
    found = content(declared.title, lines, metric, declared.baseline, len(declared.runs), text)
    print(f"\nthe page is {write_study_page(found, given.out / 'study.html')}")
    if given.plot:
        save_study(given.plot, found)
    return 0
