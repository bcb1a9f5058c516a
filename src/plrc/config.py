"""Every setting of a pre-training run, as frozen dataclasses that are validated when they are built.

The section `run` defines where results are written and on which hardware; all other sections define what is computed.
The text under each field is the help text of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from plrc.settings import Settings, require, require_at_least, require_between, require_positive, require_range, setting

Method = Literal["image", "pixel", "region", "points", "plrc"]  # explained in `plrc.preset`


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on."""

    source: str = setting("", alias="data")
    """Images to train on: a folder (with subfolders), a glob, a .txt list, a COCO .json or a Pascal VOC folder; or tar
    shards: a folder written by plrc shard, a pattern such as x-{000..099}.tar, or a URL (s3://, gs://, https://) of
    either."""
    layout: Literal["auto", "folder", "glob", "list", "coco", "voc", "shards"] = "auto"
    """Layout of `source`. auto: detect it."""
    split: str = ""
    """VOC only: name of the list in ImageSets/Main, such as trainval. Empty: all images."""
    exclude: str = ""
    """Images to leave out of training: a text file with one path or file name per line, a COCO .json, or a folder or
    glob of images."""
    held_out: int = 64
    """Images held out of training for the health checks; a tenth of all images if that is fewer. 0: none."""
    rescale_percentiles: tuple[float, float] = (0.5, 99.5)
    """16-bit images: the gray values at these two percentiles of an image become 0 and 255."""
    max_megapixels: float = 200.0
    """Images with more megapixels than this count as unreadable; protects against decompression bombs."""
    max_unreadable_fraction: float = 0.1
    """Stop the run when a larger fraction of the images, or of their id maps, cannot be read."""

    def __post_init__(self) -> None:
        require_at_least("data.held_out", self.held_out, 0)
        require_range("data.rescale_percentiles", self.rescale_percentiles, 0, 100)
        require_positive("data.max_megapixels", self.max_megapixels)
        require_between("data.max_unreadable_fraction", self.max_unreadable_fraction, 0, 1)


@dataclass(frozen=True)
class ViewConfig:
    """Crops and color augmentation of views A (student), B (teacher, overlaps with A) and C (teacher, independent)."""

    size: int = 224
    """Width and height of a view, in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest area of a crop, as a fraction of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a crop (width / height)."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip."""
    overlap: float = 0.5
    """Smallest overlap of views A and B: area of their intersection / area of the larger one."""
    overlap_tries: int = 100
    """Number of crops to try for view B. If none of them overlaps enough with A, B takes the crop of A."""
    jitter_prob: float = 0.8
    """Probability of color jitter."""
    brightness: float = 0.4
    """Largest relative change of brightness."""
    contrast: float = 0.4
    """Largest relative change of contrast."""
    saturation: float = 0.4
    """Largest relative change of saturation."""
    hue: float = 0.1
    """Largest shift of the hue, as a fraction of the color circle."""
    gray_prob: float = 0.2
    """Probability of a grayscale view."""
    blur_prob: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""

    def __post_init__(self) -> None:
        require_at_least("views.size", self.size, 16)
        require_range("views.scale", self.scale, 1e-4, 1)
        require_range("views.ratio", self.ratio, 0.05, 20)
        require_range("views.blur_sigma", self.blur_sigma, 0.01, 50)
        for name in ("overlap", "flip_prob", "jitter_prob", "gray_prob", "blur_prob"):
            require_between(f"views.{name}", getattr(self, name), 0, 1)
        for name in ("brightness", "contrast", "saturation"):
            require_between(f"views.{name}", getattr(self, name), 0, 1)
        require_between("views.hue", self.hue, 0, 0.5)
        require_at_least("views.overlap_tries", self.overlap_tries, 1)


