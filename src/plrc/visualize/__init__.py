"""Figures and pages of what was learned: affinities, regions, samples, and the reports of runs and comparisons."""

from plrc.visualize.affinity import affinity_figure, affinity_map, affinity_rows
from plrc.visualize.figures import save_figure

__all__ = ["affinity_figure", "affinity_map", "affinity_rows", "save_figure"]
