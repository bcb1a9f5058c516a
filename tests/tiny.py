"""Settings of the smallest run that tests train, over those of the preset debug_cpu."""

from __future__ import annotations

TINY: dict[str, object] = {
    "run.workers": 0,
    "run.device": "cpu",
    "views.size": 32,
    "optim.batch_size": 8,
    "model.bn_groups": 2,
    "model.contrast_hidden": 16,
    "model.distill_hidden": 16,
    "objectives.points": 16,
    "objectives.distill_points": 16,
    "objectives.queue": 24,
}
