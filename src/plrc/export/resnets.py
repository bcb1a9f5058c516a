"""The ResNets that several libraries share: their numbers, and by rule every tensor's name and shape in each library.

From the numbers follow the exported names, and the list that a file is checked against if a library is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from plrc.errors import ExportError
from plrc.model.naming import COUNTER_SUFFIX, Naming, Place, name_difference, torchvision
from plrc.pixels import RGB_CHANNELS

LEAVES = (".weight", ".bias", ".running_mean", ".running_var")  # of a BatchNorm, without its step counter


@dataclass(frozen=True)
class ResNet:
    """The numbers that define a ResNet.

    Attributes:
        depth: Layers.
        blocks: Blocks per stage.
        bottleneck: Whether a block has three convolutions instead of two.
        groups: Groups of the middle convolution of a block.
        group_width: Channels of a group in the first stage.
    """

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


def resnet_name(backbone: str) -> str:
    """model.backbone -> torchvision's name of the same ResNet (timm:resnet50.tag -> resnet50); empty for others."""
    name = backbone.removeprefix("timm:").partition(".")[0]
    return name if name in RESNETS else ""


def find_resnet(backbone: str, library: str) -> ResNet:
    """The numbers of the run's backbone.

    Raises:
        ExportError: It is not a ResNet that `library` has.
    """
    name = resnet_name(backbone)
    if not name:
        raise ExportError(
            f"{library} has no {backbone}; a run can be exported to {library} if model.backbone is a ResNet of it"
        )
    return RESNETS[name]


def shapes(net: ResNet, naming: Naming, channels: int = RGB_CHANNELS) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor in front of the classifier, step counters of BatchNorm included.

    Args:
        net: The numbers of the ResNet.
        naming: The rule for names.
        channels: Channels of the images.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for place, shape in _places(net, channels):
        convolution, norm = naming(place)
        expected[f"{convolution}.weight"] = shape
        for leaf in LEAVES:
            expected[norm + leaf] = shape[:1]
        expected[norm + COUNTER_SUFFIX] = ()
    return expected


def rename(state: dict[str, Tensor], net: ResNet, naming: Naming) -> dict[str, Tensor]:
    """A backbone's tensors under another library's names; names that no ResNet has stay, and the proof refuses them."""
    new_names = dict(zip(shapes(net, torchvision), shapes(net, naming), strict=True))
    return {new_names.get(name, name): tensor for name, tensor in state.items()}


def check_structure(
    state: dict[str, Tensor], net: ResNet, naming: Naming, problem: str, channels: int = RGB_CHANNELS
) -> None:
    """Check that tensors have exactly the names and shapes that the rule gives.

    Args:
        state: The tensors under the names of a library.
        net: The numbers of the ResNet that they should be of.
        naming: The rule of that library.
        problem: What it means if they are not, the beginning of the error's sentence.
        channels: Channels of the images.

    Raises:
        ExportError: Names or shapes differ; it names them.
    """
    expected = shapes(net, naming, channels)
    names = name_difference(state, expected)
    if names:
        raise ExportError(f"{problem}: {names}")
    wrong = []
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            wrong.append(f"{name} {list(state[name].shape)} instead of {list(shape)}")
    if wrong:
        raise ExportError(f"{problem}: tensors of another shape: {', '.join(wrong)}")


def _places(net: ResNet, channels: int) -> Iterator[tuple[Place, tuple[int, ...]]]:
    """Each convolution, with its shape."""
    yield Place(0, 0, 1), (64, channels, 7, 7)
    before = 64
    for stage, (blocks, after) in enumerate(zip(net.blocks, net.widths, strict=True), start=1):
        width = 64 * 2 ** (stage - 1) * net.group_width // 64 * net.groups
        for block in range(blocks):
            if net.bottleneck:
                sizes = [(width, before, 1), (width, width // net.groups, 3), (after, width, 1)]
            else:
                sizes = [(width, before, 3), (after, width, 3)]
            for number, (out, into, size) in enumerate(sizes, start=1):
                yield Place(stage, block, number), (out, into, size, size)
            if not block and (before != after or stage > 1):
                yield Place(stage, block, 0), (after, before, 1, 1)
            before = after
