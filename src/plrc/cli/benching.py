"""`plrc bench`: what a step, an image and an objective cost on this machine. Layer 6."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.cli.options import about, parse_plain, subcommand


@dataclass(frozen=True)
class _Measured:
    repeats: int = 5
    """Measurements; figures are their medians."""
    json: Path | None = None
    """File for machine, versions, settings and figures."""


@dataclass(frozen=True)
class _Network(_Measured):
    backbone: str = "resnet50"
    """A torchvision ResNet."""
    size: int = 224
    """Side of a view in pixels."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Objectives(_Measured):
    points: tuple[int, ...] = (196, 784, 3136, 12544)
    """Numbers of points."""
    references: tuple[int, ...] = (196, 784, 3136, 12544)
    """Numbers of reference positions."""
    width: int = 256
    """Width of the features."""
    batch: int = 1
    """Images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Step(_Network):
    batch: int = 8
    """Images."""
    bn_groups: int = 0
    """Parts of the batch that BatchNorm sees apart. 0: as pretrain chooses."""
    peers: bool = False
    """Measure the steps of lightly's MoCo v2 and DenseCL too: pip install 'plrc-pretrain[bench]'."""


@dataclass(frozen=True)
class Loader(_Measured):
    images: int = 64
    """Generated JPEGs."""
    height: int = 480
    """Their height in pixels."""
    width: int = 640
    """Their width in pixels."""
    size: int = 224
    """Side of a view in pixels."""
    batch: int = 32
    """Images."""


@dataclass(frozen=True)
class Epoch(_Network):
    batch: int = 32
    """Images."""
    steps: int = 10
    """Steps of a measurement."""
    workers: int = -1
    """Loader processes. -1: as pretrain chooses."""


@dataclass(frozen=True)
class Scaling(_Network):
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    batch: int = 16
    """Images of each process."""
    steps: int = 5
    """Steps of a measurement."""
    workers: int = -1
    """Loader processes of each. -1: chosen."""


@dataclass(frozen=True)
class Listing:
    files: int = 100_000
    """File names to make, in nested folders."""
    batch: int = 64
    """Images of the first batch."""
    workers: int = 1
    """Loader processes."""
    json: Path | None = None
    """File for machine, versions, settings and figures."""


KINDS: dict[str, type[Objectives | Step | Loader | Epoch | Scaling | Listing]] = {
    "objectives": Objectives,
    "step": Step,
    "loader": Loader,
    "epoch": Epoch,
    "scaling": Scaling,
    "listing": Listing,
}


def bench(arguments: Sequence[str]) -> int:
    """Measure what plrc costs on this machine.

    usage: plrc bench objectives|step|loader|epoch|scaling|listing [--json FILE]

      objectives  seconds and memory against points, full and linear-memory form
      step        a training step over its network passes and over the bare backbone; where its time goes
      loader      images a second and core: decoding, crops, color and blur
      epoch       a real run: the share of time that waits for data
      scaling     1, 2, ... processes
      listing     many files: first start and second start

    examples:
      plrc bench step --json step.json
      plrc bench step --backbone resnet18 --batch 32 --peers
      plrc bench loader
    """
    kind = subcommand("bench", "benchmark", arguments, KINDS, lambda: about(bench))
    if kind is None:
        return 0
    given = dataclasses.asdict(parse_plain(f"bench {kind}", KINDS[kind], arguments[1:], about(bench)))
    file = given.pop("json")
    found = importlib.import_module(f"benchmarks.{kind}").run(**given)
    print(found.table())
    if file:
        found.save(file)
    return 0
