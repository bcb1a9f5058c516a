"""Backbone, heads, student and teacher networks, key queue."""

from plrc.model.backbone import Backbone, build_backbone
from plrc.model.frozen import FrozenTeacher
from plrc.model.network import Network, check_feature_side, feature_side
from plrc.model.queue import KeyQueue
from plrc.model.teacher import make_teacher, update_teacher

__all__ = [
    "Backbone",
    "FrozenTeacher",
    "KeyQueue",
    "Network",
    "build_backbone",
    "check_feature_side",
    "feature_side",
    "make_teacher",
    "update_teacher",
]
