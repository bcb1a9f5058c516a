"""The settings of a transfer run; `presets` has the protocols, which are named configurations.

Normalization and trainable layers are settings, so that no run inherits them by accident from a library's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from plrc.config.inputs import MAX_CHANNELS, DataConfig
from plrc.pixels import PixelStatistics, given_statistics
from plrc.settings import (
    Settings,
    require,
    require_at_least,
    require_between,
    require_pattern,
    require_positive,
    require_range,
    setting,
)

Task = Literal["detection", "instances", "semantic"]
Detector = Literal["faster_rcnn", "rt_detr", "rt_detr_v2", "d_fine", "rf_detr"]
Layout = Literal["auto", "voc", "coco", "yolo", "folders", "cityscapes"]


@dataclass(frozen=True)
class LabelledConfig:
    """The labelled images."""

    source: str = setting("", alias="data")
    """Folder in the layout of Pascal VOC, COCO, YOLO or Cityscapes, or with image and mask folders."""
    layout: Layout = "auto"
    """Layout of `source`. auto: recognized by its content."""
    train: str = ""
    """Split to train on (train, trainval07+12, ...); val+test joins two splits. Empty: chosen by name."""
    val: str = ""
    """Split for the choice of learning rates and for curves. Empty: chosen by name, else a fifth of the training
    images. none: no such split, all training images are trained on."""
    test: str = ""
    """Split for the result. Empty: chosen by name (test, else val) among the splits that have labels."""
    test_fraction: float = 0.0
    """Share of the training images that plrc takes out of them to test on, the same images for every seed: for a source
    without a test split. 0: no image is taken out."""
    unlabelled: Literal["auto", "background", "leave_out"] = "auto"
    """What an image without a label file is (YOLO, VOC): background, an image without objects; or not used: leave_out.
    auto: background in YOLO, left out in VOC. A label file without objects always means background."""
    four_point_polygons: bool = False
    """YOLO: labels of four points are polygons. Otherwise a source whose polygons all have four points is refused,
    because they may be oriented boxes."""
    fraction: float = 1.0
    """Share of the training images whose labels are used. A smaller share is part of a larger one."""
    shots: int = 0
    """Images of each class whose labels are used, instead of a share. 0: `fraction` decides."""
    group: str = setting("", metavar="folder|PATTERN")
    """Images that belong together, such as frames of one video, tiles of one scene or images of one patient: those of a
    folder, or those in whose path the first group of a regular expression is the same, such as (.+)_MOV. A validation
    split that is taken out of the training images never parts a group. Empty: no groups."""
    merge_classes: bool = False
    """Train and score a single class, "object": for too few labels of many classes."""
    difficult: bool = False
    """Also train on the objects that VOC marks as difficult. They are never scored."""
    channels: int = 3
    """Channels of an image, as `data.channels` of the pre-training. 3: RGB."""
    rescale_percentiles: tuple[float, float] = (0.5, 99.5)
    """Images of more than 8 bits per channel are rescaled as by `data.rescale_percentiles` of the pre-training, whose
    value belongs here."""
    max_megapixels: float = 200.0
    """Largest image that is read."""
    mean: tuple[float, ...] = ()
    """Mean of red, green and blue (of each channel), on the scale 0 to 1, that pixels are normalized with. Empty: what
    the initial weights were trained with; for weights that say nothing about images of other channels than RGB,
    measured on the training images."""
    std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue (of each channel), on the scale 0 to 1; set it together with `mean`."""

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"data.fraction must be > 0 and <= 1, got {self.fraction}")
        require(0 <= self.test_fraction < 1, f"data.test_fraction must be >= 0 and < 1, got {self.test_fraction}")
        require(
            not (self.test and self.test_fraction),
            "data.test names a split and data.test_fraction draws one from the training images; set only one",
        )
        require_at_least("data.shots", self.shots, 0)
        require_pattern("data.group", self.group)
        require(self.fraction == 1 or not self.shots, "data.fraction and data.shots are both set; set only one")
        require_between("data.channels", self.channels, 1, MAX_CHANNELS)
        require_range("data.rescale_percentiles", self.rescale_percentiles, 0, 100)
        require_positive("data.max_megapixels", self.max_megapixels)
        given_statistics(self.mean, self.std, channels=self.channels)

    @property
    def decoding(self) -> DataConfig:
        """The settings with which images are decoded."""
        return DataConfig(
            channels=self.channels,
            rescale_percentiles=self.rescale_percentiles,
            max_megapixels=self.max_megapixels,
        )

    @property
    def pixels(self) -> PixelStatistics | None:
        """The statistics that `mean` and `std` give; None: those of the initial weights."""
        return given_statistics(self.mean, self.std, channels=self.channels)


