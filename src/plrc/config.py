"""Every setting of a pre-training run: frozen dataclasses, validated on construction, round-trip to TOML.

Layer 0: imports settings. Sections say *what* is computed; the `run` section alone says *how* (where to write,
how many workers) and never changes a number. The text under each field is the help that the command line prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from plrc.errors import ConfigError, PlrcError
from plrc.settings import Settings, require, require_range

__all__ = [
    "Config", "ConfigError", "DataConfig", "Method", "ModelConfig", "ObjectiveConfig", "OptimConfig", "PlrcError",
    "RegionConfig", "RunConfig", "ViewConfig",
]  # fmt: skip

Method = Literal["image", "pixel", "region", "points", "plrc"]


@dataclass(frozen=True)
class DataConfig:
    """Which images are trained on."""

    source: Annotated[str, tyro.conf.arg(aliases=("--data",))] = ""
    """Folder (nested), glob, .txt list, COCO .json, or Pascal VOC folder with the images to train on; or tar shards: a
    folder from plrc shard, a pattern such as x-{000..099}.tar, or an address (s3://, gs://, https://) of either."""
    layout: Literal["auto", "folder", "glob", "list", "coco", "voc", "shards"] = "auto"
    """How to read `source`; auto looks at it."""
    split: str = ""
    """VOC only: the list in ImageSets/Main to use (such as trainval). Empty: all images."""
    exclude: str = ""
    """Images that must not be trained on: a list file (one path or file name a line), a COCO .json, or a folder or glob
    of images."""
    held_out: int = 64
    """Images kept out of training for the label-free health report (at most a tenth of the images)."""
    rescale_percentiles: tuple[float, float] = (0.5, 99.5)
    """16-bit images: grey values at these percentiles of the image become 0 and 255."""
    max_megapixels: float = 200.0
    """Larger images are refused as unreadable (protects against decompression bombs)."""
    max_unreadable_fraction: float = 0.1
    """The run stops when more than this share of the images, or of their region maps, cannot be read."""

    def __post_init__(self) -> None:
        require(self.held_out >= 0, f"data.held_out is {self.held_out}; write 0 (none) or more")
        require_range("data.rescale_percentiles", self.rescale_percentiles, 0, 100)
        require(self.max_megapixels > 0, "data.max_megapixels must be above 0")
        require(
            0 <= self.max_unreadable_fraction <= 1,
            f"data.max_unreadable_fraction is {self.max_unreadable_fraction}; write a share between 0 and 1",
        )


@dataclass(frozen=True)
class ViewConfig:
    """Crops and colors of the three views (METHOD section 2; He et al. MoCo v2 settings)."""

    size: int = 224
    """Side of a view in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image that a crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a crop."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip."""
    overlap: float = 0.5
    """View B must have area(A and B) / max(area A, area B) of at least this."""
    overlap_tries: int = 100
    """Draws of B before it falls back to A's crop."""
    jitter_prob: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    """Largest change of brightness, as a share."""
    contrast: float = 0.4
    """Largest change of contrast, as a share."""
    saturation: float = 0.4
    """Largest change of saturation, as a share."""
    hue: float = 0.1
    """Largest hue shift, as a share of the colour circle."""
    gray_prob: float = 0.2
    """Probability of a grey view."""
    blur_prob: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""

    def __post_init__(self) -> None:
        require(self.size >= 16, f"views.size is {self.size}; write at least 16 pixels")
        require_range("views.scale", self.scale, 1e-4, 1)
        require_range("views.ratio", self.ratio, 0.05, 20)
        require_range("views.blur_sigma", self.blur_sigma, 0.01, 50)
        shares = (
            "flip_prob",
            "overlap",
            "jitter_prob",
            "gray_prob",
            "blur_prob",
            "brightness",
            "contrast",
            "saturation",
        )
        for name in shares:
            value = getattr(self, name)
            require(0 <= value <= 1, f"views.{name} is {value}; write a number between 0 and 1")
        require(0 <= self.hue <= 0.5, f"views.hue is {self.hue}; write a number between 0 and 0.5")
        require(self.overlap_tries >= 1, "views.overlap_tries must be at least 1")


@dataclass(frozen=True)
class RegionConfig:
    """Which points of an image belong together."""

    source: Literal["grid", "voronoi", "boxes", "slic", "felzenszwalb", "maps", "coco", "shards"] = "grid"
    """grid: n x n equal cells. voronoi, boxes: random ones. slic, felzenszwalb: superpixels (extra regions). maps: one
    id map per image (PNG or npz) from the folder `maps`. coco: the masks of the COCO file `maps`.
    shards: the id maps that plrc shard laid beside the images."""
    grid: int = 4
    """Cells per side of the regular grid (paper: 4, that is 16 regions)."""
    count: int = 16
    """voronoi, boxes, slic: regions of an image (slic: about as many)."""
    scale: float = 200.0
    """felzenszwalb: larger gives fewer and larger segments."""
    maps: str = ""
    """Folder with id maps, laid out and named as the images (a/b.jpg -> a/b.png); value 0 is unlabelled in PNG. coco:
    the JSON file."""
    map_size: int = 64
    """Cells per side of an id map (files are reduced to it, nearest). The plain grid needs none."""
    merge: float = 0.0
    """Noise: probability that a region is merged into a neighbour."""
    split: float = 0.0
    """Noise: probability that a region is cut in halves."""
    jitter: float = 0.0
    """Noise: how far boundaries are displaced (standard deviation, a share of the image's sides)."""
    reassign: float = 0.0
    """Noise: share of the cells of the map that get the id of a random region."""

    def __post_init__(self) -> None:
        require(self.grid >= 1, f"regions.grid is {self.grid}; write at least 1")
        require(self.map_size >= 4, f"regions.map_size is {self.map_size}; write at least 4")
        most = self.map_size**2
        require(1 <= self.count <= most, f"regions.count is {self.count}; write 1 to {most} (map_size x map_size)")
        require(self.scale > 0, f"regions.scale is {self.scale}; write a number above 0")
        for name in ("merge", "split", "jitter", "reassign"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"regions.{name} is {value}; write a number between 0 and 1")
        named = self.source not in ("maps", "coco") or self.maps != ""
        wanted = "COCO file with the masks" if self.source == "coco" else "folder with the id maps"
        require(named, f"regions.source is {self.source} but regions.maps is empty; name the {wanted}")
        used = self.source in ("maps", "coco") or not self.maps
        require(
            used, f"regions.maps is {self.maps} but regions.source is {self.source}; write regions.source maps or coco"
        )

    @property
    def noisy(self) -> bool:
        """Whether any noise is asked for."""
        return max(self.merge, self.split, self.jitter, self.reassign) > 0


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and heads."""

    backbone: str = "resnet50"
    """A torchvision ResNet (resnet18, resnet50, ...), timm:NAME (extra timm), or a function of your own that returns a
    network: package.module:function or path/to/file.py:function (docs/HANDOVER.md)."""
    stride: int = 32
    """The feature level that is trained, by its stride in the unchanged backbone. Layers after it stay as they are."""
    layer4_stride: Literal[1, 2] = 2
    """torchvision ResNets: stride of layer4 while pre-training. 1 doubles the lattice, with the same weight tensors."""
    init: str = ""
    """Start from these weights (a plrc run or export, or a state-dict file). Empty: random."""
    contrast_hidden: int = 2048
    """Width inside the head of the image and point terms."""
    contrast_dim: int = 128
    """Width of the features that the image and point terms compare."""
    distill_hidden: int = 2048
    """Width inside the head of affinity distillation."""
    distill_dim: int = 256
    """Width of the features that affinity distillation compares."""
    bn_groups: int = 8
    """One process: BatchNorm statistics are taken over this many groups of the batch, so that a sample cannot be
    recognised by the company it keeps (a leak). Several processes: the batch is shuffled over them instead."""
    sync_bn: bool = False
    """Several processes, on GPUs: share BatchNorm statistics over them (group by group, with bn_groups above 1)."""

    def __post_init__(self) -> None:
        for name in ("stride", "contrast_hidden", "contrast_dim", "distill_hidden", "distill_dim", "bn_groups"):
            require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; write at least 1")
        fits = ":" not in self.backbone or self.layer4_stride == 2
        require(
            fits, "model.layer4_stride 1 is for torchvision ResNets; write 2, and a smaller model.stride if you like"
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and temperatures of the three terms (METHOD section 3)."""

    image_weight: float = 0.7
    """Weight of image contrast. 0: not computed."""
    point_weight: float = 0.3
    """Weight of point-level region contrast. 0: not computed."""
    distill_weight: float = 0.3
    """Weight of point affinity distillation. 0: not computed."""
    image_temperature: float = 0.2
    """Temperature of image contrast."""
    point_temperature: float = 0.2
    """Temperature of point-level region contrast."""
    student_temperature: float = 0.1
    """Temperature of the student's affinities."""
    teacher_temperature: float = 0.07
    """Temperature of the teacher's affinities after the warm-up."""
    teacher_temperature_start: float = 0.04
    """Temperature of the teacher's affinities at the start."""
    temperature_warmup: float = 0.3
    """Share of the run over which the teacher's temperature rises linearly."""
    queue: int = 65536
    """Past image keys that serve as negatives of image contrast."""
    contrast: Literal["points", "region", "pixel"] = "points"
    """What the point term contrasts: points of shared regions; those regions as a whole (the mean of their points); or
    lattice positions of overlapping views, whose positives lie at the same place (baselines, METHOD section 5)."""
    negatives: Literal["batch", "image"] = "batch"
    """Point contrast: negatives from all images of the global batch, or from the same image only."""
    points: int = 256
    """Points per view of point-level region contrast (paper: 16 regions x 16 points)."""
    distill_points: int = 256
    """Points per image of affinity distillation."""
    reference_grid: int = 56
    """Positions per side of the reference lattice of affinity distillation. 0: twice the feature lattice."""
    center: bool = False
    """Centre the teacher's affinities by a running mean (momentum 0.9)."""

    def __post_init__(self) -> None:
        weights = (self.image_weight, self.point_weight, self.distill_weight)
        require(min(weights) >= 0, "objectives.*_weight must not be negative")
        require(sum(weights) > 0, "all three objectives.*_weight are 0: there is nothing to train; set one above 0")
        for name in ("image", "point", "student", "teacher"):
            value = getattr(self, f"{name}_temperature")
            require(value > 0, f"objectives.{name}_temperature is {value}; write a number above 0")
        require(self.teacher_temperature_start > 0, "objectives.teacher_temperature_start must be above 0")
        require(0 <= self.temperature_warmup <= 1, "objectives.temperature_warmup is a share between 0 and 1")
        for name in ("queue", "points", "distill_points"):
            require(getattr(self, name) >= 1, f"objectives.{name} is {getattr(self, name)}; write at least 1")
        require(
            self.reference_grid >= 0,
            f"objectives.reference_grid is {self.reference_grid}; write 0 (twice the feature lattice) or more",
        )

    @property
    def pixels(self) -> bool:
        """Whether lattice positions of A and B are contrasted."""
        return self.point_weight > 0 and self.contrast == "pixel"

    @property
    def match_view(self) -> bool:
        """Whether view B is needed."""
        return self.distill_weight > 0 or self.pixels


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and numerics."""

    name: Literal["sgd", "adamw"] = "sgd"
    """The optimiser."""
    lr: float = 0.03
    """Peak learning rate."""
    base_batch_size: int = 256
    """The batch size that `lr` is meant for. Another batch size scales an `lr` that you did not set (SGD: linearly)."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """Weight decay. AdamW leaves biases and norms out; SGD, as in the paper, does not."""
    batch_size: int = 256
    """Images per optimiser step, over all processes and accumulated parts."""
    gradient_accumulation_steps: int = 1
    """Parts that a batch is computed in, to save memory. Negatives then come from one part only."""
    epochs: float = 100.0
    """Passes over the images. Ignored where `steps` is set."""
    steps: int = 0
    """Optimiser steps. 0: use `epochs`."""
    warmup_epochs: float = 0.0
    """Linear warm-up of the learning rate before the cosine to 0."""
    max_grad_norm: float = 0.0
    """Largest gradient norm. 0: no clipping."""
    teacher_momentum: float = 0.999
    """The teacher moves by 1 - this towards the student after each step."""
    teacher_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: the teacher's momentum rises to 1 over the run."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU that has it, float16 with loss scaling on an older one, float32 on a CPU; settled at the
    start and stored."""
    channels_last: bool = True
    """Memory layout NHWC, the faster one for convolutions."""
    compile: bool = False
    """Compile student and teacher with torch.compile."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr is {self.lr}; write a number above 0")
        require(self.base_batch_size >= 1, "optim.base_batch_size must be at least 1")
        require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; write a number in [0, 1)")
        require(self.weight_decay >= 0, "optim.weight_decay must not be negative")
        require(self.batch_size >= 1, f"optim.batch_size is {self.batch_size}; write at least 1")
        parts, batch = self.gradient_accumulation_steps, self.batch_size
        divides = parts >= 1 and batch % parts == 0
        require(divides, f"optim.gradient_accumulation_steps is {parts}; it must divide optim.batch_size ({batch})")
        require(self.steps >= 0, f"optim.steps is {self.steps}; write 0 (use epochs) or more")
        require(self.steps > 0 or self.epochs > 0, "optim.epochs is 0 and optim.steps is 0; set one of them")
        require(
            self.warmup_epochs >= 0 and self.max_grad_norm >= 0,
            "optim.warmup_epochs and max_grad_norm must be 0 or more",
        )
        require(0 <= self.teacher_momentum <= 1, "optim.teacher_momentum must be a share in [0, 1]")


@dataclass(frozen=True)
class RunConfig:
    """Where and how the run is carried out. Nothing here changes a number, but that several processes are as many
    BatchNorm groups and that the device decides what `optim.precision` auto means."""

    out: Annotated[str, tyro.conf.arg(aliases=("--out",))] = ""
    """Run folder. Must be empty or absent unless resuming."""
    resume: Annotated[bool, tyro.conf.arg(aliases=("--resume",))] = False
    """Go on from the newest checkpoint in the run folder; starts the run where there is none."""
    allow_changes: bool = False
    """Resume although the configuration differs from the stored one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    devices: Annotated[int, tyro.conf.arg(aliases=("--devices",))] = 1
    """Processes to start on this machine, one a device."""
    workers: int = -1
    """Loader processes per device. -1: chosen from the number of cores."""
    threads: int = 0
    """CPU threads of the training process. 0: PyTorch's choice."""
    cache: str = ""
    """Folder for decoded images (3 bytes a pixel), read instead of the files from the second epoch on. Empty: none."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl and of the output."""
    health_every_steps: int = 200
    """Steps between health checks on the held-out images."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; one more at the end."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept. 0: all."""
    stop_on_collapse: bool = True
    """Stop the run when two health checks in a row find collapsed features."""
    report_every_minutes: float = 10.0
    """Minutes between two writings of report.html in the run folder, each at a checkpoint; one more at the end.
    0: none."""
    stall_seconds: int = 600
    """Several processes: how long they wait for one that does not answer before they name it and end."""

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "health_every_steps", "checkpoint_every_steps", "devices"):
            require(getattr(self, name) >= 1, f"run.{name} is {getattr(self, name)}; write at least 1")
        require(self.stall_seconds >= 5, f"run.stall_seconds is {self.stall_seconds}; write at least 5")
        require(self.workers >= -1, f"run.workers is {self.workers}; write -1 (chosen), 0 (none) or more")
        require(self.keep_checkpoints >= 0, "run.keep_checkpoints must be 0 (all) or more")
        require(self.threads >= 0, "run.threads must be 0 (PyTorch's choice) or more")
        require(self.report_every_minutes >= 0, "run.report_every_minutes must be 0 (none) or more")


@dataclass(frozen=True)
class Config(Settings):
    """A whole pre-training run."""

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
    """Every random draw of the run follows from this number."""
    preset: tyro.conf.Suppress[str] = "custom"
    method: tyro.conf.Suppress[Method] = "plrc"
    adapt: bool = True
    """Fit defaults that do not suit little data or a small batch; every change is printed with its reason."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed is {self.seed}; write 0 or more")
