"""`plrc verify`: are a run's weights inside a detector, after its own trainer has set it up?

The detector is not run: only its tensors are read. `tensor_match.py` decides which of them are the run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plrc.engine.checkpoint import checkpoint_of
from plrc.errors import ExportError
from plrc.export.target import without_counters
from plrc.export.tensor_match import (
    REVERSED,
    Match,
    State,
    describe_difference,
    has_moved_slightly,
    match_changed_norms,
    match_in_place,
    places_by_content,
)
from plrc.export.write import BACKBONE_PREFIX
from plrc.model.naming import torchvision_names
from plrc.model.prefixes import find_prefix, is_averaged_copy, prefixes
from plrc.model.weights import read_weights
from plrc.text import some

STATISTICS = ("running_mean", "running_var")
SHOWN = 8  # names of each kind in the table


@dataclass(frozen=True)
class DetectorReport:
    """Which tensors of a run are in a detector. BatchNorm's step counters are not compared.

    Attributes:
        source: The checkpoint or file whose weights were looked for.
        prefix: What stands before the backbone's names in the detector; None if the detector uses other names.
        matched: {name in the run: name in the detector, and how the detector's library changed the tensor on purpose}.
        different: {name in the run: name in the detector, and how the tensor differs}.
        absent: Names in the run that the detector has no tensor for.
        unequal_copies: What stands before the names of further copies of the backbone that do not hold the run's
            weights; averaged copies, such as `ema.`, need not hold them.
        reasons: Likely causes of what is different or absent.
    """

    source: str
    prefix: str | None
    matched: dict[str, Match]
    different: dict[str, Match]
    absent: tuple[str, ...]
    unequal_copies: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of the run's tensors."""
        return len(self.matched) + len(self.different) + len(self.absent)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the run is in the detector, and in each copy of the backbone but averaged ones."""
        return not self.different and not self.absent and not self.unequal_copies

    def to_json(self) -> dict[str, Any]:
        """The report as the command writes it to a file."""
        return {
            "source": self.source,
            "prefix": self.prefix,
            "matched": self.matched,
            "different": self.different,
            "absent": self.absent,
            "unequal_copies": self.unequal_copies,
            "reasons": self.reasons,
            "complete": self.complete,
        }

    def table(self) -> str:
        """The report for the screen: the count first, then what is wrong and its likely causes."""
        names = "other names" if self.prefix is None else f"its own names under {self.prefix!r}"
        verdict = "the weights are inside" if self.complete else "the weights are NOT all inside"
        lines = [
            f"{len(self.matched)} of {self.total} tensors of {self.source} are in the detector ({names}): {verdict}",
            *self._change_lines(),
        ]
        for name, (place, difference) in list(self.different.items())[:SHOWN]:
            lines.append(f"  different: {name} ({difference}; {place})")
        if len(self.different) > SHOWN:
            lines.append(f"  different: {len(self.different) - SHOWN} more")
        if self.absent:
            lines.append(f"  absent: {some(self.absent, SHOWN)}")
        lines += [
            f"  another copy of the backbone, {copy!r}, does not hold these weights: check which one is used"
            for copy in self.unequal_copies
        ]
        lines += [f"  perhaps: {reason}" for reason in self.reasons]
        return "\n".join(lines)

    def _change_lines(self) -> list[str]:
        """One line for each kind of change that detectors make on purpose."""
        names_by_change: dict[str, list[str]] = {}
        for name, match in self.matched.items():
            if match.change:
                names_by_change.setdefault(match.change, []).append(name)
        lines = []
        for change, names in names_by_change.items():
            shown = ", ".join(names) if len(names) <= SHOWN else f"{len(names)} tensors"
            condition = "; right only if the detector's images are BGR" if REVERSED in change else ""
            lines.append(f"  {change}: {shown}{condition}")
        return lines


def verify_detector(run: str | Path, detector: Any) -> DetectorReport:
    """Look for the weights of a run in a detector.

    Args:
        run: Run folder (its newest checkpoint), checkpoint or exported file.
        detector: A torch.nn.Module, also one wrapped in DistributedDataParallel, torch.compile or a LightningModule,
            or an object that holds one as `.model`, such as a trainer.

    Returns:
        Which tensors of the run are in the detector, and likely causes if some are not.

    Raises:
        ExportError: `detector` is not a module and holds none, or its tensors have no values.
        WeightsError: The run has no checkpoint, or its weights cannot be read.
    """
    source = checkpoint_of(Path(run))
    expected = _backbone_tensors(read_weights(source).state)
    tensors = _tensors_of(find_module(detector))
    # Tensors of the run and of the detector are compared by torchvision's names.
    original_names = {new: old for old, new in torchvision_names(tensors).items()}
    actual = {new: tensors[old] for new, old in original_names.items()}
    prefix = find_prefix(actual, expected)
    places = _places_under(prefix, expected, actual)
    keeps_names = 2 * len(places) >= len(expected)  # at least half of them
    if not keeps_names:
        places = places_by_content(expected, actual)
    matched = match_in_place(expected, actual, places)
    matched |= match_changed_norms(expected, actual, matched)
    different: dict[str, Match] = {}
    for name, tensor in expected.items():
        if name in places and name not in matched:
            different[name] = Match(places[name], describe_difference(tensor, actual[places[name]]))
    absent = tuple(name for name in expected if name not in matched and name not in different)
    return DetectorReport(
        source=str(source),
        prefix=prefix if keeps_names else None,
        matched=_with_original_names(matched, original_names),
        different=_with_original_names(different, original_names),
        absent=absent,
        unequal_copies=_unequal_copies(prefix, expected, actual) if keeps_names else (),
        reasons=tuple(_likely_causes(expected, actual, matched, different, absent, keeps_names)),
    )


def find_module(built: Any) -> nn.Module:
    """The network that the user's function built, or the network inside the trainer that it built.

    Raises:
        ExportError: `built` is not a module and holds none as `.model`.
    """
    inside = built
    while not isinstance(inside, nn.Module):
        if not hasattr(inside, "model"):
            raise ExportError(
                f"the detector is a {type(built).__name__}; return a torch.nn.Module or an object with it as .model"
            )
        inside = inside.model
    return inside


def _backbone_tensors(state: State) -> State:
    """The backbone's tensors under its own names: in a checkpoint those of the student, in another file all tensors."""
    start = f"student.{BACKBONE_PREFIX}"
    student = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
    return without_counters(student or state)


def _tensors_of(module: nn.Module) -> State:
    """Parameters and buffers on the CPU, tied ones under each of their names."""
    tensors: State = {}
    for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            if tensor.is_meta:
                raise ExportError(
                    f"the detector's tensors have no values yet, such as {name} (device meta); load them first"
                )
            tensors[name] = tensor.detach().cpu()
    return tensors


def _places_under(prefix: str, expected: State, actual: State) -> dict[str, str]:
    """{name in the run: name in the detector} for the run's names that the detector has under a prefix."""
    return {name: prefix + name for name in expected if prefix + name in actual}


def _unequal_copies(prefix: str, expected: State, actual: State) -> tuple[str, ...]:
    """Prefixes of copies of the backbone that hold fewer of the run's tensors than `prefix`; averaged ones left out."""

    def count(copy: str) -> int:
        return len(match_in_place(expected, actual, _places_under(copy, expected, actual)))

    copies = [copy for copy in prefixes(actual, expected) if copy != prefix and not is_averaged_copy(copy)]
    return tuple(copy for copy in copies if count(copy) < count(prefix))


def _with_original_names(matches: Mapping[str, Match], original_names: Mapping[str, str]) -> dict[str, Match]:
    """The same matches, with the detector's own names in place of torchvision's."""
    renamed = {}
    for name, (place, change) in matches.items():
        renamed[name] = Match(original_names.get(place, place), change)
    return renamed


def _likely_causes(
    expected: State,
    actual: State,
    matched: Mapping[str, Match],
    different: Mapping[str, Match],
    absent: tuple[str, ...],
    keeps_names: bool,
) -> list[str]:
    """The usual causes of such a result; empty if every tensor is in the detector."""
    causes: list[str] = []
    if not different and not absent:
        return causes
    # Only tensors with more than one dimension: biases and BatchNorm's vectors are similar in any two networks.
    weights = [name for name in different if expected[name].ndim > 1]
    moved = [name for name in weights if has_moved_slightly(expected[name], actual[different[name].place])]
    weights_matched = any(expected[name].ndim > 1 for name in matched)
    if _is_another_architecture(expected, actual, different):
        causes.append("the detector's backbone is another architecture than the run's")
    elif not weights_matched and not moved:
        if keeps_names:
            causes.append("load_state_dict(strict=False) silently ignores a wrong prefix: print what it returns")
        else:
            causes.append(
                "the detector has other names: export for its library (plrc export RUN --to ...), and load that file"
            )
        causes.append(
            "the detector has other weights, or its trainer initialized the model again after they were loaded"
        )
    elif different and all(name.endswith(STATISTICS) for name in different):
        causes.append("BatchNorm statistics have changed: the model has run in training mode before this check")
    elif moved and len(moved) == len(weights):  # every weight that differs, differs only slightly
        causes.append(
            "the weights were loaded and have changed since, by training or averaging: check before the first step"
        )
    elif different:
        causes.append("the different tensors were initialized again, or loaded from another file, after the rest")
    if absent and matched:
        parts = sorted({name.partition(".")[0] for name in absent})
        causes.append(f"the detector does not have all of {', '.join(parts)}: some detectors leave the last level out")
    return causes


def _is_another_architecture(expected: State, actual: State, different: Mapping[str, Match]) -> bool:
    """Whether most shapes of the run occur nowhere in the detector, or a different tensor has another shape too."""
    shapes = {tensor.shape for tensor in actual.values()}
    num_known = sum(tensor.shape in shapes for tensor in expected.values())
    if 2 * num_known < len(expected):
        return True
    return any(expected[name].shape != actual[match.place].shape for name, match in different.items())
