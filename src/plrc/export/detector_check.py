"""`plrc verify`: are the run's weights inside somebody's detector, once their own trainer is set up?

Layer 5: imports model, engine's checkpoints and this folder. Nothing of the detector is run: its tensors are looked at,
by name where it keeps the backbone's names (under any prefix), else by content. A tensor counts as found where it is
equal bit for bit, or after one of the changes that detectors make on purpose: another dtype, a first convolution for
BGR, BatchNorm folded into the convolution before it, BatchNorm kept as scale and shift. Step counters are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plrc.engine.checkpoint import checkpoint_of
from plrc.errors import PlrcError
from plrc.export import BACKBONE
from plrc.model.naming import COUNTER, torchvision_names
from plrc.model.weights import find_prefix, read_weights
from plrc.text import some

NORM = ("weight", "bias", "running_mean", "running_var")
EPSILONS = (1e-5, 1e-3, 1e-6)  # of BatchNorm in common libraries; a file does not say which
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # folded weights
SLIGHT = 0.1  # of a tensor's norm: what differs by less was loaded and has moved since
REVERSED = "channels reversed (BGR)"
SHOWN = 8  # names of each kind on the screen
State = dict[str, Tensor]


@dataclass(frozen=True)
class DetectorReport:
    """What became of each of the run's tensors in the detector."""

    source: str
    prefix: str | None
    """What stands before the backbone's names in the detector; None where it has other names."""
    matched: dict[str, tuple[str, str]]
    """Name in the run: (name in the detector, how it was changed; empty: not at all)."""
    different: dict[str, tuple[str, str]]
    """Name in the run: (name in the detector, what is different)."""
    absent: tuple[str, ...]
    reasons: tuple[str, ...]
    """What usually leads to such a finding."""

    @property
    def total(self) -> int:
        return len(self.matched) + len(self.different) + len(self.absent)

    @property
    def complete(self) -> bool:
        return not self.different and not self.absent

    def to_json(self) -> dict[str, Any]:
        """The report as the command writes it to a file."""
        return {
            "source": self.source,
            "prefix": self.prefix,
            "found": self.matched,
            "different": self.different,
            "absent": self.absent,
            "reasons": self.reasons,
            "complete": self.complete,
        }

    def table(self) -> str:
        """For the screen: the count first, then what is wrong and what it may come from."""
        names = "other names" if self.prefix is None else f"its own names under {self.prefix!r}"
        verdict = "the weights are inside" if self.complete else "the weights are NOT all inside"
        lines = [
            f"{len(self.matched)} of {self.total} tensors of {self.source} are in the detector ({names}): {verdict}"
        ]
        changed: dict[str, list[str]] = {}
        for name, (_, how) in self.matched.items():
            changed.setdefault(how, []).append(name)
        for how, these in changed.items():
            only = "; right only where its images are BGR" if REVERSED in how else ""
            lines += [f"  {how}: {_count(these)}{only}"] if how else []
        wrong = [f"{name} ({what}; {where})" for name, (where, what) in self.different.items()]
        lines += [f"  different: {item}" for item in wrong[:SHOWN]]
        if len(wrong) > SHOWN:
            lines.append(f"  different: {len(wrong) - SHOWN} more")
        if self.absent:
            lines.append(f"  absent: {some(self.absent, SHOWN)}")
        return "\n".join([*lines, *(f"  perhaps: {reason}" for reason in self.reasons)])


def verify_detector(run: str | Path, detector: Any) -> DetectorReport:
    """Look for the weights of a run folder, checkpoint or exported file in a detector.

    `detector`: a torch.nn.Module (wrapped in DistributedDataParallel, torch.compile or a LightningModule or not), or an
    object that holds one as `.model`, such as a trainer. Raises PlrcError where it is neither, or the run unreadable.
    """
    source = checkpoint_of(Path(run))
    state = read_weights(source).state
    student = f"student.{BACKBONE}"
    inner = {name.removeprefix(student): tensor for name, tensor in state.items() if name.startswith(student)}
    ours = {name: tensor for name, tensor in (inner or state).items() if not name.endswith(COUNTER)}
    tensors = _tensors(module_of(detector))
    known = {new: old for old, new in torchvision_names(tensors).items()}  # those of detectron2 and transformers too
    theirs = {new: tensors[old] for new, old in known.items()}
    prefix = find_prefix(theirs, ours)
    named = {name: prefix + name for name in ours if prefix + name in theirs}
    keeps_names = 2 * len(named) >= len(ours)
    found, places = _by_name(ours, theirs, named) if keeps_names else _by_content(ours, theirs)
    found |= _changed_norms(ours, theirs, found)
    different = {
        name: (known[places[name]], _difference(tensor, theirs[places[name]]))
        for name, tensor in ours.items()
        if name not in found and name in places
    }
    absent = tuple(name for name in ours if name not in found and name not in different)
    told = tuple(_reasons(ours, tensors, found, different, absent, keeps_names)) if different or absent else ()
    found = {name: (known.get(where, where), how) for name, (where, how) in found.items()}
    return DetectorReport(str(source), prefix if keeps_names else None, found, different, absent, told)


