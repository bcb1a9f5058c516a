"""Id maps computed in advance: one file per image, in several processes, and only those that are missing.

Each map appears whole or not at all, so that the work may be stopped at any time and resumed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from plrc.config import Config
from plrc.data.id_maps import RegionError, map_path, save_regions
from plrc.data.image_errors import ImageError
from plrc.data.regions import Regions
from plrc.data.sources import ImageList
from plrc.data.workers import load_batches, reading
from plrc.errors import DataError
from plrc.files import parse_json, write_json
from plrc.progress import OnProgress, ignore_progress
from plrc.text import aligned, list_failures

SETTINGS = "regions.json"
"""File in the folder that records what its maps were computed from."""


@dataclass(frozen=True)
class PrecomputeReport:
    """The result of `precompute_regions`.

    Attributes:
        written: Number of id maps written now.
        present: Number of id maps that existed before.
        unusable: (relative name, reason) of each image without a map.
    """

    written: int
    present: int
    unusable: tuple[tuple[str, str], ...]

    def table(self) -> str:
        """Return the report as plain text."""
        rows = [
            ("images", str(self.written + self.present + len(self.unusable))),
            ("present", f"{self.present} id maps were there, {self.written + len(self.unusable)} to do"),
            ("written", str(self.written)),
            ("unusable", str(len(self.unusable))),
        ]
        rows += [("unusable", line) for line in list_failures(self.unusable)]
        return aligned(rows)


def precompute_regions(
    config: Config, images: ImageList, out: Path, workers: int, on_progress: OnProgress = ignore_progress
) -> PrecomputeReport:
    """Write the regions of every image as OUT/name.png.

    Pre-training with regions.source maps and the same map size then has the same regions.

    Args:
        config: The settings of the regions.
        images: The images.
        out: The folder to write into: missing, empty, or with maps of an earlier call that was stopped.
        workers: Number of processes; 0 computes in this process.
        on_progress: Called with numbers of id maps.

    Raises:
        DataError: The folder holds maps of other settings or anything else, two images would share a map, a map cannot
            be written, or no image can be used.
    """
    owners: dict[Path, str] = {}
    missing: list[tuple[int, Path]] = []
    unusable: list[tuple[str, str]] = []
    for position, name in enumerate(images.names):
        try:
            path = map_path(out, name)
        except RegionError as error:
            unusable.append((name, error.reason))
            continue
        if not path.parent.resolve().is_relative_to(out.resolve()):
            raise DataError(f"{path.parent} leads out of {out}; remove the link, no id map is written through it")
        if path in owners:
            raise DataError(f"images {owners[path]} and {name} would share the id map {path}; rename one of them")
        owners[path] = name
        if not path.is_file():
            missing.append((position, path))
    regions = Regions(config, images)
    _claim_folder(config, images, out)

    keys = [[number] for number in range(len(missing))]
    with load_batches(_MapWriter(regions, missing), keys, list, min(workers, len(missing))) as results:
        for done, ((position, _), (reason,)) in enumerate(zip(missing, results, strict=True), start=1):
            if reason:
                unusable.append((images.names[position], reason))
            on_progress(done, len(missing))
    if len(unusable) == len(images):
        name, reason = unusable[0]
        raise DataError(f"none of the {len(images)} images can be used; the first, {name}: {reason}")
    present = len(owners) - len(missing)
    return PrecomputeReport(len(images) - present - len(unusable), present, tuple(unusable))


class _MapWriter(Dataset[str]):
    """Writes the map with a number; gives the reason why it cannot be computed, or an empty string."""

    def __init__(self, regions: Regions, missing: list[tuple[int, Path]]) -> None:
        self.regions = regions
        self.missing = missing

    def __getitem__(self, number: int) -> str:
        position, path = self.missing[number]
        try:
            with reading(self.regions.images.names[position]):
                regions = self.regions(position)
            save_regions(path, regions)
        except ImageError as error:
            return error.reason
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from error
        return ""


def _claim_folder(config: Config, images: ImageList, out: Path) -> None:
    """Record in an empty folder what its maps are computed from; refuse a folder whose maps are computed otherwise."""
    now = {f"regions.{name}": value for name, value in dataclasses.asdict(config.regions).items()}
    now["seed"] = config.seed
    now["data.rescale_percentiles"] = list(config.data.rescale_percentiles)
    now["images"] = images.root
    path = out / SETTINGS
    if not out.exists() or all(entry.name.startswith(".") for entry in out.iterdir()):
        write_json(path, now)
        return
    try:
        stored: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        changed = [f"{key}: stored {stored[key]}, now {value}" for key, value in now.items() if stored[key] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out} is not empty and holds no {SETTINGS} of plrc regions; name a new folder") from error
    if changed:
        raise DataError(f"{out} holds id maps of other settings ({'; '.join(changed)}); name another --out")
