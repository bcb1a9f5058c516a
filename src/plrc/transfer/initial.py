"""Initial weights of a detector's backbone: where they come from, and the proof that the detector has them.

Nothing is downloaded, except a library's own weights if the user names them (`pretrained`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from plrc import rng
from plrc.engine.checkpoint import checkpoint_of
from plrc.errors import ConfigError, PlrcError, WeightsError
from plrc.model.backbone import RESNETS, Backbone, ResNetLevels, build_backbone
from plrc.model.naming import COUNTER_SUFFIX
from plrc.model.prefixes import find_prefix
from plrc.model.start_pixels import refuse_other_channels, start_pixels
from plrc.model.starts import PRETRAINED, pretrained_weights
from plrc.model.stem import fitted, is_inflatable
from plrc.model.timm_networks import names_weights
from plrc.model.transformers_networks import PREFIX as DETECTOR_PREFIX
from plrc.model.transformers_networks import is_detector_folder
from plrc.model.user_code import is_user_code
from plrc.model.weights import LoadReport, Weights, load_into, read_weights, stored_function, stored_name
from plrc.pixels import IMAGENET, PixelStatistics
from plrc.text import note, some
from plrc.transfer.detectors.whole import DetectorWeights, differing_tensors, take_detector, whole_detector_of
from plrc.transfer.protocols import TransferConfig

DEFAULT_BACKBONE = "resnet50"
OWN_WEIGHTS = (PRETRAINED, "torchvision")  # "torchvision" is the same, for its ResNets alone


@dataclass(frozen=True)
class InitialWeights:
    """The initial weights of a backbone.

    Attributes:
        source: The file, or "random".
        backbone: Name of the backbone.
        weights: Content of the file; None for random weights.
        report: What was loaded; None for random weights.
        pixels: The statistics that images are normalized with.
        detector: What was taken of the rest of a whole detector; None for weights of a backbone.
    """

    source: str
    backbone: str
    weights: Weights | None = None
    report: LoadReport | None = None
    pixels: PixelStatistics = IMAGENET
    detector: DetectorWeights | None = None

    def lines(self) -> list[str]:
        """Summarize for the user: counts, and the names of what does not fit."""
        report = self.report
        statistics = []
        if self.pixels != IMAGENET:
            statistics = [f"pixels are normalized with {self.pixels}"]
        if report is None:
            line = f"{self.backbone}, random weights"
            if names_weights(self.backbone):
                line += "; its name stands for trained weights, which --init pretrained loads"
            return [line, *statistics]
        counts = f"{len(report.matched)} tensors match"
        if self.detector is not None:
            counts += f"; {self.detector.line()}"
        else:
            counts += f", {len(report.ignored)} are ignored"
        return [
            f"{self.backbone} with the weights of {self.source}: {counts}",
            *note("tensors that the file lacks", report.missing),
            *note("tensors of another shape", report.shape_mismatch),
            *note(f"tensors inflated from three channels to {self.pixels.channels}", report.inflated),
            *note("tensors that the backbone lacks", report.unexpected),
            *self._whole_detector_lines(),
            *statistics,
            *report.warnings,
        ]

    def _whole_detector_lines(self) -> list[str]:
        kind = whole_detector_of(self.weights)
        if not kind or self.detector is not None:
            return []
        return [f"these are the weights of a whole {kind}: only --detector {kind} takes more than its backbone"]

    def table(self) -> str:
        """Format what happened to every tensor."""
        table = self.lines()[0]
        if self.report is None:
            return table
        if self.detector is None:
            return f"{table}\n{self.report.table()}"
        backbone = replace(self.report, ignored=()).table()
        return f"{table}\n{backbone}\nwith random values: {', '.join(self.detector.not_taken) or 'none'}"


def initial_backbone(
    init: str | Weights,
    name: str = "",
    partial: bool = False,
    layer4_stride: int = 2,
    seed: int = 0,
    pixels: PixelStatistics | None = None,
    usual: PixelStatistics = IMAGENET,
) -> tuple[Backbone, InitialWeights]:
    """Build a backbone with the weights that `init` names.

    Args:
        init: "random", "pretrained" (those that its library has for it; also "torchvision"), a run folder (the student
            of its newest checkpoint), or a file of weights; or what `read_initial` returned for it.
        name: Name of the backbone; empty: that of the weights, or else ResNet-50.
        partial: Whether to accept a file that lacks up to half of the tensors, which keep their random values.
        layer4_stride: Stride of layer4, 1 or 2.
        seed: Random values follow from it.
        pixels: The statistics that images are normalized with; None: those that the weights were trained with.
        usual: The statistics for random weights. Their number of channels is that of the images; if it is not three,
            they are also those for weights that were trained on RGB, whose first convolution is inflated.

    Raises:
        WeightsError: The weights are absent or do not fit, or are for another number of channels; the
            message has the table of names.
        ConfigError: The backbone is to be named.
    """
    weights = None
    stored = ""
    if init != "random":
        weights = init if isinstance(init, Weights) else read_initial(init, name or DEFAULT_BACKBONE)
        stored = stored_name(weights.metadata) if name else known_backbone(weights, usual.channels)
        of_detectors = stored.startswith(DETECTOR_PREFIX) and name.startswith(DETECTOR_PREFIX)
        other_name = stored and name and stored != name and not is_user_code(name) and not of_detectors
        if other_name and recognize_resnet(weights, usual.channels) != name:  # tensors decide, not what they are called
            raise _wrong_backbone(weights.source, stored, name)
    chosen = name or stored or DEFAULT_BACKBONE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(seed, "weights"))
        backbone = build_backbone(chosen, layer4_stride, usual.channels)
    if weights is None:
        backbone.pixels = pixels or usual
        return backbone, InitialWeights("random", chosen, pixels=backbone.pixels)
    trained, _ = start_pixels(chosen, weights.metadata, weights.source)
    refuse_other_channels(trained, usual.channels, weights.source if isinstance(init, Weights) else init)
    try:
        report = load_into(backbone, weights, allow_partial=partial)
    except PlrcError as error:
        recognized = recognize_resnet(weights, usual.channels)
        if recognized in ("", chosen):
            raise
        raise _wrong_backbone(weights.source, recognized, chosen) from error
    if len(report.matched) < len(backbone.net.state_dict()) / 2:  # some short names fit into any network
        raise WeightsError(
            f"{weights.source} has less than half of the tensors of {chosen}; name a file with more\n{report.table()}"
        )
    backbone.pixels = pixels or (trained if trained.channels == usual.channels else usual)
    return backbone, InitialWeights(weights.source, chosen, weights, report, backbone.pixels)


def read_initial(init: str, name: str = DEFAULT_BACKBONE) -> Weights:
    """Read initial weights.

    Args:
        init: As for `initial_backbone`, but not "random".
        name: Name of the backbone whose own weights "pretrained" stands for.

    Raises:
        WeightsError: The weights are absent or cannot be read.
        ConfigError: The library has no weights of its own for this backbone.
    """
    if init == "torchvision" and name not in RESNETS:
        raise ConfigError(f"torchvision has no weights for {name}; write one of {', '.join(RESNETS)}")
    if init in OWN_WEIGHTS:
        return pretrained_weights(name)
    path = Path(init)
    if not path.exists():
        raise WeightsError(
            f"{init} does not exist; initial weights are random, pretrained, a run folder, a detector's folder or a "
            "file of weights"
        )
    return read_weights(checkpoint_of(path))


def recognize_resnet(weights: Weights, channels: int) -> str:
    """Return the torchvision ResNet whose tensors are all in a file.

    Args:
        weights: Content of the file.
        channels: Channels of the images.

    Returns:
        Its name, of several that of the largest; empty if there is none.
    """
    sizes = {}
    for name in RESNETS:
        with torch.device("meta"):
            target = build_backbone(name, in_channels=channels).net.state_dict()
        prefix = find_prefix(weights.state, target)
        needed = {prefix + key: tensor for key, tensor in target.items() if not key.endswith(COUNTER_SUFFIX)}
        if all(_fits(weights.state.get(key), tensor, channels) for key, tensor in needed.items()):
            sizes[name] = len(needed)
    return max(sizes, key=lambda name: sizes[name], default="")


def known_backbone(weights: Weights, channels: int) -> str:
    """Return the backbone that weights belong to: the one that they name, or the torchvision ResNet of their tensors.

    Args:
        weights: Content of the file.
        channels: Channels of the images.

    Returns:
        Its name; empty if it is not known.

    Raises:
        ConfigError: They name a network of user code, which is imported only if the user names it.
    """
    code = stored_function(weights.metadata)
    if code:
        raise ConfigError(
            f"{weights.source} has a network of user code ({code}), which is imported only if you name it: "
            f"if you trust it, write --model.backbone {code} (plrc transfer probe: --backbone)"
        )
    return stored_name(weights.metadata) or recognize_resnet(weights, channels)


def with_own_backbone(config: TransferConfig, inits: Iterable[str]) -> TransferConfig:
    """Let the initial weights decide the backbone, unless the user chose one.

    Args:
        config: The settings; the backbone of a protocol is not the user's.
        inits: Initial weights. The first counts whose backbone is known, folders before files: a run, a detector's
            folder, a file that names its network, or the weights of a torchvision ResNet.

    Raises:
        WeightsError: Weights that are absent or cannot be read.
        ConfigError: A network of user code, which is to be named.
    """
    if "model.backbone" in config.pinned:
        return config
    for init in sorted(inits, key=lambda init: not Path(init).is_dir()):
        backbone = _own_backbone(init, config.data.channels)
        if backbone:
            return config.with_values({"model.backbone": backbone}, pin=False)
    return config


def _own_backbone(init: str, channels: int) -> str:
    """Return the name of the backbone that initial weights belong to; empty if it is not known."""
    if init in ("random", *OWN_WEIGHTS):
        return ""
    if is_detector_folder(Path(init)):
        return f"{DETECTOR_PREFIX}{Path(init)}"
    return known_backbone(read_initial(init), channels)


def with_detector(
    model: nn.Module, initial: InitialWeights, config: TransferConfig, classes: Sequence[str]
) -> InitialWeights:
    """Load the rest of a whole detector into a network that was built around its backbone, in place.

    Args:
        model: The network.
        initial: The initial weights. Those that are not a whole detector of the same kind are left as they are.
        config: The settings.
        classes: Names of the classes.

    Returns:
        The initial weights with what was taken.

    Raises:
        WeightsError: The detector does not fit.
    """
    weights = initial.weights
    if weights is None or whole_detector_of(weights) != config.model.detector:
        return initial
    return replace(initial, detector=take_detector(model, weights, classes))


def verify_initial_weights(model: nn.Module, initial: InitialWeights) -> str:
    """Compare every backbone tensor of a finished network with the file that was loaded into its backbone.

    All tensors of the backbone's module are compared; of a ResNet also copies of its layers elsewhere in the network.

    Returns:
        A sentence with the number of equal tensors.

    Raises:
        WeightsError: Tensors are absent or differ; the message names them.
    """
    weights = initial.weights
    report = initial.report
    if weights is None or report is None:
        return f"{initial.backbone} starts from random weights: there is no file to compare with"
    expected = {}
    for name in report.matched:
        full_name = report.prefix + name
        expected[name] = weights.state[report.renamed.get(full_name, full_name)]
    present = set()
    wrong = []
    for path, name, tensor in _backbone_tensors(model, expected):
        present.add(name)
        if name in expected:
            stored = fitted(expected[name], tensor, initial.pixels.channels)
            if not torch.equal(tensor.cpu(), stored.to(tensor.dtype)):
                wrong.append(path)
    wrong += [f"{name} (absent)" for name in expected if name not in present]
    if initial.detector is not None:
        wrong += differing_tensors(model, initial.detector, weights.state)
    if wrong:
        raise WeightsError(
            f"the detector does not have the weights of {weights.source}, which is a bug of plrc: see {some(wrong)}"
        )
    total = len(expected) + len(report.missing) + len(report.shape_mismatch)
    inside = f"{len(expected)} of {total} backbone tensors in the detector equal {weights.source}"
    if initial.detector is not None:
        taken = len(initial.detector.taken)
        inside += f", and so do {taken} of its other {taken + len(initial.detector.not_taken)} tensors"
    return inside


def _backbone_tensors(model: nn.Module, expected: Iterable[str]) -> Iterator[tuple[str, str, Tensor]]:
    """(name in the network, name in the backbone, tensor); the latter is the longest name that the former ends with.

    Copies outside of the backbone's module are looked for by the names of a ResNet only: those of other networks, such
    as norm.weight, also occur in the rest of a detector.
    """
    names = set(expected)
    for place, module in model.named_modules():
        if not isinstance(module, Backbone):
            continue
        if not isinstance(module.net, ResNetLevels):
            for name, tensor in module.net.state_dict().items():
                yield f"{place}.net.{name}", name, tensor
            return
        names.update(module.net.state_dict())
    for path, tensor in model.state_dict().items():
        parts = path.split(".")
        for start in range(len(parts)):
            ending = ".".join(parts[start:])
            if ending in names:
                yield path, ending, tensor
                break


def _fits(stored: Tensor | None, target: Tensor, channels: int) -> bool:
    """Whether a tensor of a file has the shape of one of a backbone, as it is or inflated."""
    return stored is not None and (stored.shape == target.shape or is_inflatable(stored, target, channels))


def _wrong_backbone(source: str, stored: str, wanted: str) -> WeightsError:
    return WeightsError(
        f"{source} has the weights of a {stored}, not of a {wanted}; write --model.backbone {stored} "
        f"(plrc transfer probe: --backbone), or name the weights of a {wanted}"
    )
