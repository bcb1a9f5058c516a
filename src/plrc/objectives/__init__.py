"""The objectives: image contrast, point-level region contrast, point affinity distillation (METHOD section 3).

They need tensors only, so they also serve in a training loop of your own (examples/own_loop.py). A function that ends
in `_term` returns a `Term` (sums and a count, for a loop that joins processes); the others return the mean.
"""

from plrc.objectives.affinity import Term
from plrc.objectives.distillation import affinity_distillation, affinity_distillation_term, mean_affinity
from plrc.objectives.image import image_contrast, image_term
from plrc.objectives.kernels import Backend, available_backends
from plrc.objectives.points import point_region_contrast, point_region_term, region_features
from plrc.objectives.relational import relational_distillation, relational_distillation_term
from plrc.objectives.terms import TERMS, total_loss

__all__ = [
    "TERMS",
    "Backend",
    "Term",
    "affinity_distillation",
    "affinity_distillation_term",
    "available_backends",
    "image_contrast",
    "image_term",
    "mean_affinity",
    "point_region_contrast",
    "point_region_term",
    "region_features",
    "relational_distillation",
    "relational_distillation_term",
    "total_loss",
]
