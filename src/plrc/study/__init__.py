"""Studies: grids of runs declared in a file (`plan`), executed (`run`), and summarized in tables (`table`)."""

from plrc.study.plan import Study, StudyRun
from plrc.study.run import read_lines, run_study
from plrc.study.table import content, curves, numeric_axes, slopes, summary, table

__all__ = [
    "Study",
    "StudyRun",
    "content",
    "curves",
    "numeric_axes",
    "read_lines",
    "run_study",
    "slopes",
    "summary",
    "table",
]
