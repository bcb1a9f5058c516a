"""Comparisons of initial weights, and the grid of runs that comparisons and studies share."""
