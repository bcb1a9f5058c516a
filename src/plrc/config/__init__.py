"""Every setting of a pre-training run, as frozen dataclasses that are validated when they are built.

The section `run` defines where results are written and on which hardware; all other sections define what is computed.
The text under each field is the help text of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from plrc.config.inputs import DataConfig, RegionConfig, ViewConfig
from plrc.config.networks import ModelConfig
from plrc.config.training import ObjectiveConfig, OptimConfig, RunConfig
from plrc.settings import Settings, require_at_least, setting

__all__ = [
    "Config",
    "DataConfig",
    "Method",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RegionConfig",
    "RunConfig",
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

    Example:
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
        "objectives.lattice": "objectives.reference_grid",
        "optim.accumulate": "optim.gradient_accumulation_steps",
        "optim.clip_norm": "optim.max_grad_norm",
        "optim.lr_batch": "optim.base_batch_size",
    }

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
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
