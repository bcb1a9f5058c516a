"""Export into a detector of transformers: a copy of its folder in which the tensors of the backbone are the run's.

The library reads the folder and writes the copy, in its own format. Everything but the backbone stays as it is.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from plrc.errors import ExportError
from plrc.export import resnets
from plrc.export.formats import write_tensors
from plrc.export.proof import check_tensors
from plrc.export.resnets import find_resnet, resnet_name
from plrc.export.target import IMAGE_SIZE, Features, LoadedNetwork, State, Target, without_counters
from plrc.machine import installed_version
from plrc.model import build_backbone, naming
from plrc.model.naming import COUNTER_SUFFIX, name_difference
from plrc.model.transformers_networks import (
    CONFIG_FILE,
    PREFIX,
    PROCESSOR_FILES,
    UNNORMALIZED,
    WEIGHTS_FILE,
    detector_pixels,
    half_types,
    place_of_backbone,
    quiet,
    read_detector,
)
from plrc.pixels import PixelStatistics
from plrc.text import some

STEM = "embedder.embedder.convolution.weight"  # of a plain ResNet
STEM_VD = "embedder.embedder.0.convolution.weight"  # the first of three convolutions of ResNet-vd


@dataclass(frozen=True)
class _Detector:
    """A detector that a run's backbone is written into.

    Attributes:
        folder: Its folder.
        kind: Name of its class.
        place: Name of the backbone inside it.
        backbone: The tensors of its backbone under the backbone's names, in float32.
        rest: All other tensors, in float32.
        half_type: The half precision in which its file holds numbers, "float16" or "bfloat16"; empty if it does not.
    """

    folder: Path
    kind: str
    place: str
    backbone: State
    rest: State
    half_type: str

    @property
    def has_counters(self) -> bool:
        """Whether its backbone has BatchNorm's step counters."""
        return any(name.endswith(COUNTER_SUFFIX) for name in self.backbone)


def target_into(folder: Path) -> Target:
    """Return the target that writes a copy of a detector with a run's backbone.

    Args:
        folder: The detector's folder, as save_pretrained wrote it.

    Raises:
        ConfigError: The folder holds no detector.
        WeightsError: Its file does not hold the tensors of its configuration.
        MissingPackageError: transformers is not installed.
    """
    detector = _read(folder)
    return Target(
        name="transformers",
        package="transformers",
        version=partial(installed_version, "transformers"),
        rename=partial(_rename, detector),
        load=partial(_load, detector),
        instructions=partial(_instructions, detector),
        endings=(),
        file_in_folder=WEIGHTS_FILE,
        keeps_counters=detector.has_counters,
        write=partial(_write, detector),
        read=lambda file: _read(file.parent).backbone,
        rounded=partial(_rounded, detector),
    )


def _read(folder: Path) -> _Detector:
    network = read_detector(folder)
    place = place_of_backbone(network)
    start = f"{place}."
    backbone: State = {}
    rest: State = {}
    for name, tensor in network.state_dict().items():
        if name.startswith(start):
            backbone[name.removeprefix(start)] = tensor
        else:
            rest[name] = tensor
    types = half_types(folder)
    if len(types) > 1:
        raise ExportError(f"{folder / WEIGHTS_FILE} holds numbers in {' and '.join(types)}; save it in one of them")
    return _Detector(folder, type(network).__name__, place, backbone, rest, types[0] if types else "")


def _rounded(detector: _Detector, tensors: State) -> State:
    """Tensors in the precision of the detector's file, as float32."""
    if not detector.half_type:
        return tensors
    half: torch.dtype = getattr(torch, detector.half_type)
    rounded = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            rounded[name] = tensor.to(half).to(tensor.dtype)
    return rounded


def _rename(detector: _Detector, backbone: str, student: State) -> State:
    """The student's tensors under the names of the detector's backbone, in the precision of its file.

    Raises:
        ExportError: They are not those of this backbone; the message says in what they differ.
    """
    tensors = student
    if resnet_name(backbone):
        tensors = resnets.rename(student, find_resnet(backbone, "transformers"), naming.transformers)
    if not detector.has_counters:
        tensors = without_counters(tensors)
    problem = _problem(tensors, detector.backbone)
    if problem:
        what = "the run's backbone" if backbone.startswith(PREFIX) else f"a {backbone}"
        raise ExportError(
            f"{what} does not fit the backbone of the {detector.kind} in {detector.folder}: {problem}. "
            f"To train its own backbone, write --model.backbone {PREFIX}{detector.folder} --model.init pretrained"
        )
    tensors = _rounded(detector, tensors)
    too_large = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if too_large:
        raise ExportError(
            f"{detector.folder} holds numbers in {detector.half_type}, in which the run's are too large: "
            f"{some(too_large)}; save that detector in float32 and export into it"
        )
    return tensors


