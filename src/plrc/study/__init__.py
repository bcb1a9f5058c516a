"""Studies: grids of runs declared in a file (`plan`), executed (`run`), and summarized in tables (`table`)."""

from plrc.study.plan import Study
from plrc.study.run import read_lines, run_study
from plrc.study.table import content, curves, slopes, summary, table

__all__ = [
    "Study",
    "content",
    "curves",
    "read_lines",
    "run_study",
    "slopes",
    "summary",
    "table",
]
