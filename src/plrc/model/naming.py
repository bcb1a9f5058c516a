"""Names of a ResNet's tensors in torchvision, detectron2 and transformers, by one rule each. Layer 2: imports nothing.

timm and mmdetection use torchvision's names. Sources of the rules: torchvision/models/resnet.py, detectron2's
modeling/backbone/resnet.py (BasicStem, BasicBlock, BottleneckBlock), transformers' models/resnet/modeling_resnet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from plrc.text import some

COUNTER = ".num_batches_tracked"  # ends the name of BatchNorm's step counter, which changes no feature
_BLOCKS = 36  # in the longest stage of a ResNet


class Place(NamedTuple):
    """Where a convolution stands. stage 0: the stem; convolution 0: the shortcut of a block."""

    stage: int
    block: int
    convolution: int


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


def torchvision_names(names: Iterable[str]) -> dict[str, str]:
    """{name in a file: torchvision's name for it}, prefixes kept; the same name where the file holds no such ResNet."""
    out = {name: name for name in names}
    for naming in (detectron2, transformers):
        sign = f"{naming(Place(1, 0, 1))[1]}.weight"  # every ResNet of the library has it
        if any(name == sign or name.endswith(f".{sign}") for name in out):
            known = _modules(naming)
            out = {name: _renamed(now, known) for name, now in out.items()}
    return out


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
    """{a module's name: torchvision's} for every place that a ResNet may have."""
    inside = (Place(stage, block, part) for stage in range(1, 5) for block in range(_BLOCKS) for part in range(4))
    places = (Place(0, 0, 1), *inside)
    return {other: own for place in places for other, own in zip(naming(place), torchvision(place), strict=True)}


def _renamed(name: str, known: dict[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    for start in range(len(parts)):
        own = known.get(".".join(parts[start:]))
        if own is not None:
            return ".".join([*parts[:start], own, leaf])
    return name