def module_of(built: Any) -> nn.Module:
    """The network that a function returned, or the one inside the trainer that it returned."""
    inside = built
    while not isinstance(inside, nn.Module):
        if not hasattr(inside, "model"):
            raise PlrcError(
                f"the detector is a {type(built).__name__}; return a torch.nn.Module or an object with it as .model"
            )
        inside = inside.model
    return inside


def _tensors(module: nn.Module) -> State:
    both = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    lost = [name for name, tensor in both if tensor.is_meta]
    if lost:
        raise PlrcError(f"the detector's tensors have no values yet, such as {lost[0]} (device meta); load them first")
    return {name: tensor.detach().cpu() for name, tensor in both}


def _by_name(ours: State, theirs: State, named: Mapping[str, str]) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """(what is equal under its name, where each tensor should be)."""
    found = {}
    for name, where in named.items():
        how = _same(ours[name], theirs[where])
        if how is not None:
            found[name] = where, how
    return found, dict(named)


def _by_content(ours: State, theirs: State) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """(what is equal somewhere, where the other tensors of those modules should be).

    Tensors of one value, such as fresh biases, prove no place by themselves: they count where the rest of their module
    is; and a module of such tensors alone counts in a module of the detector that is nobody else's place.
    """
    mine, others = _modules(ours), _modules(theirs)
    plain = {name for name, tensor in ours.items() if bool((tensor == tensor.flatten()[0]).all())}
    places: dict[str, str] = {}
    for module in sorted(mine, key=lambda module: all(name in plain for name in mine[module].values())):
        leaves = {leaf: ours[name] for leaf, name in mine[module].items()}
        telling = {leaf: tensor for leaf, tensor in leaves.items() if mine[module][leaf] not in plain}
        taken = set() if telling else set(places.values())
        for host, names in others.items():
            equal = {
                leaf for leaf in leaves.keys() & names.keys() if _same(leaves[leaf], theirs[names[leaf]]) is not None
            }
            if host not in taken and (equal & telling.keys() if telling else equal == leaves.keys()):
                places[module] = host
                break
    found, expected = {}, {}
    for module, host in places.items():
        for leaf, name in mine[module].items():
            where = others[host].get(leaf)
            if where is not None:
                how = _same(ours[name], theirs[where])
                expected[name] = where
                if how is not None:
                    found[name] = where, how
    return found, expected


def _modules(state: State) -> dict[str, dict[str, str]]:
    """{module: {last part of a tensor's name: its whole name}}."""
    out: dict[str, dict[str, str]] = {}
    for name in state:
        module, _, leaf = name.rpartition(".")
        out.setdefault(module, {})[leaf] = name
    return out


def _changed_norms(ours: State, theirs: State, found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """BatchNorm that detectors folded into convolutions, or keep as scale and shift; with the folded convolutions."""
    out: dict[str, tuple[str, str]] = {}
    for norm in [name.removesuffix(".running_mean") for name in ours if name.endswith(".running_mean")]:
        parts = [f"{norm}.{leaf}" for leaf in NORM]
        if any(part not in ours for part in parts) or all(part in found for part in parts):
            continue
        gain, bias, mean, variance = (ours[part].double() for part in parts)
        open_ = {n: t.double() for n, t in ours.items() if t.ndim > 1 and len(t) == len(gain) and n not in found}
        for epsilon in EPSILONS:
            scale = gain / (variance + epsilon).sqrt()
            for module, other in _beside(bias - mean * scale, theirs):
                if _near(scale, other) is not None:
                    out |= dict.fromkeys(parts, (module, "BatchNorm as scale and shift"))
                for name, weight in open_.items():
                    how = _near(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), other)
                    if how is not None:
                        folded = "BatchNorm folded into the convolution" + (f", {how}" if how else "")
                        out |= dict.fromkeys([name, *parts], (module, folded))
    return out


