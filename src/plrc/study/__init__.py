"""Declared grids of runs: which there are (`plan`), how each becomes one line (`run`), what the lines say (`table`)."""

from plrc.study.plan import Cell, Study
from plrc.study.run import done, run_study
from plrc.study.table import content, curves, numeric_axes, slopes, summary, table

__all__ = ["Cell", "Study", "content", "curves", "done", "numeric_axes", "run_study", "slopes", "summary", "table"]