def _problem(tensors: State, expected: State) -> str:
    """Why tensors cannot replace those of a detector's backbone; empty if they can."""
    if STEM in tensors and STEM_VD in expected:
        return (
            "it is a ResNet-vd, whose stem has three 3 x 3 convolutions and whose shortcuts average before they halve "
            "the size; the run's ResNet has a single 7 x 7 convolution and strided shortcuts"
        )
    names = name_difference(tensors, expected)
    if names:
        return f"{names} (another network, or one of another depth)"
    wrong = []
    for name, tensor in expected.items():
        given = tensors[name]
        if given.shape != tensor.shape:
            wrong.append(f"{name} {list(given.shape)} instead of {list(tensor.shape)}")
        elif given.dtype != tensor.dtype:
            wrong.append(f"{name} {given.dtype} instead of {tensor.dtype}".replace("torch.", ""))
    return f"tensors of another shape or type: {some(wrong)}" if wrong else ""


def _write(detector: _Detector, file: Path, backbone: str, student: State, metadata: dict[str, str]) -> None:
    """Write the detector with the run's backbone; the files of its configuration and image processor are copied.

    Every tensor has the type that it has in the detector's own file.
    """
    network = read_detector(detector.folder)
    network.get_submodule(detector.place).load_state_dict(_rename(detector, backbone, student))
    with quiet():
        network.save_pretrained(file.parent)
    own = safetensors.torch.load_file(detector.folder / WEIGHTS_FILE)
    tensors = safetensors.torch.load_file(file)
    for name in own.keys() & tensors.keys():
        tensors[name] = tensors[name].to(own[name].dtype)
    write_tensors(file, tensors, metadata | {"format": "pt"})
    for name in (CONFIG_FILE, *PROCESSOR_FILES):
        if (detector.folder / name).is_file():
            shutil.copyfile(detector.folder / name, file.with_name(name))


def _load(detector: _Detector, file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Load the copy as its user does, and compare what is not its backbone with the detector that it was copied from.

    Raises:
        ExportError: Another tensor than those of the backbone has changed.
    """
    network = read_detector(file.parent)
    copy = _read(file.parent)
    check_tensors(copy.rest, detector.rest, f"the copy of {detector.folder}, apart from the backbone,")
    own = build_backbone(f"{PREFIX}{detector.folder}")
    strides = tuple(own.channels)
    side = own.fitting_side(max(IMAGE_SIZE))
    inside = network.get_submodule(detector.place)
    name = f"{detector.kind} (its other {len(detector.rest)} tensors are those of {detector.folder.name}, bit for bit)"
    return [
        LoadedNetwork(
            name,
            inside.state_dict(),
            _features(inside, strides),
            strides,
            sizes=((side, side),),
            keeps_counters=detector.has_counters,
        )
    ]


def _features(network: Any, strides: tuple[int, ...]) -> Features:
    def features(images: Tensor) -> dict[int, Tensor]:
        maps = network(images).feature_maps
        return dict(zip(strides, maps[-len(strides) :], strict=True))

    return features


def _instructions(detector: _Detector, backbone: str, pixels: PixelStatistics) -> list[str]:
    """What has to be set in transformers."""
    own = detector_pixels(detector.folder)
    processor = "its image processor normalizes pixels as the run did"
    if own != pixels:
        theirs = "0 to 1, not normalized" if own == UNNORMALIZED else str(own)
        processor = (
            f"its image processor gives other pixels ({theirs}): set do_normalize, image_mean and image_std as above"
        )
    precision = []
    if detector.half_type:
        precision = [f"its file holds numbers in {detector.half_type}, to which those of the run are rounded"]
    return [
        f"{detector.kind}.from_pretrained(FOLDER)",
        *precision,
        f"everything but the backbone is that of {detector.folder.name}: fine-tune it before you use it",
        processor,
    ]
