"""Every setting of a pre-training run, as frozen dataclasses that are validated when they are built.

The section `run` defines where results are written and on which hardware; all other sections define what is computed.
The text under each field is the help text of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from plrc.config.inputs import DataConfig, RegionConfig, ViewConfig
from plrc.config.networks import ModelConfig, TeacherConfig
from plrc.config.training import ObjectiveConfig, OptimConfig, RunConfig
from plrc.settings import Settings, require, require_at_least, setting

__all__ = [
    "Config",
    "DataConfig",
    "Method",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RegionConfig",
    "RunConfig",
    "TeacherConfig",
    "ViewConfig",
]

Method = Literal["image", "pixel", "region", "points", "plrc"]  # explained in `plrc.preset`


@dataclass(frozen=True)
class Config(Settings):
    """All settings of a pre-training run.

    Build it with `plrc.preset` and `with_values`, or pass sections to the constructor; see also `save` and `load`.

    Attributes:
        preset: Name of the preset that the configuration started from, or "custom".
        method: Name of the method whose loss terms `plrc.preset` chose. The weights in `objectives` decide what is
            trained.

    Examples:
        >>> import plrc
        >>> config = plrc.preset("small_r18").with_values({"data.source": "photos/", "optim.lr": 5e-4})
        >>> config.optim.lr
        0.0005
        >>> config.save("mine.toml")
        >>> plrc.Config.load("mine.toml") == config
        True
    """

    RENAMED: ClassVar[Mapping[str, str]] = {
        "data.bad_limit": "data.max_unreadable_fraction",
        "data.percentiles": "data.rescale_percentiles",
        "views.area": "views.scale",
        "views.aspect": "views.ratio",
        "views.blur": "views.blur_prob",
        "views.flip": "views.flip_prob",
        "views.grey": "views.gray_prob",
        "views.jitter": "views.jitter_prob",
        "model.stride": "model.strides",
        "objectives.lattice": "objectives.reference_grid",
        "optim.accumulate": "optim.gradient_accumulation_steps",
        "optim.clip_norm": "optim.max_grad_norm",
        "optim.lr_batch": "optim.base_batch_size",
    }

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    """Seed of all random numbers of the run."""
    preset: str = setting("custom", hidden=True)
    method: Method = setting("plrc", hidden=True)
    adapt: bool = True
    """Adapt default values to the number of images and to the batch size. Every change is logged with its reason;
    settings that you set are not changed."""

    def __post_init__(self) -> None:
        require_at_least("seed", self.seed, 0)
        objectives = self.objectives
        total_weight = objectives.image_weight + objectives.point_weight + objectives.distill_weight
        if self.teacher.frozen:
            total_weight += objectives.frozen_weight
        require(total_weight > 0, "at least one of objectives.*_weight must be > 0; all are 0, so nothing would train")

    @property
    def distills_frozen_teacher(self) -> bool:
        """Whether affinities of a frozen teacher are distilled."""
        return self.teacher.frozen and self.objectives.frozen_weight > 0

    @property
    def needs_reference_view(self) -> bool:
        """Whether view C is needed."""
        objectives = self.objectives
        contrasts_regions = objectives.point_weight > 0 and not objectives.contrasts_pixels
        is_relational = self.distills_frozen_teacher and self.teacher.form == "relational"
        return objectives.image_weight > 0 or contrasts_regions or objectives.distill_weight > 0 or is_relational
