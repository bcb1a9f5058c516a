"""`plrc regions`: look at the regions of images, measure them, make them in advance. Layer 6."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from plrc.cli.options import about, parse, subcommand, written
from plrc.cli.progress import progress
from plrc.config import Config, DataConfig, RegionConfig
from plrc.errors import PlrcError
from plrc.machine import cores


@dataclass(frozen=True)
class Images(DataConfig):
    """Which images, as for plrc pretrain."""

    held_out: tyro.conf.Suppress[int] = 64
    max_unreadable_fraction: tyro.conf.Suppress[float] = 0.1


@dataclass(frozen=True, kw_only=True)
class Regions:
    data: Images = field(default_factory=Images)
    regions: RegionConfig = field(default_factory=RegionConfig)
    seed: int = 0
    """Random regions and noise follow from this number, as in plrc pretrain."""


@dataclass(frozen=True, kw_only=True)
class Preview(Regions):
    """Draw images with their regions: tinted, boundaries white, unlabelled places dark.

    examples:
      plrc regions preview --data photos/ --regions.source slic --out slic.png
    """

    out: Path
    """Picture to write, ending in .png or .jpg; or a folder, for a picture of each image."""
    images: int = 12
    """How many images, evenly spread over all."""


@dataclass(frozen=True, kw_only=True)
class Quality(Regions):
    """Measure regions against annotated objects: mean best IoU, and the share of the pairs of one region on one object.

    examples:
      plrc regions quality --data photos/ --regions.grid 6 --truth annotations.json
    """

    truth: str
    """Annotated objects: a COCO file with masks, or a folder of id maps named like the images (0: background)."""
    images: int = 200
    """How many images, evenly spread over all."""


@dataclass(frozen=True, kw_only=True)
class Precompute(Regions):
    """Make id maps in files, for --regions.source maps; repeat the command to go on after a stop.

    examples:
      plrc regions precompute --data photos/ --regions.source felzenszwalb --out maps/
    """

    out: Path
    """Folder for the id maps: absent or empty, or one to go on with."""
    workers: int = 0
    """Processes. 0: one a core."""


KINDS: dict[str, type[Preview | Quality | Precompute]] = {
    "preview": Preview,
    "quality": Quality,
    "precompute": Precompute,
}


def regions(arguments: Sequence[str]) -> int:
    """Look at the regions of your images, measure them against annotated objects, make them in advance.

    usage: plrc regions preview|quality|precompute --data DIR [--regions.source NAME ...]

      preview     a picture: images with their regions
      quality     how well they fit annotated objects
      precompute  id maps in files, for --regions.source maps

    examples:
      plrc regions preview --data photos/ --regions.source slic --out slic.png
      plrc regions quality --data photos/ --regions.grid 6 --truth annotations.json
      plrc regions precompute --data photos/ --regions.source felzenszwalb --out maps/
    """
    kind = subcommand("regions", "task", arguments, KINDS, lambda: about(regions))
    if kind is None:
        return 0
    given = _parse(kind, arguments[1:])
    config = Config(data=given.data, regions=given.regions, seed=given.seed)
    number, least = (given.workers, 0) if isinstance(given, Precompute) else (given.images, 1)
    if number < least:
        name = "workers" if isinstance(given, Precompute) else "images"
        raise PlrcError(f"--{name} is {number}; write {least} or more")
    from plrc.data.sources import find_images

    images = find_images(config.data)
    for line in images.notes:
        print(line)
    with progress("images") as tell:
        if isinstance(given, Precompute):
            from plrc.data.region_precompute import precompute_regions

            found = precompute_regions(config, images, given.out, given.workers or cores(), tell).table()
        elif isinstance(given, Quality):
            from plrc.data.region_quality import measure_quality

            found = measure_quality(config, images, given.truth, images.evenly_spaced(given.images), tell).table()
        else:
            from plrc.visualize.regions import save_preview

            found = save_preview(config, images, images.evenly_spaced(given.images), given.out, tell)
    print(found)
    return 0


def _parse(kind: str, arguments: Sequence[str]) -> Preview | Quality | Precompute:
    own = {f.name for f in dataclasses.fields(KINDS[kind])} - {"data", "regions"}
    shared = {name for name in Config().flat() if name.startswith(("data.", "regions."))}
    written(arguments, own | shared - {"data.held_out", "data.max_unreadable_fraction"})
    return parse(f"regions {kind}", KINDS[kind], arguments, about(KINDS[kind]))