@dataclass(frozen=True)
class InputConfig:
    """How an image enters the network."""

    train_size: tuple[float, float] = (480.0, 800.0)
    """Detection: range from which the shorter side in pixels is drawn (detectors of transformers: the side of a
    square). Semantic: range of the scale."""
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
    """torchvision ResNet (resnet50, ...), timm:NAME, or transformers:FOLDER (that of the detector in a folder, which is
    then built as the folder says). If you do not set it: that of the initial weights where it is known, else that of
    the protocol, else resnet50."""
    detector: Detector = setting("faster_rcnn", alias="detector")
    """Detection: faster_rcnn (torchvision; Mask R-CNN for masks), or rt_detr, rt_detr_v2, d_fine, rf_detr
    (transformers). The settings below are for faster_rcnn, except norm, trainable_layers, width, hidden, queries and
    decoder_layers."""
    neck: Literal["fpn", "c4"] = "fpn"
    """Detection: fpn (feature pyramid) or c4 (regions read from stride 16, layer4 as head: the paper's VOC)."""
    norm: Literal["bn", "frozen", "sync"] = "bn"
    """BatchNorm of the backbone: bn (trained, statistics of the batch), frozen (never changed), sync (over GPUs)."""
    head_norm: Literal["none", "bn", "sync", "gn"] = "none"
    """Normalization outside of the backbone: pyramid, box and mask heads, after layer4 of c4, FCN head."""
    trainable_layers: int = 5
    """How many of stem, layer1 ... layer4 are trained, counted from the top. 5: all, 3: as for ImageNet weights."""
    width: int = 256
    """Channels of the pyramid, of the FCN head, or of the transformer."""
    min_stride: Literal[4, 8] = 4
    """fpn: smallest stride of the pyramid; 8 saves most of the time on a CPU."""
    hidden: int = 1024
    """fpn: width of the box head. Detectors of transformers: width of the feed-forward layers."""
    queries: int = 300
    """Detectors of transformers: candidates per image."""
    decoder_layers: int = 6
    """Detectors of transformers: layers of the decoder."""
    rois_per_image: int = 512
    """Regions per image that the head is trained on."""
    proposals: int = 1000
    """Regions per image that the head classifies at test; fewer are faster on a CPU."""
    anchors: float = 8.0
    """fpn: side of an anchor in strides of its level (8: 32 px at stride 4). c4: 32 to 512 px always."""
    layer4_dilation: Literal[1, 2] = 2
    """Semantic: 2 for weights trained with layer4 at stride 32 (most), 1 for stride 16 (`model.layer4_stride` 1)."""
    dilation: int = 6
    """Semantic: dilation of the FCN head's two 3 x 3 convolutions."""

    def __post_init__(self) -> None:
        require_between("model.trainable_layers", self.trainable_layers, 1, 5)
        for name in ("width", "hidden", "rois_per_image", "proposals", "dilation", "queries", "decoder_layers"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        require_positive("model.anchors", self.anchors)


@dataclass(frozen=True)
class OptimConfig:
    """Optimization: linear warm-up, learning rate divided by ten at milestones."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd (with momentum) or adamw, which detectors of transformers need."""
    lr: float = 0.02
    """Peak learning rate."""
    batch_size: int = 16
    """Images per optimizer step."""
    gradient_accumulation_steps: int = 1
    """Parts that a batch is split into; a smaller part needs less memory."""
    backbone_lr_factor: float = 1.0
    """Learning rate of the backbone, as a multiple of `lr`."""
    steps: int = 90_000
    """Optimizer steps, before `schedule` multiplies them."""
    schedule: Literal["1x", "2x", "3x"] = setting("1x", alias="schedule")
    """Multiple of `steps`."""
    lr_milestones: tuple[float, float] = (2 / 3, 8 / 9)
    """Shares of the steps after which the learning rate is divided by ten."""
    warmup_steps: int = 1000
    """Steps over which the learning rate grows to its value; at most a tenth of all steps are used."""
    momentum: float = 0.9
    """Momentum of SGD, or first beta of AdamW."""
    weight_decay: float = 1e-4
    """Weight decay of all other parameters."""
    norm_decay: float = 0.0
    """Weight decay of normalization layers' scale and shift (Detectron2: 0)."""
    max_grad_norm: float = 0.0
    """Largest norm of the gradient. 0: not clipped."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass. bfloat16 is not for faster_rcnn."""

    def __post_init__(self) -> None:
        require_positive("optim.lr", self.lr)
        for name in ("batch_size", "steps", "gradient_accumulation_steps"):
            require_at_least(f"optim.{name}", getattr(self, name), 1)
        require_positive("optim.backbone_lr_factor", self.backbone_lr_factor)
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"optim.gradient_accumulation_steps must divide optim.batch_size ({self.batch_size}), got "
            f"{self.gradient_accumulation_steps}",
        )
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
    """auto, cpu, cuda, cuda:N or mps."""
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
    """Initial weights of the backbone: random, pretrained (those of its library), a run folder, or a file. The folder
    of a detector of transformers (save_pretrained): the whole detector, if it is of the kind of `model.detector`."""
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

    def for_comparison(self) -> TransferConfig:
        """Return the settings of the runs of a comparison: unless the user set them, a curve and no stored models."""
        defaults = {"evaluations": max(self.evaluations, 4), "run.keep_model": False}
        derived = {name: value for name, value in defaults.items() if name not in self.pinned}
        return self.with_values(derived, pin=False)

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
        is_torchvision = self.model.detector == "faster_rcnn"
        require(
            self.optim.precision == "float32" or not is_torchvision,
            "optim.precision must be float32 for faster_rcnn: bfloat16 rounds boxes above 512 px by 4 px",
        )
        require(
            self.task == "detection" or is_torchvision,
            f"{self.model.detector} predicts boxes alone; write --model.detector faster_rcnn for masks",
        )
