"""Initial weights of a detector's backbone: where they come from, and the proof that they are inside.

Layer 5: imports engine and below. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from plrc import rng
from plrc.engine.checkpoint import checkpoint_of
from plrc.errors import PlrcError
from plrc.model.backbone import RESNETS, Backbone, build_backbone
from plrc.model.naming import COUNTER
from plrc.model.user_code import is_user_code
from plrc.model.weights import LoadReport, Weights, find_prefix, load_into, read_weights, stored_code, stored_name
from plrc.text import note, some

USUAL = "resnet50"
SUPERVISED = "IMAGENET1K_V1"  # of torchvision's weights, those that the literature compares with


@dataclass(frozen=True)
class Initial:
    """source: the file, or "random". weights, report: None for random weights."""

    source: str
    backbone: str
    weights: Weights | None = None
    report: LoadReport | None = None

    def lines(self) -> list[str]:
        """What to tell the user: counts, and the names of what does not fit."""
        if self.report is None:
            return [f"{self.backbone}, random weights"]
        matched, aside = len(self.report.matched), len(self.report.ignored)
        return [
            f"{self.backbone} with the weights of {self.source}: {matched} tensors match, {aside} are left aside",
            *note("tensors that the file lacks", self.report.missing),
            *note("tensors of another shape", self.report.shape_mismatch),
            *note("tensors that the backbone lacks", self.report.unexpected),
        ]

    def table(self) -> str:
        """The fate of every tensor."""
        return "\n".join([*self.lines()[:1], *(self.report.table().splitlines() if self.report else ())])


def initial_backbone(
    init: str, name: str = "", partial: bool = False, layer4_stride: int = 2, seed: int = 0
) -> tuple[Backbone, Initial]:
    """The backbone `name` with the weights that `init` names: random, torchvision, a run folder, or a file.

    Without `name`, the backbone is the one that the weights are of, else ResNet-50. Of a run, the newest checkpoint's
    student is taken. `partial`: take a file that lacks tensors (at most half); these keep their random values,
    which follow from `seed`. Raises PlrcError where the weights are absent or do not fit, with the table of names.
    """
    weights = None if init == "random" else read_weights(_file(init, name or USUAL))
    found = stored_name(weights.metadata) if weights else ""
    code = stored_code(weights.metadata) if weights else ""
    if weights and code and not name:
        raise PlrcError(
            f"{weights.source} holds a network of somebody's own code ({code}), which is imported only where you name "
            f"it; trust it and write --model.backbone {code} (plrc transfer probe: --backbone)"
        )
    if weights and not (found or name):
        found = _architecture(weights)
    if weights and found and name and found != name and not is_user_code(name):
        raise _other(weights.source, found, name)
    chosen = name or found or USUAL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(seed, "weights"))
        backbone = build_backbone(chosen, layer4_stride)
    if weights is None:
        return backbone, Initial("random", chosen)
    try:
        report = load_into(backbone, weights, allow_partial=partial)
    except PlrcError as error:
        found = _architecture(weights)
        raise _other(weights.source, found, chosen) if found not in ("", chosen) else error from None
    if len(report.matched) < len(backbone.net.state_dict()) / 2:  # some short names fit anywhere
        raise PlrcError(
            f"{weights.source} holds less than half of the tensors of {chosen}; name a file with more\n{report.table()}"
        )
    return backbone, Initial(weights.source, chosen, weights, report)


def verify_inside(model: nn.Module, initial: Initial) -> str:
    """Compare every backbone tensor of a finished network with the file once more; returns the line that says so.

    A tensor is one of the backbone's, wherever it lives, if its name ends in one of the backbone's own names. Raises
    PlrcError with the names of tensors that are absent or differ.
    """
    weights, report = initial.weights, initial.report
    if weights is None or report is None:
        return f"{initial.backbone} starts from random weights: there is no file to compare with"
    expected = {name: weights.state[report.prefix + name] for name in report.matched}
    found, wrong = set(), []
    for whole, name, tensor in _backbone_tensors(model, expected):
        found.add(name)
        if name in expected and not torch.equal(tensor.cpu(), expected[name].to(tensor.dtype)):
            wrong.append(whole)
    wrong += [f"{name} (absent)" for name in expected if name not in found]
    if wrong:
        raise PlrcError(
            f"the detector does not hold the weights of {weights.source}, which is a bug of plrc: see {some(wrong)}"
        )
    total = len(expected) + len(report.missing) + len(report.shape_mismatch)
    return f"{len(expected)} of {total} backbone tensors in the detector equal {weights.source}"


def _backbone_tensors(model: nn.Module, expected: Iterable[str]) -> Iterator[tuple[str, str, Tensor]]:
    """(whole name, name in the backbone, tensor) of a network; the name is the longest that the whole one ends in."""
    own = (module.net.state_dict() for module in model.modules() if isinstance(module, Backbone))
    names = set(expected).union(*own)
    for whole, tensor in model.state_dict().items():
        parts = whole.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        name = next((end for end in ends if end in names), None)
        if name is not None:
            yield whole, name, tensor


def _architecture(weights: Weights) -> str:
    """The torchvision ResNet whose tensors are all in the file, the largest of several; empty if there is none."""
    sizes = {}
    for name in RESNETS:
        with torch.device("meta"):
            target = build_backbone(name).net.state_dict()
        prefix = find_prefix(weights.state, target)
        needed = {prefix + n: tensor.shape for n, tensor in target.items() if not n.endswith(COUNTER)}
        if all(n in weights.state and weights.state[n].shape == shape for n, shape in needed.items()):
            sizes[name] = len(needed)
    return max(sizes, key=lambda name: sizes[name], default="")


def _other(source: str, found: str, wanted: str) -> PlrcError:
    return PlrcError(
        f"{source} holds a {found}, not a {wanted}; write --model.backbone {found}, or name the weights of a {wanted}"
    )


def _file(init: str, name: str) -> Path:
    if init == "torchvision":
        return _library_file(name)
    path = Path(init)
    if not path.exists():
        raise PlrcError(f"there is no {init}; write random, torchvision, a run folder or a file of weights as init")
    return checkpoint_of(path)


def _library_file(name: str) -> Path:
    if name not in RESNETS:
        raise PlrcError(f"torchvision has no weights for {name}; write one of {', '.join(RESNETS)}")
    url: str = torchvision.models.get_model_weights(name)[SUPERVISED].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.exists():
        raise PlrcError(f"torchvision's weights of {name} are not on this disk; download {url} to {file}")
    return file
