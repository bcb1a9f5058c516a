"""Names of a ResNet's tensors in torchvision, detectron2 and transformers, by one rule for each library.

timm and mmdetection use torchvision's names. Sources of the rules: torchvision/models/resnet.py, detectron2's
modeling/backbone/resnet.py (BasicStem, BasicBlock, BottleneckBlock), transformers' models/resnet/modeling_resnet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from plrc.text import some

COUNTER_SUFFIX = ".num_batches_tracked"  # ends the name of BatchNorm's step counter, which changes no feature
SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Modules of a ResNet by their index in `nn.Sequential(*resnet.children())`; 2 and 3 have no tensors."""
_FIRST_BLOCK_OF_SEQUENCE = "4.0.conv1.weight"
_BLOCKS = 36  # in the longest stage of a ResNet


class Place(NamedTuple):
    """Where a convolution is in a ResNet.

    Attributes:
        stage: 1 to 4; 0 for the stem.
        block: Index of the block in its stage.
        convolution: Number of the convolution in its block, from 1; 0 for the shortcut.
    """

    stage: int
    block: int
    convolution: int


Naming = Callable[[Place], tuple[str, str]]  # the modules' names: the convolution's, and its BatchNorm's


def torchvision(place: Place) -> tuple[str, str]:
    """torchvision's names of a convolution and its BatchNorm."""
    if not place.stage:
        return "conv1", "bn1"
    block = f"layer{place.stage}.{place.block}."
    if not place.convolution:
        return f"{block}downsample.0", f"{block}downsample.1"
    return f"{block}conv{place.convolution}", f"{block}bn{place.convolution}"


def detectron2(place: Place) -> tuple[str, str]:
    """detectron2's names of a convolution and its BatchNorm."""
    if not place.stage:
        return "stem.conv1", "stem.conv1.norm"
    part = f"conv{place.convolution}" if place.convolution else "shortcut"
    module = f"res{place.stage + 1}.{place.block}.{part}"
    return module, f"{module}.norm"


def transformers(place: Place) -> tuple[str, str]:
    """transformers' names of a convolution and its BatchNorm."""
    if not place.stage:
        return "embedder.embedder.convolution", "embedder.embedder.normalization"
    part = f"layer.{place.convolution - 1}" if place.convolution else "shortcut"
    module = f"encoder.stages.{place.stage - 1}.layers.{place.block}.{part}"
    return f"{module}.convolution", f"{module}.normalization"


def torchvision_names(names: Iterable[str]) -> dict[str, str]:
    """Recognize the names of detectron2's and transformers' ResNets, and of ResNets as a sequence of layers (lightly).

    Args:
        names: Names of tensors in a file or network, with any prefix.

    Returns:
        {name: torchvision's name with the same prefix}; other names stay as they are.
    """
    renamed = {name: name for name in names}
    for naming in (detectron2, transformers):
        _, norm = naming(Place(0, 0, 1))
        sign = f"{norm}.weight"  # every ResNet of the library has it; ResNet-vd has three convolutions in its place
        if any(name == sign or name.endswith(f".{sign}") for name in renamed.values()):
            modules = _modules(naming)
            for name, current in renamed.items():
                renamed[name] = _renamed(current, modules)
    for name in list(renamed.values()):
        prefix = name.removesuffix(_FIRST_BLOCK_OF_SEQUENCE)
        if prefix != name and f"{prefix}0.weight" in renamed and f"{prefix}1.running_mean" in renamed:
            for original, current in renamed.items():
                index, _, rest = current.removeprefix(prefix).partition(".")
                if current.startswith(prefix) and index in SEQUENCE:
                    renamed[original] = f"{prefix}{SEQUENCE[index]}.{rest}"
    return renamed


def name_difference(actual: Iterable[str], expected: Iterable[str]) -> str:
    """Which names are missing and which are unexpected, for an error's sentence; empty if they are the same."""
    actual_names = set(actual)
    expected_names = set(expected)
    parts = []
    if expected_names - actual_names:
        parts.append(f"missing keys: {some(sorted(expected_names - actual_names))}")
    if actual_names - expected_names:
        parts.append(f"unexpected keys: {some(sorted(actual_names - expected_names))}")
    return "; ".join(parts)


def _modules(naming: Naming) -> dict[str, str]:
    """{a module's name in a library: torchvision's name} for every place that a ResNet may have."""
    places = [Place(0, 0, 1)]
    for stage in range(1, 5):
        for block in range(_BLOCKS):
            places += [Place(stage, block, convolution) for convolution in range(4)]
    modules: dict[str, str] = {}
    for place in places:
        modules.update(zip(naming(place), torchvision(place), strict=True))
    return modules


def _renamed(name: str, modules: dict[str, str]) -> str:
    """A tensor's name with its module's name replaced by torchvision's, the prefix kept."""
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    for start in range(len(parts)):
        torchvision_name = modules.get(".".join(parts[start:]))
        if torchvision_name is not None:
            return ".".join([*parts[:start], torchvision_name, leaf])
    return name
