"""`plrc scan`, and the options of commands that read a whole source of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from plrc.cli.options import about, positional, read_options
from plrc.cli.output import progress
from plrc.config import DataConfig
from plrc.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    source: str = positional("SOURCE")
    """Folder, glob, .txt list, COCO .json, Pascal VOC folder, or tar shards."""
    layout: Literal["auto", "folder", "glob", "list", "coco", "voc", "shards"] = "auto"
    """How to read the source; auto looks at it."""
    split: str = ""
    """VOC only: the list in ImageSets/Main."""
    exclude: str = ""
    """List file, folder or glob of images to leave out."""
    channels: int = 3
    """Channels of an image, as data.channels of the pre-training. 3: RGB."""

    def config(self) -> DataConfig:
        return DataConfig(
            source=self.source,
            layout=self.layout,
            split=self.split,
            exclude=self.exclude,
            channels=self.channels,
        )


@dataclass(frozen=True, kw_only=True)
class ScanOptions(SourceOptions):
    workers: int = 0
    """Parallel readers. 0: one per core."""
    pages: Literal["first", "all"] = "first"
    """Pages of TIFF files that are used, as data.pages of the pre-training."""
    max_megapixels: float = 200.0
    """Largest size of an image, as data.max_megapixels of the pre-training."""

    def config(self) -> DataConfig:
        return replace(super().config(), pages=self.pages, max_megapixels=self.max_megapixels)


def run(arguments: Sequence[str]) -> int:
    """Read every image and list what can be used, what cannot, and why.

    examples:
      plrc scan photos/
      plrc scan voc/ --split trainval --exclude voc/ImageSets/Main/test.txt
      plrc scan tiles/ --channels 5
    """
    options = read_options("scan", ScanOptions, arguments, about(run))
    if options.workers < 0:
        raise ConfigError(f"--workers must be >= 0 (0: one per core), got {options.workers}")
    from plrc.data.scan import scan

    with progress("images") as on_progress:
        report = scan(options.config(), options.workers, on_progress)
    print(report.table())
    return 0
