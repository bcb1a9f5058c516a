"""`plrc regions`: draw the regions of images, measure them, compute them in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.cli.options import CommandParser, about, choose_task
from plrc.cli.output import progress
from plrc.config import Config, DataConfig, RegionConfig
from plrc.errors import ConfigError
from plrc.machine import cores

UNUSED = ("data.group", "data.held_out", "data.max_unreadable_fraction", "data.mean", "data.std")
"""Settings of pretrain that regions do not depend on."""


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    seed: int = 0
    """Random regions and noise follow from this number, as in plrc pretrain."""


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(SharedOptions):
    """Draw images with their regions: tinted, boundaries white, unlabelled places dark.

    examples:
      plrc regions preview --data photos/ --regions.source slic --out slic.png
    """

    out: Path
    """Picture to write, ending in .png or .jpg; or a folder, for a picture of each image."""
    images: int = 12
    """Number of images, evenly spread over all."""


@dataclass(frozen=True, kw_only=True)
class QualityOptions(SharedOptions):
    """Measure regions against annotated objects: mean best IoU, and the share of the pairs of one region on one object.

    examples:
      plrc regions quality --data photos/ --regions.grid 6 --truth annotations.json
    """

    truth: str
    """Annotated objects: a COCO file with masks, or a folder of id maps named like the images (0: background)."""
    images: int = 200
    """Number of images, evenly spread over all."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeOptions(SharedOptions):
    """Write id maps to files, for --regions.source maps; repeat the command to continue after a stop.

    examples:
      plrc regions precompute --data photos/ --regions.source felzenszwalb --out maps/
    """

    out: Path
    """Folder for the id maps: absent or empty, or that of a stopped command."""
    workers: int = 0
    """Processes. 0: one per core."""


TaskOptions = PreviewOptions | QualityOptions | PrecomputeOptions
TASKS: dict[str, type[TaskOptions]] = {
    "preview": PreviewOptions,
    "quality": QualityOptions,
    "precompute": PrecomputeOptions,
}


def run(arguments: Sequence[str]) -> int:
    """Draw the regions of your images, measure them against annotated objects, compute them in advance.

    usage: plrc regions preview|quality|precompute --data DIR [--regions.source NAME ...]

      preview     a picture: images with their regions
      quality     how well they fit annotated objects
      precompute  id maps in files, for --regions.source maps

    examples:
      plrc regions preview --data photos/ --regions.source slic --out slic.png
      plrc regions quality --data photos/ --regions.grid 6 --truth annotations.json
      plrc regions precompute --data photos/ --regions.source felzenszwalb --out maps/
    """
    task = choose_task("regions", arguments, TASKS, lambda: about(run))
    if task is None:
        return 0
    options, config = _parse(task, arguments[1:])
    from plrc.data.sources import find_images

    images = find_images(config.data)
    for note in images.notes:
        print(note)
    with progress("images") as on_progress:
        if isinstance(options, PrecomputeOptions):
            from plrc.data.region_precompute import precompute_regions

            workers = options.workers or cores()
            summary = precompute_regions(config, images, options.out, workers, on_progress).table()
        elif isinstance(options, QualityOptions):
            from plrc.data.region_quality import measure_quality

            indices = images.evenly_spaced(options.images)
            summary = measure_quality(config, images, options.truth, indices, on_progress).table()
        else:
            from plrc.visualize.regions import save_preview

            indices = images.evenly_spaced(options.images)
            summary = save_preview(config, images, indices, options.out, on_progress).table()
    print(summary)
    return 0


def _parse(task: str, arguments: Sequence[str]) -> tuple[TaskOptions, Config]:
    """The options of a task, and the settings of images and regions."""
    parser = CommandParser(f"regions {task}", about(TASKS[task]))
    parser.add_fields(TASKS[task])
    parser.add_fields(DataConfig, "data", exclude=UNUSED)
    parser.add_fields(RegionConfig, "regions")
    values = parser.parse(arguments)
    options = TASKS[task](**{name: value for name, value in values.items() if "." not in name})
    if isinstance(options, PrecomputeOptions):
        if options.workers < 0:
            raise ConfigError(f"--workers must be >= 0, got {options.workers}")
    elif options.images < 1:
        raise ConfigError(f"--images must be >= 1, got {options.images}")
    settings = {name: value for name, value in values.items() if "." in name}
    return options, Config().with_values(settings | {"seed": options.seed})
