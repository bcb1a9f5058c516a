"""The settings of a transfer run, and the protocols: named configurations from the literature and for small data.

Normalization and trainable layers are settings, so that no run inherits them by accident from a library's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from plrc.errors import ConfigError
from plrc.pixels import PixelStatistics, given_statistics
from plrc.settings import (
    Settings,
    require,
    require_at_least,
    require_between,
    require_positive,
    require_range,
    setting,
)
from plrc.text import did_you_mean

Task = Literal["detection", "instances", "semantic"]
Layout = Literal["auto", "voc", "coco", "folders", "cityscapes"]


@dataclass(frozen=True)
class LabelledConfig:
    """The labelled images."""

    source: str = setting("", alias="data")
    """Folder in the layout of Pascal VOC, COCO (annotations/*.json) or Cityscapes, or with image and mask folders."""
    layout: Layout = "auto"
    """Layout of `source`. auto: recognized by its content."""
    train: str = ""
    """Split to train on (train, trainval07+12, ...); val+test joins two splits. Empty: chosen by name."""
    val: str = ""
    """Split for the choice of learning rates and for curves. Empty: chosen by name, else a fifth of the training
    images. none: no such split, all training images are trained on."""
    test: str = ""
    """Split for the result. Empty: chosen by name (test, else val)."""
    fraction: float = 1.0
    """Share of the training images whose labels are used. A smaller share is part of a larger one."""
    shots: int = 0
    """Images of each class whose labels are used, instead of a share. 0: `fraction` decides."""
    merge_classes: bool = False
    """Train and score a single class, "object": for too few labels of many classes."""
    difficult: bool = False
    """Also train on the objects that VOC marks as difficult. They are never scored."""
    mean: tuple[float, ...] = ()
    """Mean of red, green and blue, on the scale 0 to 1, that pixels are normalized with. Empty: what the initial
    weights were trained with."""
    std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue, on the scale 0 to 1; set it together with `mean`."""

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"data.fraction must be > 0 and <= 1, got {self.fraction}")
        require_at_least("data.shots", self.shots, 0)
        require(self.fraction == 1 or not self.shots, "data.fraction and data.shots are both set; set only one")
        given_statistics(self.mean, self.std)

    @property
    def pixels(self) -> PixelStatistics | None:
        """The statistics that `mean` and `std` give; None: those of the initial weights."""
        return given_statistics(self.mean, self.std)


@dataclass(frozen=True)
class InputConfig:
    """How an image enters the network."""

    train_size: tuple[float, float] = (480.0, 800.0)
    """Detection: range from which the shorter side in pixels is drawn. Semantic: range of the scale."""
    test_size: float = 800.0
    """Detection: shorter side at test. Semantic: scale at test."""
    max_size: int = 1333
    """Detection: largest length of the longer side in pixels."""
    crop: tuple[float, float] = (0.0, 0.0)
    """Semantic: height and width of the random crop, padded if the image is smaller. 0 0: no crop."""
    flip_prob: float = 0.5
    """Probability that a training image is mirrored."""

    def __post_init__(self) -> None:
        require_range("input.train_size", self.train_size, 0.05, 10_000)
        require_positive("input.test_size", self.test_size)
        require_between("input.flip_prob", self.flip_prob, 0, 1)


@dataclass(frozen=True)
class DetectorConfig:
    """The network that is fine-tuned."""

    backbone: str = ""
    """torchvision ResNet (resnet50, ...). Empty: that of the initial weights, else resnet50."""
    neck: Literal["fpn", "c4"] = "fpn"
    """Detection: fpn (feature pyramid) or c4 (regions read from stride 16, layer4 as head: the paper's VOC)."""
    norm: Literal["bn", "frozen", "sync"] = "bn"
    """BatchNorm of the backbone: bn (trained, statistics of the batch), frozen (never changed), sync (over GPUs)."""
    head_norm: Literal["none", "bn", "sync", "gn"] = "none"
    """Normalization outside of the backbone: pyramid, box and mask heads, after layer4 of c4, FCN head."""
    trainable_layers: int = 5
    """How many of stem, layer1 ... layer4 are trained, counted from the top. 5: all, 3: as for ImageNet weights."""
    width: int = 256
    """Channels of the pyramid, or of the FCN head."""
    min_stride: Literal[4, 8] = 4
    """fpn: smallest stride of the pyramid; 8 saves most of the time on a CPU."""
    hidden: int = 1024
    """fpn: width of the box head."""
    rois_per_image: int = 512
    """Regions per image that the head is trained on."""
    anchors: float = 8.0
    """fpn: side of an anchor in strides of its level (8: 32 px at stride 4). c4: 32 to 512 px always."""
    layer4_dilation: Literal[1, 2] = 2
    """Semantic: 2 for weights trained with layer4 at stride 32 (most), 1 for stride 16 (plrc's small_r18)."""
    dilation: int = 6
    """Semantic: dilation of the FCN head's two 3 x 3 convolutions."""

    def __post_init__(self) -> None:
        require_between("model.trainable_layers", self.trainable_layers, 1, 5)
        for name in ("width", "hidden", "rois_per_image", "dilation"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        require_positive("model.anchors", self.anchors)


@dataclass(frozen=True)
class OptimConfig:
    """Optimization: SGD with momentum, linear warm-up, learning rate divided by ten at milestones."""

    lr: float = 0.02
    """Peak learning rate."""
    batch_size: int = 16
    """Images per optimizer step."""
    steps: int = 90_000
    """Optimizer steps, before `schedule` multiplies them."""
    schedule: Literal["1x", "2x", "3x"] = setting("1x", alias="schedule")
    """Multiple of `steps`."""
    lr_milestones: tuple[float, float] = (2 / 3, 8 / 9)
    """Shares of the steps after which the learning rate is divided by ten."""
    warmup_steps: int = 1000
    """Steps over which the learning rate grows to its value; at most a tenth of all steps are used."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """Weight decay of all other parameters."""
    norm_decay: float = 0.0
    """Weight decay of normalization layers' scale and shift (Detectron2: 0)."""
    max_grad_norm: float = 0.0
    """Largest norm of the gradient. 0: not clipped."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass (semantic only)."""

    def __post_init__(self) -> None:
        require_positive("optim.lr", self.lr)
        for name in ("batch_size", "steps"):
            require_at_least(f"optim.{name}", getattr(self, name), 1)
        require_range("optim.lr_milestones", self.lr_milestones, 0, 1)
        for name in ("warmup_steps", "momentum", "weight_decay", "norm_decay", "max_grad_norm"):
            require_at_least(f"optim.{name}", getattr(self, name), 0)

    @property
    def total_steps(self) -> int:
        """Total number of optimizer steps."""
        return self.steps * int(self.schedule[0])


@dataclass(frozen=True)
class TransferRunConfig:
    """How a run is executed; no setting changes the results."""

    out: str = setting("", alias="out")
    """Folder for the results. Must be empty or absent, unless a stopped command is continued."""
    resume: bool = setting(False, alias="resume")
    """Continue the run in that folder, or start it if there is none."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 0
    """Loader processes."""
    threads: int = 0
    """Threads of PyTorch. 0: PyTorch decides."""
    log_every_steps: int = 20
    """Steps between lines of progress."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints."""
    keep_model: bool = True
    """Keep the fine-tuned weights: OUT/model.safetensors."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            require_at_least(f"run.{name}", getattr(self, name), 0)
        for name in ("log_every_steps", "checkpoint_every_steps"):
            require_at_least(f"run.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class TransferConfig(Settings):
    """The configuration of a transfer run: labels, a network with initial weights, its training and its scores."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "input.flip": "input.flip_prob",
        "model.finest": "model.min_stride",
        "model.rois": "model.rois_per_image",
        "optim.clip_norm": "optim.max_grad_norm",
        "optim.drops": "optim.lr_milestones",
        "optim.iterations": "optim.steps",
        "optim.warmup": "optim.warmup_steps",
        "run.checkpoint_every": "run.checkpoint_every_steps",
        "run.log_every": "run.log_every_steps",
    }

    init: str = setting("random", metavar="random|pretrained|RUN|FILE")
    """Initial weights of the backbone: random, pretrained (those of its library), a run folder, or a file."""
    partial: bool = False
    """Accept a file that lacks some of the backbone's tensors."""
    data: LabelledConfig = field(default_factory=LabelledConfig)
    input: InputConfig = field(default_factory=InputConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: TransferRunConfig = field(default_factory=TransferRunConfig)
    evaluations: int = 1
    """How many times, evenly spaced, the validation images are scored: the curve over steps."""
    seed: int = 0
    """Seed of the labelled subset, the order of the images and the random weights of the heads."""
    task: Task = setting("detection", hidden=True)
    preset: str = setting("custom", hidden=True)

    def __post_init__(self) -> None:
        require_at_least("seed", self.seed, 0)
        require_at_least("evaluations", self.evaluations, 0)
        if self.task == "semantic":
            self._check_semantic()
        else:
            self._check_detection()

    def check_named(self) -> None:
        """Raise ConfigError unless labelled images and a folder for the result are named."""
        require(bool(self.data.source), "no labelled images named: write --data FOLDER")
        require(bool(self.run.out), "no folder for the result named: write --out FOLDER")

    def _check_semantic(self) -> None:
        largest = max(self.input.train_size[1], self.input.test_size)
        require(largest <= 8, f"input.train_size and test_size are scales for the task semantic; {largest:g} is > 8")
        cropped = min(self.input.crop) >= 32
        require(
            cropped or self.optim.batch_size == 1,
            "the images of a batch need one size: set input.crop to at least 32 pixels, or optim.batch_size to 1",
        )

    def _check_detection(self) -> None:
        smallest = min(self.input.train_size[0], self.input.test_size)
        require(smallest >= 32, f"input.train_size and test_size are the shorter side in pixels; {smallest:g} is < 32")
        largest = max(self.input.train_size[1], self.input.test_size)
        require(
            self.input.max_size >= largest,
            f"input.max_size must be >= the shorter side ({largest:g}), got {self.input.max_size}",
        )
        require(
            self.optim.precision == "float32",
            "optim.precision must be float32 for detectors: bfloat16 rounds boxes above 512 px by 4 px",
        )


COCO_SIDES = (640.0, 800.0)
CITYSCAPES_INPUT = InputConfig(train_size=(800.0, 1024.0), test_size=1024.0, max_size=2048)
SEMANTIC_INPUT = InputConfig(train_size=(0.5, 2.0), test_size=1.0, crop=(513.0, 513.0))
FCN = DetectorConfig(norm="sync", head_norm="sync")


def voc_c4_24k() -> TransferConfig:
    """Pascal VOC: Faster R-CNN C4, trainval07+12 -> test2007, 24k steps, batch 16 (the paper, section 4)."""
    return TransferConfig(
        task="detection",
        data=LabelledConfig(layout="voc", train="trainval07+12", val="none", test="test07", difficult=True),
        input=InputConfig(train_size=(480.0, 800.0), test_size=800.0),
        model=DetectorConfig(neck="c4", norm="sync", head_norm="sync"),
        optim=OptimConfig(lr=0.02, steps=24_000, lr_milestones=(0.75, 11 / 12), warmup_steps=100),
    )


def coco_c4_1x() -> TransferConfig:
    """COCO: Mask R-CNN C4, 90k steps, batch 16 (the paper, section 4); --schedule 2x for 180k."""
    return TransferConfig(
        task="instances",
        data=LabelledConfig(layout="coco", val="none"),
        input=InputConfig(train_size=COCO_SIDES, test_size=800.0),
        model=DetectorConfig(neck="c4", norm="sync", head_norm="sync"),
    )


def coco_fpn_1x() -> TransferConfig:
    """COCO: Mask R-CNN FPN, 90k steps, batch 16; --schedule 2x for 180k."""
    return coco_c4_1x().with_values({"model.neck": "fpn"})


def cityscapes_instances() -> TransferConfig:
    """Cityscapes: Mask R-CNN FPN, 24k steps, batch 8, 800-1024 px."""
    return TransferConfig(
        task="instances",
        data=LabelledConfig(layout="cityscapes", val="none"),
        input=CITYSCAPES_INPUT,
        model=DetectorConfig(neck="fpn", norm="sync", head_norm="sync"),
        optim=OptimConfig(lr=0.01, batch_size=8, steps=24_000, lr_milestones=(0.75, 1.0)),
    )


def cityscapes_semantic() -> TransferConfig:
    """Cityscapes: FCN, 90k steps, batch 16, crops of 769 px."""
    return TransferConfig(
        task="semantic",
        data=LabelledConfig(layout="cityscapes", val="none"),
        input=InputConfig(train_size=(0.5, 2.0), test_size=1.0, crop=(769.0, 769.0)),
        model=FCN,
        optim=OptimConfig(lr=0.01, steps=90_000, lr_milestones=(0.7, 0.9)),
    )


def voc_semantic() -> TransferConfig:
    """Pascal VOC: FCN, train_aug2012 -> val2012, 30k steps, batch 16, crops of 513 px."""
    return TransferConfig(
        task="semantic",
        data=LabelledConfig(layout="voc", train="train_aug12", val="none", test="val12"),
        input=SEMANTIC_INPUT,
        model=FCN,
        optim=OptimConfig(lr=0.003, steps=30_000, lr_milestones=(0.7, 0.9)),
    )


def small_detection() -> TransferConfig:
    """Few labels, a CPU: Faster R-CNN FPN from stride 8, 192 px, 300 steps of 4 images."""
    return TransferConfig(
        task="detection",
        input=InputConfig(train_size=(176.0, 208.0), test_size=192.0, max_size=320),
        model=DetectorConfig(
            backbone="resnet18",
            norm="bn",
            head_norm="none",
            width=96,
            min_stride=8,
            hidden=256,
            rois_per_image=64,
            anchors=4.0,
        ),
        optim=OptimConfig(
            lr=0.02, batch_size=4, steps=300, lr_milestones=(0.75, 0.92), warmup_steps=30, max_grad_norm=10.0
        ),
    )


def small_instances() -> TransferConfig:
    """Few labels, a CPU: Mask R-CNN FPN from stride 8, 192 px, 300 steps of 4 images."""
    return small_detection().with_values({"task": "instances"})


def small_semantic() -> TransferConfig:
    """Few labels, a CPU: FCN on stride 16, half scale, crops of 128 x 160, 300 steps of 4 images."""
    return TransferConfig(
        task="semantic",
        input=InputConfig(train_size=(0.4, 0.75), test_size=0.5, crop=(128.0, 160.0)),
        model=DetectorConfig(backbone="resnet18", norm="bn", head_norm="bn", width=128, layer4_dilation=1, dilation=2),
        optim=OptimConfig(
            lr=0.02, batch_size=4, steps=300, lr_milestones=(0.75, 0.92), warmup_steps=30, max_grad_norm=10.0
        ),
    )


PROTOCOLS: dict[str, Callable[[], TransferConfig]] = {
    "voc_c4_24k": voc_c4_24k,
    "coco_c4_1x": coco_c4_1x,
    "coco_fpn_1x": coco_fpn_1x,
    "cityscapes_instances": cityscapes_instances,
    "cityscapes_semantic": cityscapes_semantic,
    "voc_semantic": voc_semantic,
    "small_detection": small_detection,
    "small_instances": small_instances,
    "small_semantic": small_semantic,
}


def protocol(name: str, task: str) -> TransferConfig:
    """Build a protocol for a task. A Mask R-CNN protocol may be used for boxes alone, and a box protocol for masks.

    Args:
        name: A key of `PROTOCOLS`.
        task: "detection", "instances" or "semantic".

    Raises:
        ConfigError: An unknown name or task, or a protocol that is not for the task.
    """
    if task not in get_args(Task):
        raise ConfigError(f"unknown task {task!r}; choose one of {', '.join(get_args(Task))}")
    if name not in PROTOCOLS:
        suggestion = did_you_mean(name, PROTOCOLS)
        raise ConfigError(f"there is no protocol {name!r}; write one of {', '.join(PROTOCOLS)}{suggestion}")
    is_semantic = task == "semantic"
    config = PROTOCOLS[name]()
    if (config.task == "semantic") != is_semantic:
        fitting = [other for other, build in PROTOCOLS.items() if (build().task == "semantic") == is_semantic]
        raise ConfigError(f"{name} is a protocol for {config.task}, not {task}; choose one of {', '.join(fitting)}")
    return config.with_values({"preset": name, "task": task}, pin=False)
