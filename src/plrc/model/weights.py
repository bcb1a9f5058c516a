"""Load a weights file into a backbone: check names and shapes, copy the tensors, then check that they are equal.

A name in a file is PREFIX + the library's own name (`conv1.weight`, ...). The prefix (`module.encoder_q.`,
`backbone.body.`, `student.backbone.net.`, empty, ...) does not come from a list: it is the prefix under which the
file holds the most names of the backbone.
"""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plrc.errors import PlrcError, WeightsError
from plrc.files import damage
from plrc.model.backbone import RESNETS, Backbone, build_backbone
from plrc.model.fingerprint import describe_difference, fingerprint, from_text, twin_of
from plrc.model.naming import COUNTER_SUFFIX, torchvision_names
from plrc.model.pickles import read_arrays
from plrc.model.precision import conversion_notes
from plrc.model.prefixes import find_prefix, prefixes
from plrc.model.start_pixels import foreign_conventions
from plrc.model.stem import fitted, is_inflatable
from plrc.model.timm_networks import plain_names
from plrc.model.transformers_networks import WEIGHTS_FILE, detector_type, read_tensors
from plrc.model.user_code import is_user_code
from plrc.text import some

SHOWN = 12  # names per row of the table


@dataclass(frozen=True)
class Weights:
    """The content of a weights file.

    Attributes:
        state: Tensors by their names in the file, those of nested dictionaries joined by dots.
        source: Path of the file.
        metadata: Entries of the file that contain no tensors.
    """

    state: dict[str, Tensor]
    source: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class LoadReport:
    """How the tensors of a file fit those of a backbone.

    Tensors of the backbone have the names of its library; unexpected and ignored tensors have the names in the file.

    Attributes:
        prefix: What stands before the backbone's names in the file.
        matched: Tensors of the backbone that the file holds in the right shape.
        missing: Tensors of the backbone that the file does not hold.
        unexpected: Tensors of the file that are in a module of the backbone (such as layer3), but not in the backbone
            itself. They show that the file is from a larger or another network.
        shape_mismatch: Tensors of the backbone that the file holds in another shape.
        ignored: The other tensors of the file, such as classifiers, heads and optimizer state.
        renamed: {prefix + name in the backbone: name in the file}, only of tensors whose names differ.
        warnings: What the user should check, such as a second copy of the network in the file.
        inflated: Those of `matched` that the file holds for RGB, and the backbone for other channels (`stem.inflate`).
    """

    prefix: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shape_mismatch: tuple[str, ...]
    ignored: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    inflated: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no tensor is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.shape_mismatch)

    def table(self) -> str:
        """One row per field: count and first names."""
        rows = {
            "matched": self.matched,
            "missing": self.missing,
            "another shape": self.shape_mismatch,
            "unexpected": self.unexpected,
            "ignored": self.ignored,
        }
        lines = [f"prefix in the file: {self.prefix or '(none)'}"]
        for row, names in rows.items():
            lines.append(f"{row:<14}{len(names):>5}  {some(names, SHOWN)}".rstrip())
        if self.inflated:
            lines.append(f"{'inflated':<14}{len(self.inflated):>5}  {some(self.inflated, SHOWN)}")
        return "\n".join(lines)


def read_weights(path: str | Path) -> Weights:
    """Read a safetensors or torch file, or a .pkl of numpy arrays, without running any code in it.

    Args:
        path: The file, or the folder of a detector of transformers, which the library itself reads.

    Returns:
        Its tensors and metadata. A ResNet of detectron2 or transformers gets torchvision's names.

    Raises:
        WeightsError: The file is missing, damaged, of another kind, holds no tensors, or holds code.
    """
    path = Path(path)
    if detector_type(path):
        return Weights(*read_tensors(path.parent if path.name == WEIGHTS_FILE else path))
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; name a weights file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from error
    # In a safetensors file, a JSON header follows the eight bytes of its length.
    weights = _read_safetensors(path) if head[8:] == b"{" else _read_torch(path)
    if not weights.state:
        raise WeightsError(f"{path} holds no tensors; name a file with a network's state dictionary")
    new_names = torchvision_names(weights.state)
    return replace(weights, state={new_names[name]: tensor for name, tensor in weights.state.items()})


