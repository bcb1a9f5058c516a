"""Id maps made in advance: one file an image, in several processes, and only those that are not there yet.

Layer 1: imports config, files and this folder. Writes below the folder it is given: `regions.json` (what the maps were
made with) and the maps, each whole or not at all, so that a run may end at any time and goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from plrc.config import Config
from plrc.data.decode import DecodeError
from plrc.data.region_files import RegionError, map_path, save_regions
from plrc.data.regions import Regions
from plrc.data.scan import first_of
from plrc.data.sources import ImageList
from plrc.data.workers import load_batches
from plrc.errors import PlrcError
from plrc.files import parse_json, write_json
from plrc.text import aligned

SETTINGS = "regions.json"


@dataclass(frozen=True)
class Precomputed:
    """What `precompute` did: id maps written now, those that were there already, and what could not be made."""

    written: int
    present: int
    unusable: tuple[tuple[str, str], ...]
    """(relative name, reason)"""

    def table(self) -> str:
        """Plain text to print."""
        rows = [
            ("images", str(self.written + self.present + len(self.unusable))),
            ("present", f"{self.present} id maps were there, {self.written + len(self.unusable)} to do"),
            ("written", str(self.written)),
            ("unusable", str(len(self.unusable))),
            *(("unusable", line) for line in first_of(self.unusable)),
        ]
        return aligned(rows)


def precompute(
    config: Config, images: ImageList, out: Path, workers: int, progress: Callable[[int, int], None]
) -> Precomputed:
    """Write the regions that the settings make for every image as OUT/name.png, in `workers` processes (0: in this
    one); progress(done, total). Pre-training with regions.source maps and the same map size then has the same regions.

    Raises PlrcError where the folder holds maps of other settings or anything else, where two images would share a map,
    where a map cannot be written, and where no image can be used.
    """
    paths: dict[Path, str] = {}
    todo: list[tuple[int, Path]] = []
    unusable: list[tuple[str, str]] = []
    for position, name in enumerate(images.names):
        try:
            path = map_path(out, name)
        except RegionError as error:
            unusable.append((name, str(error)))
            continue
        if not path.parent.resolve().is_relative_to(out.resolve()):
            raise PlrcError(f"{path.parent} leads out of {out}; remove the link, no id map is written through it")
        if path in paths:
            raise PlrcError(f"images {paths[path]} and {name} would share the id map {path}; rename one of them")
        paths[path] = name
        if not path.is_file():
            todo.append((position, path))
    regions = Regions(config, images)
    _claim(config, images, out)

    keys = [[number] for number in range(len(todo))]
    with load_batches(_Writer(regions, todo), keys, list, min(workers, len(todo))) as results:
        for done, ((position, _), (problem,)) in enumerate(zip(todo, results, strict=True), start=1):
            if problem:
                unusable.append((images.names[position], problem))
            progress(done, len(todo))
    if len(unusable) == len(images):
        raise PlrcError(f"none of the {len(images)} images can be used; the first, {unusable[0][0]}: {unusable[0][1]}")
    present = len(paths) - len(todo)
    return Precomputed(len(images) - present - len(unusable), present, tuple(unusable))


class _Writer(Dataset[str]):
    """Number of a map to do -> why it cannot be made, or nothing once it is written."""

    def __init__(self, regions: Regions, todo: list[tuple[int, Path]]) -> None:
        self.regions, self.todo = regions, todo

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, index: int) -> str:
        position, path = self.todo[index]
        try:
            save_regions(path, self.regions(position))
        except (RegionError, DecodeError) as error:
            return error.reason
        except OSError as error:
            raise PlrcError(f"cannot write {path}: {error.strerror}") from error
        return ""


def _claim(config: Config, images: ImageList, out: Path) -> None:
    """Note in the folder what its maps are made with, or refuse where they were made with something else."""
    now = {f"regions.{name}": value for name, value in dataclasses.asdict(config.regions).items()}
    now |= {
        "seed": config.seed,
        "data.rescale_percentiles": list(config.data.rescale_percentiles),
        "images": images.root,
    }
    path = out / SETTINGS
    if not out.exists() or all(there.name.startswith(".") for there in out.iterdir()):
        write_json(path, now)
        return
    try:
        stored: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        changed = [f"{key}: stored {stored[key]}, now {value}" for key, value in now.items() if stored[key] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlrcError(f"{out} is not empty and holds no {SETTINGS} of plrc regions; name a new folder") from error
    if changed:
        raise PlrcError(f"{out} holds id maps of other settings ({'; '.join(changed)}); name another --out")
