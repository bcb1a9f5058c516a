"""`plrc shard`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.cli.options import about, read_options
from plrc.cli.output import progress
from plrc.cli.scan import SourceOptions
from plrc.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ShardOptions(SourceOptions):
    out: Path
    """Folder for the shards: absent or empty, or that of a stopped command."""
    maps: str = ""
    """Folder with an id map (PNG) per image, to store with it: for the region source shards."""
    megabytes: float = 256.0
    """Size of a shard."""


def run(arguments: Sequence[str]) -> int:
    """Pack images into WebDataset tar shards, for network disks and object stores; repeat the command after a stop.

    examples:
      plrc shard photos/ --out shards/
      plrc shard photos/ --out shards/ --maps maps/ --megabytes 512
    """
    options = read_options("shard", ShardOptions, arguments, about(run))
    if not options.megabytes > 0:
        raise ConfigError(f"--megabytes must be > 0, got {options.megabytes:g}")
    from plrc.data.shard_writer import write_shards
    from plrc.data.sources import find_images

    images = find_images(options.config())
    for note in images.notes:
        print(note)
    with progress("shards") as on_progress:
        shards = write_shards(images, options.out, options.maps, options.megabytes, on_progress)
    print(shards.table())
    return 0