@dataclass(frozen=True)
class RegionConfig:
    """The regions of an image: points in the same region are positives of each other."""

    source: Literal["grid", "voronoi", "boxes", "slic", "felzenszwalb", "maps", "coco", "shards"] = "grid"
    """grid: equal cells. voronoi, boxes: random cells or boxes. slic, felzenszwalb: superpixels (need scikit-image).
    maps: one id map per image (PNG or npz) in the folder `maps`. coco: the masks in the COCO file `maps`. shards: the
    id maps that plrc shard stored with the images."""
    grid: int = 4
    """grid: cells per side (paper: 4, which gives 16 regions)."""
    count: int = 16
    """voronoi, boxes, slic: number of regions per image (slic: approximately)."""
    scale: float = 200.0
    """felzenszwalb: a larger scale gives fewer and larger segments."""
    maps: str = ""
    """For the source maps: folder of id maps with the same relative names as the images (a/b.jpg -> a/b.png); in a PNG,
    0 means unlabelled. For the source coco: the JSON file with the masks."""
    map_size: int = 64
    """Cells per side of an id map; maps from files are resized to it. The source grid uses it only with noise."""
    merge: float = 0.0
    """Noise: probability that a region is merged into a neighbour."""
    split: float = 0.0
    """Noise: probability that a region is split into two halves."""
    jitter: float = 0.0
    """Noise: standard deviation of the displacement of boundaries, as a fraction of the image's sides."""
    reassign: float = 0.0
    """Noise: fraction of the cells of an id map that get the id of a random region."""

    def __post_init__(self) -> None:
        require_at_least("regions.grid", self.grid, 1)
        require_at_least("regions.map_size", self.map_size, 4)
        require_between("regions.count", self.count, 1, self.map_size**2)
        require_positive("regions.scale", self.scale)
        for name in ("merge", "split", "jitter", "reassign"):
            require_between(f"regions.{name}", getattr(self, name), 0, 1)
        if self.source == "maps":
            require(self.maps != "", "regions.source maps needs regions.maps: the folder with the id maps")
        elif self.source == "coco":
            require(self.maps != "", "regions.source coco needs regions.maps: the COCO file with the masks")
        else:
            require(self.maps == "", f"regions.maps needs regions.source maps or coco, got {self.source}")

    @property
    def noisy(self) -> bool:
        """Whether any kind of noise is on."""
        return max(self.merge, self.split, self.jitter, self.reassign) > 0


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and projection heads."""

    backbone: str = "resnet50"
    """A torchvision ResNet (resnet18, resnet50, ...), timm:NAME (needs timm), or your own function that returns a
    network: package.module:function or path/to/file.py:function (docs/HANDOVER.md)."""
    stride: int = 32
    """The feature level to train, as its stride if `layer4_stride` is 2. Later layers are not trained."""
    layer4_stride: Literal[1, 2] = 2
    """torchvision ResNets: stride of layer4 during pre-training. 1 doubles the resolution of the feature grid; the
    weight tensors keep their shapes."""
    init: str = ""
    """Initial weights of the backbone: a plrc run, an export, or a state-dict file. Empty: random."""
    contrast_hidden: int = 2048
    """Hidden width of the head for the image and point terms."""
    contrast_dim: int = 128
    """Output width of the head for the image and point terms."""
    distill_hidden: int = 2048
    """Hidden width of the head for affinity distillation."""
    distill_dim: int = 256
    """Output width of the head for affinity distillation."""
    bn_groups: int = 8
    """Each process splits its batch into this many groups with separate BatchNorm statistics. The teacher gets the
    images in other groups than the student, so that batch statistics do not leak which images belong together. With
    several processes, 1 is enough: each process is a group."""
    sync_bn: bool = False
    """Several processes on GPUs: share BatchNorm statistics over the processes. If bn_groups > 1, each group shares
    them with the groups of the same number in the other processes."""

    def __post_init__(self) -> None:
        for name in ("stride", "contrast_hidden", "contrast_dim", "distill_hidden", "distill_dim", "bn_groups"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        if ":" in self.backbone:  # timm:NAME or a function of the user
            require(self.layer4_stride == 2, "model.layer4_stride 1 is for torchvision ResNets only; write 2")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and settings of the three loss terms (METHOD section 3)."""

    image_weight: float = 0.7
    """Weight of image contrast. 0: the term is not computed."""
    point_weight: float = 0.3
    """Weight of point-level region contrast. 0: the term is not computed."""
    distill_weight: float = 0.3
    """Weight of point affinity distillation. 0: the term is not computed."""
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
    """Fraction of the run over which the teacher's temperature rises linearly."""
    queue: int = 65536
    """Length of the queue of past image keys, the negatives of image contrast."""
    contrast: Literal["points", "region", "pixel"] = "points"
    """What the point term contrasts. points: points of shared regions. region: shared regions, each the mean of its
    points. pixel: positions of the feature grid, positive where the views show the same place. The last two are
    baselines (METHOD section 5)."""
    negatives: Literal["batch", "image"] = "batch"
    """Point term: negatives from all images of the global batch, or from the same image only."""
    points: int = 256
    """Points per view for the point term (paper: 16 regions x 16 points)."""
    distill_points: int = 256
    """Points per image for affinity distillation."""
    reference_grid: int = 56
    """Positions per side of the reference grid of affinity distillation. 0: twice the side of the feature grid."""
    center: bool = False
    """Subtract a running mean (momentum 0.9) from the teacher's affinities."""

    def __post_init__(self) -> None:
        for name in ("image_weight", "point_weight", "distill_weight"):
            require_at_least(f"objectives.{name}", getattr(self, name), 0)
        total_weight = self.image_weight + self.point_weight + self.distill_weight
        require(total_weight > 0, "at least one of objectives.*_weight must be > 0; all are 0, so nothing would train")
        for name in ("image", "point", "student", "teacher"):
            require_positive(f"objectives.{name}_temperature", getattr(self, f"{name}_temperature"))
        require_positive("objectives.teacher_temperature_start", self.teacher_temperature_start)
        require_between("objectives.temperature_warmup", self.temperature_warmup, 0, 1)
        for name in ("queue", "points", "distill_points"):
            require_at_least(f"objectives.{name}", getattr(self, name), 1)
        require_at_least("objectives.reference_grid", self.reference_grid, 0)

    @property
    def contrasts_pixels(self) -> bool:
        """Whether the point term contrasts positions of the feature grids of views A and B."""
        return self.point_weight > 0 and self.contrast == "pixel"

    @property
    def needs_match_view(self) -> bool:
        """Whether view B is needed."""
        return self.distill_weight > 0 or self.contrasts_pixels


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, schedule and numerics."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer."""
    lr: float = 0.03
    """Peak learning rate."""
    base_batch_size: int = 256
    """Batch size that the default `lr` belongs to. For another batch size, an `lr` that you did not set is scaled (SGD:
    linearly, AdamW: by the square root)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay. With AdamW not applied to biases and normalization layers; with SGD applied to all, as in the
    paper."""
    batch_size: int = 256
    """Images per optimizer step, over all processes and micro-batches."""
    gradient_accumulation_steps: int = 1
    """Number of micro-batches per optimizer step, to save memory. Negatives come from the same micro-batch only."""
    epochs: float = 100.0
    """Passes over the training images. Ignored if `steps` is set."""
    steps: int = 0
    """Optimizer steps. 0: use `epochs`."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up of the learning rate, followed by a cosine schedule to 0."""
    max_grad_norm: float = 0.0
    """Gradients with a larger norm are scaled down to it. 0: no clipping."""
    teacher_momentum: float = 0.999
    """Momentum of the exponential moving average that makes the teacher from the student."""
    teacher_schedule: Literal["constant", "cosine"] = "constant"
    """constant, or cosine: the teacher's momentum rises to 1 over the run."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that support it, float16 with loss scaling on older GPUs, float32 on a CPU; chosen at the
    start of the run and stored."""
    channels_last: bool = True
    """Use the memory layout NHWC, in which convolutions are faster."""
    compile: bool = False
    """Compile the student and the teacher with torch.compile."""

    def __post_init__(self) -> None:
        require_positive("optim.lr", self.lr)
        require(0 <= self.momentum < 1, f"optim.momentum must be >= 0 and < 1, got {self.momentum}")
        for name in ("base_batch_size", "batch_size", "gradient_accumulation_steps"):
            require_at_least(f"optim.{name}", getattr(self, name), 1)
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"optim.gradient_accumulation_steps must divide optim.batch_size ({self.batch_size}), "
            f"got {self.gradient_accumulation_steps}",
        )
        for name in ("weight_decay", "steps", "warmup_epochs", "max_grad_norm"):
            require_at_least(f"optim.{name}", getattr(self, name), 0)
        require(self.steps > 0 or self.epochs > 0, "optim.epochs or optim.steps must be > 0")
        require_between("optim.teacher_momentum", self.teacher_momentum, 0, 1)


