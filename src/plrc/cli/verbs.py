"""The small verbs: demo, doctor, scan, shard, export. Layer 6. PyTorch comes once the options are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plrc.cli import checking
from plrc.cli.options import about, parse_plain
from plrc.cli.progress import progress
from plrc.config import DataConfig
from plrc.errors import PlrcError


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where images are; both verbs that read a whole source take it."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Folder, glob, .txt list, COCO .json, Pascal VOC folder, or tar shards."""
    layout: Literal["auto", "folder", "glob", "list", "coco", "voc", "shards"] = "auto"
    """How to read the source; auto looks at it."""
    split: str = ""
    """VOC only: the list in ImageSets/Main."""
    exclude: str = ""
    """List file, folder or glob of images to leave out."""

    def config(self) -> DataConfig:
        return DataConfig(source=self.source, layout=self.layout, split=self.split, exclude=self.exclude)


@dataclass(frozen=True, kw_only=True)
class Scan(Images):
    workers: int = 0
    """Parallel readers. 0: one a core."""


@dataclass(frozen=True, kw_only=True)
class Shard(Images):
    out: Path
    """Folder for the shards: absent or empty, or one to go on with."""
    maps: str = ""
    """Folder with an id map (PNG) per image, to lay beside it: for the region source shards."""
    megabytes: float = 256.0
    """Size of a shard."""


@dataclass(frozen=True)
class Export:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder (its newest checkpoint) or checkpoint file."""
    to: Literal["torchvision", "timm", "transformers", "detectron2", "mmdetection", "safetensors", "onnx"]
    """The library or format that goes on with the weights. Not with --check-in."""
    out: Path | None = None
    """File to write: .safetensors or .pt; .pth for mmdetection, .pth or .pkl for detectron2, .onnx; for transformers a
    folder. None: below exported/ in the run folder."""
    backbone: str = ""
    """A run with a backbone of your own: its function once more, as package.module:function or file.py:function."""


@dataclass(frozen=True)
class Demo:
    out: Path = Path("plrc-demo")
    """Folder to write into: empty, absent, or a demo that was stopped."""
    steps: int = 200
    """Optimiser steps."""


@dataclass(frozen=True)
class Doctor:
    pass


def scan(arguments: Sequence[str]) -> int:
    """Read every image and say what can be used, what cannot, and why.

    examples:
      plrc scan photos/
      plrc scan voc/ --split trainval --exclude voc/ImageSets/Main/test.txt
    """
    given = parse_plain("scan", Scan, arguments, about(scan))
    if given.workers < 0:
        raise PlrcError(f"--workers is {given.workers}; write 0 (one a core) or more")
    from plrc.data import scan as scanning

    with progress("images") as tell:
        report = scanning.scan(given.config(), given.workers, tell)
    print(report.table())
    return 0


def shard(arguments: Sequence[str]) -> int:
    """Pack images into WebDataset tar shards, for network disks and object stores; repeat the command after a stop.

    examples:
      plrc shard photos/ --out shards/
      plrc shard photos/ --out shards/ --maps maps/ --megabytes 512
    """
    given = parse_plain("shard", Shard, arguments, about(shard))
    if not given.megabytes > 0:
        raise PlrcError(f"--megabytes is {given.megabytes:g}; write a number above 0")
    from plrc.data.shard_writer import write_shards
    from plrc.data.sources import find_images

    images = find_images(given.config())
    for line in images.notes:
        print(line)
    with progress("shards") as tell:
        print(write_shards(images, given.out, given.maps, given.megabytes, tell).table())
    return 0


def export(arguments: Sequence[str]) -> int:
    """Hand the pre-trained backbone over, and prove that it arrived.

    examples:
      plrc export runs/first --to torchvision
      plrc export runs/first --to torchvision --out backbone.pt
      plrc export runs/first --to transformers --out my-resnet/
      plrc export runs/first --to detectron2
      plrc export runs/own --to safetensors --backbone my_net.py:build
      plrc export runs/first --check-in my_detector.py:build

    --check-in builds your own detector and says whether the weights are inside; status 1 if they are not.
    """
    if checking.asked(arguments):
        return checking.check_in(arguments, about(export))
    given = parse_plain("export", Export, arguments, about(export))
    from plrc.export import export_backbone

    receipt = export_backbone(given.run, given.to, given.out, given.backbone)
    print(receipt.line())
    print(receipt.advice())
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Render scenes, pre-train on them, and show what was learned: minutes on a CPU.

    examples:
      plrc demo
      plrc demo --out my-demo
    """
    given = parse_plain("demo", Demo, arguments, about(demo))
    if given.steps < 1:
        raise PlrcError(f"--steps is {given.steps}; write at least 1")
    from plrc.demo import run_demo

    run_demo(given.out, given.steps)
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """Say what is installed, which device there is, and whether all of it works.

    examples:
      plrc doctor
    """
    parse_plain("doctor", Doctor, arguments, about(doctor))
    from plrc.doctor import report

    return report()
