"""A whole detector of transformers as initial weights: everything but a class head for other classes is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plrc.errors import WeightsError
from plrc.model.transformers_networks import detector_type, read_settings
from plrc.model.weights import Weights, refuse_non_finite
from plrc.text import some
from plrc.transfer.detectors.transformers import BODY, SquareDetector


@dataclass(frozen=True)
class DetectorWeights:
    """What was taken of a detector, apart from its backbone.

    Attributes:
        kind: Its kind, a value of `model.detector`.
        taken: {name in the network: name in the detector's own network}.
        not_taken: Names in the network of tensors with a row for each class, which keep their random values.
        reason: Why these are not taken; empty if all are.
    """

    kind: str
    taken: dict[str, str]
    not_taken: tuple[str, ...]
    reason: str

    def line(self) -> str:
        """Summarize for the user."""
        text = f"the whole {self.kind} is taken: {len(self.taken)} tensors besides those of the backbone"
        if not self.not_taken:
            return f"{text}, with its classes"
        return f"{text}; {len(self.not_taken)} of its class head keep random values ({self.reason})"


def whole_detector_of(weights: Weights | None) -> str:
    """Return the kind of the detector that a file of weights holds as a whole; empty for all other weights."""
    return "" if weights is None else detector_type(Path(weights.source))


def take_detector(model: nn.Module, weights: Weights, classes: Sequence[str]) -> DetectorWeights:
    """Load the parts of a detector that do not belong to its backbone, in place.

    The tensors with a row for each class are taken only if the classes have the same names in the same order.

    Args:
        model: The network, built for this kind of detector; its backbone is loaded already.
        weights: The content of the detector's folder.
        classes: Names of the classes.

    Raises:
        WeightsError: A tensor is absent, has another shape, or is not finite.
    """
    assert isinstance(model, SquareDetector), "only networks of transformers are built from a folder"
    kind = detector_type(Path(weights.source))
    network: Any = model.network
    names = _own_names(model)
    by_class = _tensors_by_class(network)
    stored_classes = _stored_classes(Path(weights.source).parent)
    reason = ""
    if [name.lower() for name in stored_classes] != [name.lower() for name in classes]:
        reason = f"its classes are {some(stored_classes, 4)}; those of the labels are {some(list(classes), 4)}"
    taken = {}
    not_taken = []
    wrong = []
    state = model.state_dict()
    for name, own_name in names.items():
        stored = weights.state.get(own_name)
        if reason and own_name in by_class:
            not_taken.append(name)
        elif stored is None or stored.shape != state[name].shape:
            wrong.append(f"{own_name} ({'absent' if stored is None else list(stored.shape)})")
        else:
            taken[name] = own_name
    if wrong:
        raise WeightsError(
            f"{weights.source} does not fit the detector that is built ({len(wrong)} tensors are absent or of another "
            f"shape: {some(wrong)}); name this folder as the backbone: --model.backbone "
            f"transformers:{Path(weights.source).parent}"
        )
    refuse_non_finite({name: weights.state[own_name] for name, own_name in taken.items()}, weights.source)
    with torch.no_grad():
        for name, own_name in taken.items():
            state[name].copy_(weights.state[own_name])
    return DetectorWeights(kind, taken, tuple(not_taken), reason)


def differing_tensors(model: nn.Module, detector: DetectorWeights, stored: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors in the network that are not those of the detector's file."""
    state = model.state_dict()
    wrong = []
    for name, own_name in detector.taken.items():
        tensor = state[name].cpu()
        if not torch.equal(tensor, stored[own_name].to(tensor.dtype)):
            wrong.append(name)
    return wrong


def _own_names(model: SquareDetector) -> dict[str, str]:
    """{name in the model: name in the library's network}, without the tensors of the backbone."""
    names = {}
    for name in model.state_dict():
        own_name = name.removeprefix("network.")
        if own_name != name and f".{BODY}." not in own_name:
            names[name] = own_name
    return names


def _tensors_by_class(network: Any) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    settings = network.config.__class__.from_dict(network.config.to_dict())
    settings.num_labels = network.config.num_labels + 1
    with torch.device("meta"):
        larger = type(network)(settings).state_dict()
    return {
        name for name, tensor in network.state_dict().items() if name in larger and larger[name].shape != tensor.shape
    }


def _stored_classes(folder: Path) -> list[str]:
    names = read_settings(folder).id2label
    return [str(names[index]) for index in sorted(names)]