def load_into(backbone: Backbone, weights: Weights, allow_partial: bool = False) -> LoadReport:
    """Copy weights into `backbone.net` in place; the backbone does not change if the file is refused.

    BatchNorm's step counters may be missing: older files do not have them.

    Args:
        backbone: The backbone to fill.
        weights: The file's content.
        allow_partial: Accept a file of which only some tensors fit, and copy these.

    Returns:
        Which tensors were copied, and which were not.

    Raises:
        WeightsError: Without `allow_partial`: a tensor of the backbone is missing or has another shape, or the file
            holds a larger network of the same family. Always: no tensor fits, or a value is not finite.
    """
    target = backbone.net.state_dict()
    renamed = plain_names(backbone.net, list(weights.state)) if backbone.reading == "levels" else {}
    state = {renamed.get(name, name): tensor for name, tensor in weights.state.items()}
    prefix = find_prefix(state, target)
    report = replace(
        _compare(state, target, prefix, backbone.in_channels),
        renamed={new: name for name, new in renamed.items()},
        warnings=(*_warnings(backbone, weights, state, prefix), *conversion_notes(state, prefix, weights.metadata)),
    )
    accepted = report.matched and (report.complete or allow_partial)
    if not accepted:
        raise WeightsError(
            f"{weights.source} does not fit {backbone.name} ({len(report.missing)} tensors missing, "
            f"{len(report.shape_mismatch)} of another shape, {len(report.unexpected)} unexpected) and was not loaded; "
            f"name the weights of a {backbone.name}\n{report.table()}"
        )
    chosen = {name: fitted(state[prefix + name], target[name], backbone.in_channels) for name in report.matched}
    refuse_non_finite(chosen, weights.source)
    before = {name: target[name].clone() for name in chosen}
    with torch.no_grad():
        for name, tensor in chosen.items():
            target[name].copy_(tensor)
    loaded = backbone.net.state_dict()
    wrong = [name for name, tensor in chosen.items() if not torch.equal(loaded[name], tensor.to(loaded[name]))]
    if wrong:
        raise WeightsError(
            f"after loading {weights.source} these tensors of {backbone.name} differ from it: {some(wrong)}"
        )
    difference = _other_features(backbone, weights) if report.complete and not report.inflated else ""
    if difference:
        backbone.net.load_state_dict(before, strict=False)
        raise WeightsError(
            f"{weights.source} has the tensors of {backbone.name}, but belongs to another network or version of it, "
            f"{_backbone_name(weights.metadata)}: {difference}; name that backbone"
        )
    return report


def _other_features(backbone: Backbone, weights: Weights) -> str:
    """How the features of a loaded backbone differ from those that plrc's file belongs to; empty if they do not."""
    expected = from_text(weights.metadata.get("fingerprint"))
    stored = stored_name(weights.metadata)
    if not expected and stored and stored != backbone.name:  # a checkpoint: it names its network, which can be built
        with contextlib.suppress(PlrcError, RuntimeError), torch.random.fork_rng(devices=[]):
            other = build_backbone(stored, in_channels=backbone.in_channels)
            other.net.load_state_dict(backbone.net.state_dict())
            expected = fingerprint(other)
    return describe_difference(fingerprint(backbone), expected) if expected else ""


def _warnings(backbone: Backbone, weights: Weights, state: Mapping[str, Tensor], prefix: str) -> tuple[str, ...]:
    """What to check about a file that does not name its network."""
    if _backbone_name(weights.metadata):
        return ()
    warnings = [*foreign_conventions(weights.metadata, weights.source)]
    others = [copy for copy in prefixes(state, backbone.net.state_dict()) if copy != prefix]
    if others:
        warnings.append(
            f"{weights.source} holds {len(others) + 1} copies of {backbone.name}; {prefix or 'that without a prefix'} "
            f"was taken, not {some(copy or 'that without a prefix' for copy in others)}; to take another, save it alone"
        )
    twin = twin_of(backbone)
    if twin:
        warnings.append(
            f"{weights.source} does not name its network, and {twin} has the same tensors as {backbone.name} but other "
            f"padding, so that its features differ: make sure that these are weights of {backbone.name}"
        )
    return tuple(warnings)


