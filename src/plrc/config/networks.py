"""Settings of the networks: the student and a frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plrc.pixels import PixelStatistics, given_statistics
from plrc.settings import require, require_at_least


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and projection heads."""

    backbone: str = "resnet50"
    """A torchvision ResNet (resnet18, resnet50, ...), timm:NAME (needs timm), transformers:FOLDER (the backbone of a
    detector that save_pretrained wrote; needs transformers), or your own function that returns a network:
    package.module:function or path/to/file.py:function (docs/HANDOVER.md)."""
    strides: tuple[int, ...] = (32,)
    """The feature levels to train, one or several, each named by its stride in the unchanged network (layer4 is 32,
    even if `layer4_stride` is 1). Each loss term is the mean over the queries of all levels. Layers after the largest
    stride are not trained."""
    layer4_stride: Literal[1, 2] = 2
    """torchvision ResNets: stride of layer4 during pre-training. 1 doubles the resolution of the feature grid; the
    weight tensors keep their shapes."""
    init: str = ""
    """Initial weights of the backbone: a plrc run, an export, a state-dict file, or pretrained: the weights that
    torchvision or timm has for it, downloaded if they are not on this disk, or those in the folder of
    transformers:FOLDER. Empty: random."""
    trainable_stages: int = -1
    """How much of the backbone is trained: -1: all of it; n: the last n stages and all normalization layers; 0: the
    normalization layers only. A stage is the layers from one feature level to the next; in a vision transformer of
    timm, each block is a stage. Layers after the largest of `strides` belong to none. Projection heads are always
    trained."""
    contrast_hidden: int = 2048
    """Hidden width of the head for the image and point terms."""
    contrast_dim: int = 128
    """Output width of the head for the image and point terms."""
    distill_hidden: int = 2048
    """Hidden width of the heads for affinity distillation: from the moving average, and from a frozen teacher."""
    distill_dim: int = 256
    """Output width of the head for affinity distillation from the moving average. The head for a frozen teacher is as
    wide as the teacher's features (`teacher.components`)."""
    bn_groups: int = 8
    """Each process splits its batch into this many groups with separate BatchNorm statistics. The teacher gets the
    images in other groups than the student, so that batch statistics do not leak which images belong together. With
    several processes, 1 is enough: each process is a group."""
    sync_bn: bool = False
    """Several processes on GPUs: share BatchNorm statistics over the processes. If bn_groups > 1, each group shares
    them with the groups of the same number in the other processes."""

    def __post_init__(self) -> None:
        for name in ("contrast_hidden", "contrast_dim", "distill_hidden", "distill_dim", "bn_groups"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        require_at_least("model.trainable_stages", self.trainable_stages, -1)
        strides = list(self.strides)
        ascending = sorted(set(strides))
        require(
            len(strides) >= 1 and strides == ascending and strides[0] >= 1,
            f"model.strides must be one or several strides in ascending order, got {strides}",
        )
        if ":" in self.backbone:  # timm:NAME, transformers:FOLDER or a function of the user
            require(self.layer4_stride == 2, "model.layer4_stride 1 is for torchvision ResNets only; write 2")

    @property
    def largest_stride(self) -> int:
        """The stride of the coarsest level that is trained."""
        return self.strides[-1]


@dataclass(frozen=True)
class TeacherConfig:
    """The teachers of affinity distillation: the student's moving average, and optionally a frozen network.

    The features of a frozen teacher are those of whole images, without color augmentation. They are reduced to their
    principal components and, as they never change, computed once for each image and kept in a cache (METHOD section 6).
    """

    kind: Literal["ema", "frozen"] = "ema"
    """ema: the only teacher is the student's moving average, as in the paper. frozen: `objectives.frozen_weight` adds
    the distillation of a network with given weights that are never updated."""
    backbone: str = ""
    """Frozen teacher: a backbone as in `model.backbone`. Empty: the student's backbone."""
    init: str = ""
    """Frozen teacher: its weights, as in `model.init`. Empty: those of `model.init`, so that the student is anchored to
    the weights that it started from."""
    stride: int = 16
    """Frozen teacher: the feature level whose affinities are distilled."""
    size: int = 224
    """Frozen teacher: width and height in pixels to which whole images are resized."""
    components: int = 64
    """Frozen teacher: number of principal components of its features to keep. 0: all features."""
    form: Literal["projected", "relational"] = "projected"
    """Frozen teacher: keys of the student's affinities. The targets are always the affinities of the teacher to its own
    features. projected: the student is compared with these features, too. relational: the student is compared with
    the features of its moving average at the same places."""
    cache: str = ""
    """Frozen teacher: folder for the features of the images. Empty: the folder `teacher` in the run folder."""
    cache_gigabytes: float = 8.0
    """Frozen teacher: largest size of the cache. If the images need more, features are computed in every step instead.
    0: no cache."""
    mean: tuple[float, ...] = ()
    """Frozen teacher: mean of red, green and blue, on the scale 0 to 1, that its pixels are normalized with. Empty:
    what its weights were trained with, as for `data.mean`."""
    std: tuple[float, ...] = ()
    """Frozen teacher: standard deviation of red, green and blue, on the scale 0 to 1; set it together with `mean`."""

    def __post_init__(self) -> None:
        given_statistics(self.mean, self.std, "teacher")  # raises an error if they cannot be used
        require_at_least("teacher.stride", self.stride, 1)
        require_at_least("teacher.size", self.size, 16)
        require_at_least("teacher.components", self.components, 0)
        require_at_least("teacher.cache_gigabytes", self.cache_gigabytes, 0)

    @property
    def pixels(self) -> PixelStatistics | None:
        """The statistics from `mean` and `std`; None if both are empty: those of the teacher's weights are used."""
        return given_statistics(self.mean, self.std, "teacher")

    @property
    def frozen(self) -> bool:
        """Whether there is a frozen teacher."""
        return self.kind == "frozen"