def _beside(shift: Tensor, theirs: State) -> Iterator[tuple[str, Tensor]]:
    """(module, tensor) of all that lies in one module of the detector with a tensor equal to `shift`, to rounding.

    A module with statistics of its own is a BatchNorm as it was, and is left out.
    """
    for where, tensor in theirs.items():
        module = where.rpartition(".")[0]
        if f"{module}.running_mean" not in theirs and _near(shift, tensor) is not None:
            yield from ((module, t) for n, t in theirs.items() if n.rpartition(".")[0] == module and n != where)


def _near(expected: Tensor, tensor: Tensor) -> str | None:
    """`_same` to rounding: whether its channels are reversed (empty: as they are); None if it is not near."""
    if tensor.dtype not in ROUNDING or tensor.numel() != expected.numel():
        return None
    if expected.ndim > 1 and tensor.shape != expected.shape:
        return None
    allowed = ROUNDING[tensor.dtype] * float(expected.abs().max())
    tensor = tensor.double().reshape(expected.shape)
    if float((tensor - expected).abs().max()) <= allowed:
        return ""
    turns = expected.ndim == 4 and expected.shape[1] == 3
    return REVERSED if turns and float((tensor - expected.flip(1)).abs().max()) <= allowed else None


def _same(expected: Tensor, tensor: Tensor) -> str | None:
    """How a tensor of the detector is the expected one (empty: as it is); None if it is not."""
    if expected.shape != tensor.shape:
        return None
    cast = expected.to(tensor.dtype)
    kept = tensor.dtype == expected.dtype
    how = "" if kept else f"as {str(tensor.dtype).removeprefix('torch.')}"
    if torch.equal(cast, tensor):
        return how
    if expected.ndim == 4 and expected.shape[1] == 3 and torch.equal(cast.flip(1), tensor):
        return REVERSED + (f", {how}" if how else "")
    return None


def _difference(expected: Tensor, tensor: Tensor) -> str:
    if expected.shape != tensor.shape:
        return f"shape {list(tensor.shape)} instead of {list(expected.shape)}"
    largest = float((expected.double() - tensor.double()).abs().max())
    return f"by up to {largest:.1e}, its largest value is {float(expected.abs().max()):.1e}"


def _reasons(
    ours: State,
    theirs: State,
    found: Mapping[str, Any],
    different: Mapping[str, tuple[str, str]],
    absent: tuple[str, ...],
    keeps_names: bool,
) -> Iterator[str]:
    shapes = {tensor.shape for tensor in theirs.values()}
    fitting = sum(tensor.shape in shapes for tensor in ours.values())
    other_shape = [name for name, (where, _) in different.items() if ours[name].shape != theirs[where].shape]
    large = [name for name in different if ours[name].ndim > 1]  # vectors near 1 or 0 are alike in any two networks
    slight = [name for name in large if _slight(ours[name], theirs[different[name][0]])]
    if 2 * fitting < len(ours) or other_shape:
        yield "the detector's backbone is another architecture than the run's"
    elif not any(tensor.ndim > 1 for name, tensor in ours.items() if name in found) and not slight:
        if keeps_names:
            yield "load_state_dict(strict=False) passes over a wrong prefix without a word: print what it returns"
        else:
            yield "the detector has other names: export for its library (plrc export RUN --to ...), and load that file"
        yield "it was built with other weights, or they were loaded before the trainer initialised the model anew"
    elif different and all(name.endswith(NORM[2:]) for name in different):
        yield "BatchNorm statistics have moved: images have passed in training mode before this check"
    elif slight and len(slight) == len(large):
        yield "they were loaded and have moved since, by training or averaging: check before the first step"
    elif different:
        yield "these parts were initialised anew, or loaded from another file, after the rest"
    if absent and found:
        parts = sorted({name.partition(".")[0] for name in absent})
        yield f"the detector does not have all of {', '.join(parts)}: some detectors leave the last level out"


def _slight(expected: Tensor, tensor: Tensor) -> bool:
    if expected.shape != tensor.shape:
        return False
    moved = (expected.double() - tensor.double()).norm()
    return bool(moved <= SLIGHT * expected.double().norm())


def _count(names: list[str]) -> str:
    return some(names, SHOWN) if len(names) <= SHOWN else f"{len(names)} tensors"
