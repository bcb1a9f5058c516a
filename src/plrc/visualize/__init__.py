"""Layer 5: pictures of what was learned. May import layers 0 to 4; no sibling package."""

from plrc.visualize.affinity import affinity, affinity_picture, save_affinities

__all__ = ["affinity", "affinity_picture", "save_affinities"]
