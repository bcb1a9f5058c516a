"""Which tensors of a detector are a run's: by name, or by content, bit for bit or after a change made on purpose.

Such changes are: another dtype, a first convolution for BGR, BatchNorm folded into the convolution before it, and
BatchNorm kept as scale and shift.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

NORM = ("weight", "bias", "running_mean", "running_var")
EPSILONS = (1e-5, 1e-3, 1e-6)  # of BatchNorm in common libraries; a file does not hold it
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of folded weights
SLIGHT = 0.1  # of a tensor's norm: a tensor that differs by less was loaded and has moved since
REVERSED = "channels reversed (BGR)"
State = dict[str, Tensor]


class Match(NamedTuple):
    """Where a tensor of the run is in the detector.

    Attributes:
        place: Its name in the detector.
        change: How it was changed, or how it differs; empty if it is equal bit for bit.
    """

    place: str
    change: str


def match_in_place(expected: State, actual: State, places: Mapping[str, str]) -> dict[str, Match]:
    """The tensors that are equal at the place where they should be.

    Args:
        expected: The run's tensors.
        actual: The detector's tensors.
        places: {name in the run: name in the detector}.

    Returns:
        {name in the run: its match}, without those that differ.
    """
    matched = {}
    for name, place in places.items():
        change = _change(expected[name], actual[place])
        if change is not None:
            matched[name] = Match(place, change)
    return matched


def places_by_content(expected: State, actual: State) -> dict[str, str]:
    """Where tensors should be in a detector that has other names, from those whose content is there.

    Tensors that hold a single value, such as fresh biases, prove no place by themselves: they count where the rest of
    their module is. A module of such tensors alone counts in a module that is the place of no other.

    Returns:
        {name in the run: name in the detector} for the tensors of every module whose place is known.
    """
    modules = _by_module(expected)
    hosts = _by_module(actual)
    constant = {name for name, tensor in expected.items() if bool((tensor == tensor.flatten()[0]).all())}
    distinctive_first = sorted(modules, key=lambda module: constant.issuperset(modules[module].values()))
    host_of: dict[str, str] = {}
    for module in distinctive_first:
        leaves = modules[module]
        distinctive = {leaf for leaf, name in leaves.items() if name not in constant}
        taken = set() if distinctive else set(host_of.values())
        for host, host_leaves in hosts.items():
            if host in taken:
                continue
            equal = _equal_leaves(expected, leaves, actual, host_leaves)
            if equal & distinctive or (not distinctive and equal == leaves.keys()):
                host_of[module] = host
                break
    places = {}
    for module, host in host_of.items():
        for leaf, name in modules[module].items():
            if leaf in hosts[host]:
                places[name] = hosts[host][leaf]
    return places


def _by_module(state: State) -> dict[str, dict[str, str]]:
    """{module: {last part of a tensor's name: its whole name}}."""
    modules: dict[str, dict[str, str]] = {}
    for name in state:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = name
    return modules


def _equal_leaves(
    expected: State, leaves: Mapping[str, str], actual: State, host_leaves: Mapping[str, str]
) -> set[str]:
    """The last parts of names whose tensors are equal in a module of the run and a module of the detector."""
    shared = leaves.keys() & host_leaves.keys()
    return {leaf for leaf in shared if _change(expected[leaves[leaf]], actual[host_leaves[leaf]]) is not None}


def match_changed_norms(expected: State, actual: State, matched: Collection[str]) -> dict[str, Match]:
    """Match BatchNorm that the detector folded into convolutions, or keeps as scale and shift.

    Args:
        expected: The run's tensors.
        actual: The detector's tensors.
        matched: Names of the run's tensors that are known to be in the detector.

    Returns:
        {name in the run: its match}, for the tensors of such BatchNorms and of the convolutions they are folded into.
    """
    changed: dict[str, Match] = {}
    for name in expected:
        norm = name.removesuffix(".running_mean")
        if norm == name:
            continue
        parts = [f"{norm}.{leaf}" for leaf in NORM]
        complete = all(part in expected for part in parts)
        if complete and not all(part in matched for part in parts):
            changed |= _match_changed_norm(parts, expected, actual, matched)
    return changed


def _match_changed_norm(parts: list[str], expected: State, actual: State, matched: Collection[str]) -> dict[str, Match]:
    """Match a single BatchNorm, whose tensors have the names `parts` in the order of NORM."""
    gain, bias, mean, variance = (expected[part].double() for part in parts)
    changed: dict[str, Match] = {}
    for epsilon in EPSILONS:
        scale = gain / (variance + epsilon).sqrt()
        for module, tensor in _next_to_shift(bias - mean * scale, actual):
            if _near(scale, tensor) is not None:
                changed |= dict.fromkeys(parts, Match(module, "BatchNorm as scale and shift"))
            for name, weight in expected.items():
                if name in matched or weight.ndim < 2 or len(weight) != len(gain):
                    continue
                folded = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
                change = _near(folded, tensor)
                if change is not None:
                    how = ", ".join(filter(None, ("BatchNorm folded into the convolution", change)))
                    changed |= dict.fromkeys([name, *parts], Match(module, how))
    return changed


def _next_to_shift(shift: Tensor, actual: State) -> Iterator[tuple[str, Tensor]]:
    """(module, tensor) of every other tensor in a module of the detector that holds a tensor near `shift`.

    A module with statistics of its own is an unchanged BatchNorm and is left out.
    """
    for place, tensor in actual.items():
        module = place.rpartition(".")[0]
        if f"{module}.running_mean" in actual or _near(shift, tensor) is None:
            continue
        for name, other in actual.items():
            if name.rpartition(".")[0] == module and name != place:
                yield module, other


def _near(expected: Tensor, actual: Tensor) -> str | None:
    """How a tensor is the expected one up to rounding (empty: as it is, or REVERSED); None if it is not."""
    if actual.dtype not in ROUNDING or actual.numel() != expected.numel():
        return None
    if expected.ndim > 1 and actual.shape != expected.shape:
        return None
    allowed = ROUNDING[actual.dtype] * float(expected.abs().max())
    values = actual.double().reshape(expected.shape)
    if float((values - expected).abs().max()) <= allowed:
        return ""
    if _takes_colors(expected) and float((values - expected.flip(1)).abs().max()) <= allowed:
        return REVERSED
    return None


def _change(expected: Tensor, actual: Tensor) -> str | None:
    """How a tensor of the detector is the expected one (empty: bit for bit); None if it is not."""
    if expected.shape != actual.shape:
        return None
    cast = expected.to(actual.dtype)
    changes = []
    if not torch.equal(cast, actual):
        if not _takes_colors(expected) or not torch.equal(cast.flip(1), actual):
            return None
        changes.append(REVERSED)
    if actual.dtype != expected.dtype:
        changes.append(f"as {str(actual.dtype).removeprefix('torch.')}")
    return ", ".join(changes)


def _takes_colors(weight: Tensor) -> bool:
    """Whether it is the weight of a convolution on images of three channels."""
    return weight.ndim == 4 and weight.shape[1] == 3


def describe_difference(expected: Tensor, actual: Tensor) -> str:
    """How a tensor in the right place differs from the run's."""
    if expected.shape != actual.shape:
        return f"shape {list(actual.shape)} instead of {list(expected.shape)}"
    largest = float((expected.double() - actual.double()).abs().max())
    return f"by up to {largest:.1e}, its largest value is {float(expected.abs().max()):.1e}"


def has_moved_slightly(expected: Tensor, actual: Tensor) -> bool:
    """Whether a tensor differs by little, as after some training, instead of being another."""
    if expected.shape != actual.shape:
        return False
    distance = (expected.double() - actual.double()).norm()
    return bool(distance <= SLIGHT * expected.double().norm())
