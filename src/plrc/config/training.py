"""Settings of how a network is trained: objectives, optimizer, and the run itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plrc.settings import require, require_at_least, require_between, require_positive, setting


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and settings of the four loss terms (METHOD sections 3 and 6)."""

    image_weight: float = 0.7
    """Weight of image contrast. 0: the term is not computed."""
    point_weight: float = 0.3
    """Weight of point-level region contrast. 0: the term is not computed."""
    distill_weight: float = 0.3
    """Weight of point affinity distillation from the moving average. 0: the term is not computed."""
    frozen_weight: float = 1.0
    """Weight of point affinity distillation from a frozen teacher; computed with `teacher.kind` frozen only."""
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
    """Point term: negatives from all images of the micro-batch in all processes, or from the same image
    only."""
    points: int = 256
    """Points per view for the point term (paper: 16 regions x 16 points)."""
    distill_points: int = 256
    """Points per image for affinity distillation."""
    reference_grid: int = 56
    """Positions per side of the reference grid of affinity distillation. 0: twice the side of the feature grid; for a
    frozen teacher with `teacher.form` projected, the side of the teacher's own feature grid."""
    center: bool = False
    """Subtract a running mean (momentum 0.9) from the teacher's affinities."""

    def __post_init__(self) -> None:
        for name in ("image_weight", "point_weight", "distill_weight", "frozen_weight"):
            require_at_least(f"objectives.{name}", getattr(self, name), 0)
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
    layer_decay: float = 1.0
    """The learning rate of the backbone is multiplied by this once for each stage below the top one (see
    `model.trainable_stages`). 1: the same rate everywhere. Projection heads always have the full rate."""
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
    hours: float = 0.0
    """Time budget in hours; 0: none. The run ends when its steps, with their checks and checkpoints, have taken this
    time, over all of its starts; `epochs` and `steps` are then ignored. Learning rate, temperature and teacher momentum
    follow the share of the time used. Such a run cannot be repeated bit for bit, and no setting is adapted to its
    length: choose `teacher_momentum` for the number of steps that you expect."""
    clock: Literal["wall", "cpu"] = "wall"
    """What `hours` counts. wall: real time. cpu: CPU time of the main process with all its threads, without loader
    processes (`run.workers` 0 counts everything)."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up of the learning rate, followed by a cosine schedule to 0. With `hours`, at most a tenth
    of the time."""
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
    """Use the memory layout NHWC, in which convolutions are faster. On a CPU it is not used for networks that PyTorch
    cannot train in it, such as FastViT."""
    compile: bool = False
    """Compile the student and the teacher with torch.compile."""

    def __post_init__(self) -> None:
        require_positive("optim.lr", self.lr)
        require(0 < self.layer_decay <= 1, f"optim.layer_decay must be > 0 and <= 1, got {self.layer_decay}")
        require(0 <= self.momentum < 1, f"optim.momentum must be >= 0 and < 1, got {self.momentum}")
        for name in ("base_batch_size", "batch_size", "gradient_accumulation_steps"):
            require_at_least(f"optim.{name}", getattr(self, name), 1)
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"optim.gradient_accumulation_steps must divide optim.batch_size ({self.batch_size}), "
            f"got {self.gradient_accumulation_steps}",
        )
        for name in ("weight_decay", "steps", "hours", "warmup_epochs", "max_grad_norm"):
            require_at_least(f"optim.{name}", getattr(self, name), 0)
        length = self.steps > 0 or self.epochs > 0 or self.hours > 0
        require(length, "optim.epochs, optim.steps or optim.hours must be > 0")
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
    """auto, cpu, cuda, cuda:N or mps."""
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
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where the numbers are shown besides metrics.jsonl. wandb (Weights & Biases) and mlflow need these packages, and
    are set up by their own environment variables."""
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
