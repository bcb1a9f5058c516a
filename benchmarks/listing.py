"""The start of a run with very many images: the first listing, and the second start from the cached index.

The files are real, in nested folders, each folder full of hard links to one tiny JPEG. They were just created, so the
file system answers from memory.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.photographs import photograph
from benchmarks.report import Bench
from plrc.config import Config
from plrc.data import layouts
from plrc.data.index import Index, create_index_file, write_index
from plrc.data.loader import Batch, DeviceLoader, ViewDataset
from plrc.data.manifest import read_manifest
from plrc.data.sampler import StepSampler
from plrc.data.sources import find_images, index_settings
from plrc.engine.setup import Plan, prepare
from plrc.errors import ConfigError

FILES_PER_FOLDER = 1000

T = TypeVar("T")


def run(*, files: int = 100_000, batch: int = 64, workers: int = 1) -> Bench:
    """Time the first and the second start over many files, once each (in a folder below TMPDIR).

    Args:
        files: Files to create.
        batch: Images of the first batch.
        workers: Loader processes.

    first_seconds: walking through all folders and writing the index, as `plrc scan` does. second_seconds: everything a
    run does from the index to its first batch: listing, split, manifest (a size for each file), loader processes.
    """
    rows: list[dict[str, Any]] = []

    def timed(start: str, part: str, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = call()
        rows.append({"start": start, "part": part, "seconds": time.perf_counter() - began})
        return result

    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), batch, workers)
        source = config.data.source
        print(f"listing: making {files} files in {source}", file=sys.stderr)
        _make(Path(source), files)
        place = create_index_file(source)
        listing = timed("first", "walk", lambda: layouts.list_folder(source))
        index = Index("folder", listing.folders, listing.names, listing.reading, settings=index_settings(config.data))
        if not timed("first", "write index", lambda: place is not None and write_index(place, index)):
            raise ConfigError(f"cannot write the index of {source}; set TMPDIR to a folder with more room")
        plan = timed("second", "plan", lambda: _plan(config))
        timed("second", "first batch", lambda: _first_batch(plan))
        timed("within the second's plan", "list from index", lambda: find_images(config.data))
    return Bench(
        kind="listing",
        settings={"files": files, "batch": batch, "workers": workers},
        figures={"first_seconds": _total(rows, "first"), "second_seconds": _total(rows, "second")},
        rows=rows,
    )


def _total(rows: list[dict[str, Any]], start: str) -> float:
    return float(sum(row["seconds"] for row in rows if row["start"] == start))


def _make(source: Path, files: int) -> None:
    """Create SOURCE/00/0000/0000000.jpg, ...: up to a hundred folders of folders, each with FILES_PER_FOLDER links."""
    pixels = photograph(0, 64, 64)
    for first in range(0, files, FILES_PER_FOLDER):
        folder = source / f"{first // FILES_PER_FOLDER % 100:02d}" / f"{first // FILES_PER_FOLDER:04d}"
        folder.mkdir(parents=True)
        original = folder / f"{first:07d}.jpg"
        original.write_bytes(pixels)
        for i in range(first + 1, min(first + FILES_PER_FOLDER, files)):
            os.link(original, folder / f"{i:07d}.jpg")


def _config(folder: Path, batch: int, workers: int) -> Config:
    """Configure a run on FOLDER/images that writes to FOLDER/run."""
    return Config(adapt=False).with_values(
        {
            "data.source": str(folder / "images"),
            "model.bn_groups": 1,  # fits every batch
            "optim.batch_size": batch,
            "run.out": str(folder / "run"),
            "run.device": "cpu",
            "run.workers": workers,
        }
    )


def _plan(config: Config) -> Plan:
    plan = prepare(config)
    read_manifest(plan.out / "manifest.json")  # as the loop does, for the digest that checkpoints carry
    return plan


def _first_batch(plan: Plan) -> Batch:
    config = plan.config
    sampler = StepSampler(len(plan.train), config.optim.batch_size, 1, config.seed, 0, 1)
    return next(iter(DeviceLoader(ViewDataset(plan.images, plan.train, config), sampler, plan.workers, plan.device)))
