"""Every setting of a transfer run, and the protocols: named, full settings, from the literature and for small data.

Layer 5: imports config and settings. Normalization and trainable layers are settings of their own, so that no run
inherits them by accident from a library's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from plrc.errors import ConfigError
from plrc.settings import Settings, require, require_range, setting
from plrc.text import did_you_mean

Task = Literal["detection", "instances", "semantic"]
Layout = Literal["auto", "voc", "coco", "folders", "cityscapes"]


@dataclass(frozen=True)
class LabelledConfig:
    """Which labelled images."""

    source: str = setting("", alias="data")
    """Folder in Pascal VOC layout, COCO layout (annotations/*.json), or with image and mask folders."""
    layout: Layout = "auto"
    """How to read `source`; auto looks at it."""
    train: str = ""
    """Split to train on (train, trainval07+12, ...). Empty: found."""
    val: str = ""
    """Split that learning rates and curves are taken from. Empty: found, or a fifth of the training images. none: no
    such split, all training images are trained on."""
    test: str = ""
    """Split that the result is taken from. Empty: found (test, else val)."""
    fraction: float = 1.0
    """Share of the training images whose labels are used. Smaller shares are parts of larger ones."""
    shots: int = 0
    """Images of each class whose labels are used, instead of a share. 0: `fraction` decides."""
    merge_classes: bool = False
    """Train and score one class, "object": where there are too few labels for many classes."""
    difficult: bool = False
    """Train on the objects that VOC marks as difficult, too. The score ignores them always."""

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"data.fraction is {self.fraction}; write a number above 0 and at most 1")
        require(self.shots >= 0, f"data.shots is {self.shots}; write 0 (a share is used) or more")
        require(self.fraction == 1 or not self.shots, "data.fraction and data.shots are both set; write one of them")


@dataclass(frozen=True)
class InputConfig:
    """How an image enters the network."""

    train_size: tuple[float, float] = (480.0, 800.0)
    """Detection: the shorter side in pixels is drawn from this range. Semantic: range of the scale."""
    test_size: float = 800.0
    """Detection: shorter side at test. Semantic: scale at test."""
    max_size: int = 1333
    """Detection: the longer side is at most this long."""
    crop: tuple[float, float] = (0.0, 0.0)
    """Semantic: height and width of the random crop, padded where the image is smaller. 0 0: none."""
    flip_prob: float = 0.5
    """Share of training images that are mirrored."""

    def __post_init__(self) -> None:
        require_range("input.train_size", self.train_size, 0.05, 10_000)
        require(self.test_size > 0, f"input.test_size is {self.test_size}; write a number above 0")
        require(0 <= self.flip_prob <= 1, f"input.flip_prob is {self.flip_prob}; write 0 to 1")


@dataclass(frozen=True)
class DetectorConfig:
    """The network that is fine-tuned."""

    backbone: str = ""
    """torchvision ResNet (resnet50, ...). Empty: the one that the initial weights are of, else resnet50."""
    neck: Literal["fpn", "c4"] = "fpn"
    """Detection: fpn (feature pyramid) or c4 (regions read from stride 16, layer4 as their head: the paper's VOC)."""
    norm: Literal["bn", "frozen", "sync"] = "bn"
    """BatchNorm of the backbone: bn (trained, statistics of the batch), frozen (never changed), sync (over GPUs)."""
    head_norm: Literal["none", "bn", "sync", "gn"] = "none"
    """Normalization in everything else: pyramid, box and mask heads, after layer4 of c4, FCN head."""
    trainable_layers: int = 5
    """Of stem, layer1 ... layer4, how many are trained, counted from the top. 5: all, 3: as for ImageNet weights."""
    width: int = 256
    """Channels of the pyramid, or of the FCN head."""
    min_stride: Literal[4, 8] = 4
    """fpn: smallest stride of the pyramid; 8 saves most of its time on a CPU."""
    hidden: int = 1024
    """fpn: width of the box head."""
    rois_per_image: int = 512
    """Regions an image that the head is trained on."""
    anchors: float = 8.0
    """fpn: side of an anchor in strides of its level (8: 32 px at stride 4). c4: 32 to 512 px always."""
    layer4_dilation: Literal[1, 2] = 2
    """Semantic: 2 for weights trained with layer4 at stride 32 (most), 1 for stride 16 (plrc's small_r18)."""
    dilation: int = 6
    """Semantic: dilation of the FCN head's two 3 x 3 convolutions."""

    def __post_init__(self) -> None:
        require(1 <= self.trainable_layers <= 5, "model.trainable_layers must be 1 (layer4) to 5 (all)")
        for name in ("width", "hidden", "rois_per_image", "dilation"):
            require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; write at least 1")
        require(self.anchors > 0, f"model.anchors is {self.anchors}; write a number above 0")


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation: SGD with momentum, linear warm-up, steps down by ten."""

    lr: float = 0.02
    """Peak learning rate."""
    batch_size: int = 16
    """Images per optimizer step."""
    steps: int = 90_000
    """Steps of the optimiser before `schedule` multiplies them."""
    schedule: Literal["1x", "2x", "3x"] = setting("1x", alias="schedule")
    """Multiple of `steps`."""
    lr_milestones: tuple[float, float] = (2 / 3, 8 / 9)
    """Shares of the steps after which the learning rate is divided by ten."""
    warmup_steps: int = 1000
    """Steps over which the learning rate grows to its value; at most a tenth of all."""
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
        require(self.lr > 0, f"optim.lr is {self.lr}; write a number above 0")
        for name in ("batch_size", "steps"):
            require(getattr(self, name) >= 1, f"optim.{name} is {getattr(self, name)}; write at least 1")
        require_range("optim.lr_milestones", self.lr_milestones, 0, 1)
        for name in ("warmup_steps", "momentum", "weight_decay", "norm_decay", "max_grad_norm"):
            require(getattr(self, name) >= 0, f"optim.{name} is {getattr(self, name)}; write 0 or more")

    @property
    def total_steps(self) -> int:
        """Steps of the optimiser in all."""
        return self.steps * int(self.schedule[0])


@dataclass(frozen=True)
class TransferRunConfig:
    """How it runs; never changes a number."""

    out: str = setting("", alias="out")
    """Folder for the results. Must be empty or absent, unless a stopped command is continued."""
    resume: bool = setting(False, alias="resume")
    """Go on with the run in that folder, or start it if there is none."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 0
    """Loader processes."""
    threads: int = 0
    """PyTorch's threads. 0: its choice."""
    log_every_steps: int = 20
    """Steps between two lines of progress."""
    checkpoint_every_steps: int = 500
    """Steps between two saves."""
    keep_model: bool = True
    """Keep the fine-tuned weights: OUT/model.safetensors."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            require(getattr(self, name) >= 0, f"run.{name} is {getattr(self, name)}; write 0 or more")
        for name in ("log_every_steps", "checkpoint_every_steps"):
            require(getattr(self, name) >= 1, f"run.{name} is {getattr(self, name)}; write at least 1")


@dataclass(frozen=True)
class TransferConfig(Settings):
    """A whole transfer run: labels, a detector with given initial weights, and its score on test images."""

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

    init: str = setting("random", metavar="random|torchvision|RUN|FILE")
    """Initial weights of the backbone: random, torchvision's own (on disk), a run folder, or a file of tensors."""
    partial: bool = False
    """Take a file that lacks some of the backbone's tensors."""
    data: LabelledConfig = field(default_factory=LabelledConfig)
    input: InputConfig = field(default_factory=InputConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: TransferRunConfig = field(default_factory=TransferRunConfig)
    evaluations: int = 1
    """How many times, evenly spaced, the validation images are scored: the curve against iterations."""
    seed: int = 0
    """Labelled subset, order of the images, random weights of the heads: all follow from this number."""
    task: Task = setting("detection", hidden=True)
    preset: str = setting("custom", hidden=True)

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed is {self.seed}; write 0 or more")
        require(self.evaluations >= 0, f"evaluations is {self.evaluations}; write 0 (none) or more")
        if self.task == "semantic":
            require(
                self.input.train_size[1] <= 8 and self.input.test_size <= 8,
                "input sizes are scales for semantic: 0.5 2",
            )
            uncropped = min(self.input.crop) < 32 and self.optim.batch_size > 1
            require(
                not uncropped, "input.crop is below 32 pixels: images of a batch need one size; write a crop or batch 1"
            )
        else:
            smallest = min(self.input.train_size[0], self.input.test_size)
            require(smallest >= 32, "input sizes are the shorter side in pixels: write 32 or more")
            largest = max(self.input.train_size[1], self.input.test_size)
            require(self.input.max_size >= largest, "input.max_size is below the shorter side; write a larger one")
            exact = self.optim.precision == "float32"
            require(
                exact, "optim.precision bfloat16 would round boxes above 512 px by 4 px; write float32 for detectors"
            )

    def check_named(self) -> None:
        """Raises ConfigError where labelled images or a folder for the result are not named."""
        require(bool(self.data.source), "no labelled images named: write --data FOLDER")
        require(bool(self.run.out), "no folder for the result named: write --out FOLDER")


SHORT = (640.0, 800.0)
CITY = InputConfig(train_size=(800.0, 1024.0), test_size=1024.0, max_size=2048)
SEMANTIC = InputConfig(train_size=(0.5, 2.0), test_size=1.0, crop=(513.0, 513.0))
FCN = DetectorConfig(norm="sync", head_norm="sync")


def voc_c4_24k() -> TransferConfig:
    """Pascal VOC: Faster R-CNN C4, trainval07+12 -> test2007, 24k iterations, batch 16 (the paper, section 4)."""
    return TransferConfig(
        task="detection",
        data=LabelledConfig(layout="voc", train="trainval07+12", val="none", test="test07", difficult=True),
        input=InputConfig(train_size=(480.0, 800.0), test_size=800.0),
        model=DetectorConfig(neck="c4", norm="sync", head_norm="sync"),
        optim=OptimConfig(lr=0.02, steps=24_000, lr_milestones=(0.75, 11 / 12), warmup_steps=100),
    )


def coco_c4_1x() -> TransferConfig:
    """COCO: Mask R-CNN C4, 90k iterations, batch 16 (the paper, section 4); --schedule 2x for 180k."""
    return TransferConfig(
        task="instances",
        data=LabelledConfig(layout="coco", val="none"),
        input=InputConfig(train_size=SHORT, test_size=800.0),
        model=DetectorConfig(neck="c4", norm="sync", head_norm="sync"),
    )


def coco_fpn_1x() -> TransferConfig:
    """COCO: Mask R-CNN FPN, 90k iterations, batch 16; --schedule 2x for 180k."""
    return coco_c4_1x().with_values({"model.neck": "fpn"})


def cityscapes_instances() -> TransferConfig:
    """Cityscapes: Mask R-CNN FPN, 24k iterations, batch 8, 800-1024 px."""
    return TransferConfig(
        task="instances",
        data=LabelledConfig(layout="cityscapes", val="none"),
        input=CITY,
        model=DetectorConfig(neck="fpn", norm="sync", head_norm="sync"),
        optim=OptimConfig(lr=0.01, batch_size=8, steps=24_000, lr_milestones=(0.75, 1.0)),
    )


def cityscapes_semantic() -> TransferConfig:
    """Cityscapes: FCN, 90k iterations, batch 16, crops of 769 px."""
    return TransferConfig(
        task="semantic",
        data=LabelledConfig(layout="cityscapes", val="none"),
        input=InputConfig(train_size=(0.5, 2.0), test_size=1.0, crop=(769.0, 769.0)),
        model=FCN,
        optim=OptimConfig(lr=0.01, steps=90_000, lr_milestones=(0.7, 0.9)),
    )


def voc_semantic() -> TransferConfig:
    """Pascal VOC: FCN, train_aug2012 -> val2012, 30k iterations, batch 16, crops of 513 px."""
    return TransferConfig(
        task="semantic",
        data=LabelledConfig(layout="voc", train="train_aug12", val="none", test="val12"),
        input=SEMANTIC,
        model=FCN,
        optim=OptimConfig(lr=0.003, steps=30_000, lr_milestones=(0.7, 0.9)),
    )


def small_detection() -> TransferConfig:
    """Few labels, a CPU: Faster R-CNN FPN from stride 8, 192 px, 300 iterations of 4 images."""
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
    """Few labels, a CPU: Mask R-CNN FPN from stride 8, 192 px, 300 iterations of 4 images."""
    return small_detection().with_values({"task": "instances"})


def small_semantic() -> TransferConfig:
    """Few labels, a CPU: FCN on stride 16, half scale, crops of 128 x 160, 300 iterations of 4 images."""
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
    """A protocol by name, for a task: a Mask R-CNN protocol may be run for boxes alone, and a box one with masks."""
    if task not in get_args(Task):
        raise ConfigError(f"there is no task {task!r}; write one of {', '.join(get_args(Task))}")
    if name not in PROTOCOLS:
        suggestion = did_you_mean(name, PROTOCOLS)
        raise ConfigError(f"there is no protocol {name!r}; write one of {', '.join(PROTOCOLS)}{suggestion}")
    found = PROTOCOLS[name]()
    if (found.task == "semantic") != (task == "semantic"):
        fitting = [n for n, build in PROTOCOLS.items() if (build().task == "semantic") == (task == "semantic")]
        raise ConfigError(f"{name} is a protocol for {found.task}, not {task}; write one of {', '.join(fitting)}")
    return found.with_values({"preset": name, "task": task})
