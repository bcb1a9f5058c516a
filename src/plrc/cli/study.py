"""`plrc study`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.cli.options import about, positional, read_options
from plrc.cli.output import STOPPED
from plrc.errors import ConfigError
from plrc.files import write_text


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    file: Path = positional("FILE")
    """Study file (TOML); those of the project are in studies/."""
    out: Path
    """Folder for the runs and lines.jsonl. To continue a stopped study, name its folder again."""
    show: bool = False
    """Only the table of the runs that are finished; run nothing."""
    plot: Path | None = None
    """Picture of the table to write as well: .png, .svg or .pdf."""
    metric: str = ""
    """Score of the table, such as auc_8. Empty: the file's."""


def run(arguments: Sequence[str]) -> int:
    """Run every combination of settings that a study file declares, and compare the results in a table and a page.

    Repeat the command to continue after a stop; several processes may share a folder.

    examples:
      plrc study studies/transfer.toml --out study/transfer
      plrc study studies/transfer.toml --out study/transfer --show --plot transfer.svg
    """
    options = read_options("study", StudyOptions, arguments, about(run))
    from plrc.study import Study, content, read_lines, run_study, table

    study = Study.load(options.file)
    lines = list(read_lines(study, options.out).values()) if options.show else run_study(study, options.out)
    if lines is None:
        return STOPPED
    metric = options.metric or study.metric
    scores: set[str] = set()
    for line in lines:
        scores |= line["scores"].keys()
    if lines and metric not in scores:
        raise ConfigError(f"no run has a score {metric}; write --metric with one of {', '.join(sorted(scores))}")
    number_of_runs = len(study.runs)
    print(f"{study.title}: {len(lines)} of {number_of_runs} runs\n")
    print(table(lines, metric, study.baseline))
    from plrc.visualize.study import save_study, study_page

    text = options.file.read_text(encoding="utf-8")
    shown = content(study.title, lines, metric, study.baseline, number_of_runs, text)
    page = options.out / "study.html"
    write_text(page, study_page(shown))
    print(f"\nthe page is {page}")
    if options.plot:
        save_study(options.plot, shown)
    return 0