@dataclass(frozen=True)
class RunConfig:
    """Where results are written, and on which hardware. Only two things here change a result: the number of processes
    (each is a BatchNorm group of its own) and the device (it decides what `optim.precision` auto means)."""

    out: str = setting("", alias="out")
    """Run folder. It must be empty or absent, unless you resume a run."""
    resume: bool = setting(False, alias="resume")
    """Resume from the newest checkpoint in the run folder. Starts a new run if the folder holds none."""
    allow_changes: bool = False
    """Resume even if the configuration differs from the stored one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    devices: int = setting(1, alias="devices")
    """Number of processes to start on this machine, one per device."""
    workers: int = -1
    """Data loader processes per device. -1: chosen from the number of CPU cores."""
    threads: int = 0
    """CPU threads of the training process. 0: PyTorch's choice."""
    cache: str = ""
    """Folder for decoded images (3 bytes per pixel); from the second epoch on they are read instead of the image
    files. Empty: no cache."""
    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl and of the log."""
    health_every_steps: int = 200
    """Steps between two health checks on the held-out images."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints. The last step is always saved."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep, the newest ones. 0: all."""
    stop_on_collapse: bool = True
    """Stop the run when two consecutive health checks report collapsed features."""
    report_every_minutes: float = 10.0
    """Minimum time between two updates of report.html in the run folder, in minutes. Updates happen at checkpoints and
    at the end. 0: no report."""
    stall_seconds: int = 600
    """Several processes: if a process does not answer for this many seconds, the run ends with an error."""

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "health_every_steps", "checkpoint_every_steps", "devices"):
            require_at_least(f"run.{name}", getattr(self, name), 1)
        for name in ("threads", "keep_checkpoints", "report_every_minutes"):
            require_at_least(f"run.{name}", getattr(self, name), 0)
        require_at_least("run.workers", self.workers, -1)
        require_at_least("run.stall_seconds", self.stall_seconds, 5)


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
