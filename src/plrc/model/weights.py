"""Weight files -> a backbone: found, checked name by name and shape by shape, copied, compared again.

Layer 2: imports config and this folder. A name in a file is PREFIX + the library's own name (`conv1.weight`, ...). The
prefix (`module.encoder_q.`, `backbone.body.`, `student.backbone.net.`, nothing, ...) is not looked up in a list: it is
the one that gives the most names of the backbone.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plrc.errors import PlrcError
from plrc.files import damage
from plrc.model.backbone import RESNETS, Backbone
from plrc.model.naming import COUNTER, torchvision_names
from plrc.model.pickles import read_arrays
from plrc.model.user_code import is_user_code
from plrc.text import some

FOLLOWERS = frozenset({"teacher", "k", "momentum", "ema", "target"})  # words that name an averaged copy of a network
SHOWN = 12  # names per row of the table


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by their names there (nested dictionaries joined by dots), and what else it says."""

    state: dict[str, Tensor]
    source: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor of the backbone (by the library's names) and of the file (by its own)."""

    prefix: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    """Names inside the backbone's own modules that it does not have: the file holds another network."""
    shape_mismatch: tuple[str, ...]
    ignored: tuple[str, ...]
    """Classifiers, heads, optimiser state and the like: harmless."""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.shape_mismatch)

    def table(self) -> str:
        """One row for each fate: count and first names."""
        rows = {
            "matched": self.matched,
            "missing": self.missing,
            "another shape": self.shape_mismatch,
            "unexpected": self.unexpected,
            "ignored": self.ignored,
        }
        head = f"prefix in the file: {self.prefix or '(none)'}"
        return "\n".join(
            [head, *(f"{fate:<14}{len(names):>5}  {some(names, SHOWN)}".rstrip() for fate, names in rows.items())]
        )


