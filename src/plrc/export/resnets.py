"""The ResNets that several libraries share: their numbers, and by rule every tensor's name and shape in each library.

Layer 5: imports this folder only. From the numbers follow the exported names, and the list that a file is checked
against where a library is not installed. Sources of the rules: torchvision/models/resnet.py, detectron2's
modeling/backbone/resnet.py (BasicStem, BasicBlock, BottleneckBlock), transformers' models/resnet/modeling_resnet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from plrc.config import PlrcError
from plrc.export.verify import COUNTER, check_names

LEVELS = (4, 8, 16, 32)  # strides of the features that all libraries give
LEAVES = (".weight", ".bias", ".running_mean", ".running_var", COUNTER)


@dataclass(frozen=True)
class ResNet:
    """Layers, blocks a stage, three convolutions a block or two, groups, and the width of a group in stage 1."""

    depth: int
    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the four levels."""
        return tuple(64 * 2**stage * (4 if self.bottleneck else 1) for stage in range(4))

    @property
    def plain(self) -> bool:
        """Whether it is one of the first paper's: neither ResNeXt nor wide."""
        return (self.groups, self.group_width) == (1, 64)


RESNETS = {
    "resnet18": ResNet(18, (2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNet(34, (3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNet(50, (3, 4, 6, 3)),
    "resnet101": ResNet(101, (3, 4, 23, 3)),
    "resnet152": ResNet(152, (3, 8, 36, 3)),
    "resnext50_32x4d": ResNet(50, (3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": ResNet(101, (3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": ResNet(101, (3, 4, 23, 3), groups=64, group_width=4),
    "wide_resnet50_2": ResNet(50, (3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": ResNet(101, (3, 4, 23, 3), group_width=128),
}


@dataclass(frozen=True)
class Place:
    """Where a convolution stands. stage 0: the stem; convolution 0: the shortcut of a block."""

    stage: int
    block: int
    convolution: int
    shape: tuple[int, int, int, int]


Naming = Callable[[Place], tuple[str, str]]  # the modules' names: the convolution's, and its BatchNorm's


def torchvision(place: Place) -> tuple[str, str]:
    if not place.stage:
        return "conv1", "bn1"
    block = f"layer{place.stage}.{place.block}."
    if not place.convolution:
        return f"{block}downsample.0", f"{block}downsample.1"
    return f"{block}conv{place.convolution}", f"{block}bn{place.convolution}"


def detectron2(place: Place) -> tuple[str, str]:
    part = f"conv{place.convolution}" if place.convolution else "shortcut"
    module = f"res{place.stage + 1}.{place.block}.{part}" if place.stage else "stem.conv1"
    return module, f"{module}.norm"


def transformers(place: Place) -> tuple[str, str]:
    part = f"layer.{place.convolution - 1}" if place.convolution else "shortcut"
    module = f"encoder.stages.{place.stage - 1}.layers.{place.block}.{part}" if place.stage else "embedder.embedder"
    return f"{module}.convolution", f"{module}.normalization"


def resnet_name(backbone: str) -> str:
    """model.backbone -> torchvision's name of the same ResNet (timm:resnet50.tag -> resnet50); empty for others."""
    name = backbone.removeprefix("timm:").partition(".")[0]
    return name if name in RESNETS else ""


def find_resnet(backbone: str, library: str) -> ResNet:
    """The numbers of the backbone. Raises PlrcError where it is no ResNet that `library` has."""
    name = resnet_name(backbone)
    if not name:
        raise PlrcError(f"{library} has no {backbone}; a run can go to {library} when model.backbone is a ResNet of it")
    return RESNETS[name]


def shapes(net: ResNet, naming: Naming) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor in front of the classifier, step counters of BatchNorm included."""
    out: dict[str, tuple[int, ...]] = {}
    for place in _places(net):
        convolution, norm = naming(place)
        out[f"{convolution}.weight"] = place.shape
        out |= {norm + leaf: () if leaf == COUNTER else place.shape[:1] for leaf in LEAVES}
    return out


def rename(state: dict[str, Tensor], net: ResNet, naming: Naming) -> dict[str, Tensor]:
    """A backbone's tensors under another library's names; a name that is no ResNet's stays, for the proof to find."""
    new = dict(zip(shapes(net, torchvision), shapes(net, naming), strict=True))
    return {new.get(name, name): tensor for name, tensor in state.items()}


def check_structure(state: dict[str, Tensor], net: ResNet, naming: Naming) -> None:
    """Raise PlrcError unless a file holds exactly the names and shapes that the rule gives."""
    expected = shapes(net, naming)
    check_names(state, expected, "the file")
    wrong = [
        f"{name} {list(state[name].shape)} instead of {list(s)}"
        for name, s in expected.items()
        if state[name].shape != s
    ]
    if wrong:
        raise PlrcError(f"the file holds tensors of another shape: {', '.join(wrong)}; export again")


def _places(net: ResNet) -> Iterator[Place]:
    yield Place(0, 0, 1, (64, 3, 7, 7))
    before = 64
    for stage, (blocks, after) in enumerate(zip(net.blocks, net.widths, strict=True), start=1):
        width = 64 * 2 ** (stage - 1) * net.group_width // 64 * net.groups
        for block in range(blocks):
            if net.bottleneck:
                sizes = [(width, before, 1), (width, width // net.groups, 3), (after, width, 1)]
            else:
                sizes = [(width, before, 3), (after, width, 3)]
            for number, (out, into, size) in enumerate(sizes, start=1):
                yield Place(stage, block, number, (out, into, size, size))
            if not block and (before != after or stage > 1):
                yield Place(stage, block, 0, (after, before, 1, 1))
            before = after
