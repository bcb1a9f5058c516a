"""Images per second that one core prepares, stage by stage, compared with decoding alone.

One process with one thread runs what a run runs: the data set of the loader's workers, and the batched color, blur and
normalization, which a GPU takes over if there is one. The files were just written, so they are read from memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.photographs import write_photographs
from benchmarks.report import Bench, interquartile_range, median, time_interleaved
from plrc.config import Config, DataConfig, ViewConfig
from plrc.data import photometric
from plrc.data.decode import decode
from plrc.data.loader import ViewDataset, collate
from plrc.data.sources import find_images
from plrc.errors import ConfigError


def run(
    *, images: int = 64, height: int = 480, width: int = 640, size: int = 224, batch: int = 32, repeats: int = 5
) -> Bench:
    """Measure how many images per second one core prepares.

    Args:
        images: JPEGs to generate.
        height: Their height, pixels.
        width: Their width, pixels.
        size: Side of a view, pixels.
        batch: Images per batch of the color stage.
        repeats: Measured rounds; figures are medians.

    The stages contain each other: `decode` (file to pixels), `crops` (also three uint8 crops, maps and random numbers:
    a sample of the workers), `images` (also batching, color, blur, normalization: three float views). `cached` is
    `crops` with run.cache, that is without decoding.

    Raises:
        ConfigError: A number that cannot be used.
    """
    if min(images, batch) < 1:
        raise ConfigError(f"images and batch must be >= 1, got {images} and {batch}")
    threads = torch.get_num_threads()
    config = Config(views=ViewConfig(size=size))
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder) / "images", images, height, width)
        listed = find_images(DataConfig(source=str(Path(folder) / "images")))
        dataset = ViewDataset(listed, np.arange(images), config)
        kept = ViewDataset(listed, np.arange(images), config.with_values({"run.cache": str(Path(folder) / "cache")}))

        def decode_all() -> None:
            for i in range(images):
                decode(listed.path(i))

        def crop_all() -> None:
            for i in range(images):
                dataset[0, i]

        def take_all() -> None:
            for i in range(images):
                kept[0, i]

        def augment_all() -> None:
            for first in range(0, images, batch):
                part = collate([dataset[0, i] for i in range(first, min(first + batch, images))])
                photometric.augment_views(part.images, part.color_uniform, config.views, config.data.pixels)

        stages = {"decode": decode_all, "crops": crop_all, "cached": take_all, "images": augment_all}
        print(f"loader: {images} images of {width} x {height}, {', '.join(stages)}", file=sys.stderr)
        try:
            torch.set_num_threads(1)
            seconds = time_interleaved(stages, repeats, torch.device("cpu"))
        finally:
            torch.set_num_threads(threads)
    rate = {stage: images / median(durations) for stage, durations in seconds.items()}
    return Bench(
        kind="loader",
        settings={
            "images": images,
            "height": height,
            "width": width,
            "size": size,
            "batch": batch,
            "repeats": repeats,
        },
        figures={
            "images_per_second_per_core": rate["images"],
            "crops_per_second_per_core": rate["crops"],
            "cached_crops_per_second_per_core": rate["cached"],
            "decode_per_second_per_core": rate["decode"],
            "crops_of_decode": rate["crops"] / rate["decode"],
            "images_of_decode": rate["images"] / rate["decode"],
        },
        rows=[
            {
                "stage": stage,
                "images_per_second": rate[stage],
                "milliseconds": 1e3 * median(durations) / images,
                "spread_milliseconds": 1e3 * interquartile_range(durations) / images,
            }
            for stage, durations in seconds.items()
        ],
    )