def read_weights(path: str | Path) -> Weights:
    """Read a safetensors or torch file, or a .pkl of numpy arrays, without running any code in it.

    A ResNet of detectron2 or transformers gets torchvision's names.

    Raises PlrcError for a file that is absent, damaged, of another kind, without tensors, or that holds code.
    """
    path = Path(path)
    if path.is_dir():
        raise PlrcError(f"{path} is a folder; name a weights file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise PlrcError(f"cannot read the weights {path}: {error.strerror}") from error
    weights = _read_safetensors(path) if head[8:] == b"{" else _read_torch(path)
    if not weights.state:
        raise PlrcError(f"{path} holds no tensors; name a file with a network's state dictionary")
    known = torchvision_names(weights.state)
    return replace(weights, state={known[name]: tensor for name, tensor in weights.state.items()})


def load_into(backbone: Backbone, weights: Weights, allow_partial: bool = False) -> LoadReport:
    """Copy weights into `backbone.net` in place; a refused file leaves it as it was.

    Raises PlrcError, with the table of names, where a tensor of the backbone is missing or has another shape, or where
    the file holds a larger network of the same family; with `allow_partial` only where nothing fits. Values that are
    not finite are refused in any case. BatchNorm's step counters may be missing: older files lack them.
    """
    target = backbone.net.state_dict()
    prefix = find_prefix(weights.state, target)
    report = _compare(weights.state, target, prefix)
    if not report.matched or not (report.complete or allow_partial):
        raise PlrcError(
            f"{weights.source} does not fit {backbone.name} ({len(report.missing)} tensors missing, "
            f"{len(report.shape_mismatch)} of another shape, {len(report.unexpected)} unexpected) and was not loaded; "
            f"name the weights of a {backbone.name}\n{report.table()}"
        )
    chosen = {name: weights.state[prefix + name] for name in report.matched}
    refuse_non_finite(chosen, weights.source)
    with torch.no_grad():
        for name, tensor in chosen.items():
            target[name].copy_(tensor)
    now = backbone.net.state_dict()
    wrong = [name for name, tensor in chosen.items() if not torch.equal(now[name], tensor.to(now[name]))]
    if wrong:
        raise PlrcError(
            f"after loading {weights.source} these tensors of {backbone.name} differ from it: {some(wrong)}"
        )
    return report


def find_prefix(names: Iterable[str], target: Iterable[str]) -> str:
    """What stands before the target's names in a file: the prefix that gives the most of them.

    Of equals, the network itself goes before an averaged copy of it (FOLLOWERS), then the first in the file.
    """
    target, found = set(target), Counter[str]()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in target:
                found["".join(f"{part}." for part in parts[:start])] += 1
    return max(found, key=lambda prefix: (found[prefix], FOLLOWERS.isdisjoint(re.split("[._]", prefix))), default="")


def stored_name(metadata: dict[str, Any]) -> str:
    """The backbone's name in the metadata of an export or of a checkpoint; empty if plrc knows none such."""
    name = _named(metadata)
    return name if name in RESNETS or name.startswith("timm:") else ""


def stored_code(metadata: dict[str, Any]) -> str:
    """The code of somebody's own that built the backbone, as the metadata name it; it is for the user to name again."""
    name = _named(metadata)
    return name if is_user_code(name) else ""


def _named(metadata: dict[str, Any]) -> str:
    config = metadata.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    return str(metadata.get("backbone", model.get("backbone", "") if isinstance(model, dict) else ""))


def refuse_non_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise PlrcError where a tensor holds NaN or infinity."""
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise PlrcError(f"{source} holds values that are not finite in {some(bad)}; take weights from before that step")


def _compare(state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str) -> LoadReport:
    inner = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    modules = {name.partition(".")[0] for name in target}
    both = [name for name in target if name in inner]
    mismatch = {name for name in both if state[prefix + name].shape != target[name].shape}
    foreign = [name for name in state if not (name.startswith(prefix) and name.removeprefix(prefix) in target)]
    inside = {n for n in foreign if n.startswith(prefix) and n.removeprefix(prefix).partition(".")[0] in modules}
    return LoadReport(
        prefix=prefix,
        matched=tuple(name for name in both if name not in mismatch),
        missing=tuple(n for n in target if n not in inner and not n.endswith(COUNTER)),
        unexpected=tuple(name for name in foreign if name in inside),
        shape_mismatch=tuple(
            f"{name} {list(state[prefix + name].shape)} instead of {list(target[name].shape)}"
            for name in both
            if name in mismatch
        ),
        ignored=tuple(name for name in foreign if name not in inside),
    )


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return Weights(safetensors.torch.load_file(path), str(path), metadata)
    except SafetensorError as error:
        raise PlrcError(f"{path} is a damaged safetensors file ({error}); copy or export it again") from error


def _read_torch(path: Path) -> Weights:
    if zipfile.is_zipfile(path) and (reason := damage(path)):  # which torch.load does not look for
        raise PlrcError(f"{path} is damaged ({reason}); copy it again")
    try:
        content = read_arrays(path) if path.suffix == ".pkl" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise PlrcError(f"{path} is not a weights file; name a .safetensors or a torch file") from error
        raise PlrcError(
            f"{path} holds Python objects beside tensors, which plrc does not run; "
            "where you trust it, load it yourself and save its state_dict() alone"
        ) from error
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise PlrcError(f"{path} cannot be read (damaged, or not a weights file); copy it again") from error
    if not isinstance(content, dict):
        raise PlrcError(f"{path} holds a {type(content).__name__} instead of a dictionary of tensors")
    state = _tensors(content, "")
    outer = {name.partition(".")[0] for name in state}
    return Weights(state, str(path), {str(k): v for k, v in content.items() if str(k).partition(".")[0] not in outer})


def _tensors(content: Mapping[Any, Any], prefix: str) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            out[f"{prefix}{key}"] = value.detach()
        elif isinstance(value, Mapping):
            out |= _tensors(value, f"{prefix}{key}.")
    return out