def stored_name(metadata: dict[str, Any]) -> str:
    """The backbone's name in the metadata of an export or checkpoint; empty if it is user code."""
    name = _backbone_name(metadata)
    return name if name in RESNETS or name.startswith(("timm:", "transformers:")) else ""


def stored_function(metadata: dict[str, Any]) -> str:
    """The name of the user's function that built the backbone; empty if the backbone is from a library.

    The name is only for messages: the function is imported only if the user names it in the command or call.
    """
    name = _backbone_name(metadata)
    return name if is_user_code(name) else ""


def _backbone_name(metadata: dict[str, Any]) -> str:
    """The backbone's name in the metadata of an export, or in the configuration of a checkpoint."""
    if "backbone" in metadata:
        return str(metadata["backbone"])
    config = metadata.get("config")
    if not isinstance(config, dict):
        return ""
    model = config.get("model")
    if not isinstance(model, dict):
        return ""
    return str(model.get("backbone", ""))


def refuse_non_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors hold neither NaN nor infinity.

    Args:
        state: Tensors by name.
        source: Where they come from; the error message starts with it.

    Raises:
        WeightsError: Some tensors do; the message has their names.
    """
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise WeightsError(
            f"{source} holds values that are not finite in {some(bad)}; take weights from an earlier step"
        )


def _compare(state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str, channels: int) -> LoadReport:
    """Compare the names and shapes of a file with those of a backbone that takes images of so many channels."""
    matched: list[str] = []
    missing: list[str] = []
    shape_mismatch: list[str] = []
    inflated: list[str] = []
    for name, tensor in target.items():
        stored = state.get(prefix + name)
        if stored is None:
            if not name.endswith(COUNTER_SUFFIX):
                missing.append(name)
        elif stored.shape == tensor.shape:
            matched.append(name)
        elif is_inflatable(stored, tensor, channels):
            matched.append(name)
            inflated.append(name)
        else:
            shape_mismatch.append(f"{name} {list(stored.shape)} instead of {list(tensor.shape)}")
    modules = {name.partition(".")[0] for name in target}
    unexpected: list[str] = []
    ignored: list[str] = []
    for name in state:
        inner_name = name.removeprefix(prefix)
        if not name.startswith(prefix):
            ignored.append(name)
        elif inner_name not in target:
            if inner_name.partition(".")[0] in modules:
                unexpected.append(name)
            else:
                ignored.append(name)
    report = LoadReport(
        prefix, tuple(matched), tuple(missing), tuple(unexpected), tuple(shape_mismatch), tuple(ignored)
    )
    return replace(report, inflated=tuple(inflated))


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return Weights(safetensors.torch.load_file(path), str(path), metadata)
    except SafetensorError as error:
        raise WeightsError(f"{path} is a damaged safetensors file ({error}); copy or export it again") from error


def _read_torch(path: Path) -> Weights:
    if zipfile.is_zipfile(path):
        reason = damage(path)  # torch.load does not compare the checksums
        if reason:
            raise WeightsError(f"{path} is damaged ({reason}); copy it again")
        if _is_torchscript(path):
            raise WeightsError(f"{path} is a TorchScript program; load it yourself and save its state_dict() alone")
    try:
        content = read_arrays(path) if path.suffix == ".pkl" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):  # torch's message has this word if it refused a class or function
            raise WeightsError(f"{path} is not a weights file; name a .safetensors or a torch file") from error
        raise WeightsError(
            f"{path} holds Python objects in addition to tensors, which plrc does not run; "
            "if you trust it, load it yourself and save its state_dict() alone"
        ) from error
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise WeightsError(f"{path} cannot be read (damaged, or not a weights file); copy it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__} instead of a dictionary of tensors")
    state = _flatten(content, "")
    outer_names = {name.partition(".")[0] for name in state}
    without_tensors = [key for key in content if str(key).partition(".")[0] not in outer_names]
    return Weights(state, str(path), {str(key): content[key] for key in without_tensors})


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _flatten(content: Mapping[Any, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors of nested dictionaries, their names joined by dots."""
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            state[f"{prefix}{key}"] = value.detach()
        elif isinstance(value, Mapping):
            state |= _flatten(value, f"{prefix}{key}.")
    return state
