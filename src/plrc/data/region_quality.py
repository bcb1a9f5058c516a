"""How good regions are, measured against annotated objects.

Layer 1: imports config and this folder. Reads files, never writes.

Shapes: H x W maps of the same pixels. regions: -1 unlabelled, 0 and above a region. objects: below 0 unlabelled (left
out of both measures), 0 background, above 0 an object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.config import Config
from plrc.data.decode import DecodeError
from plrc.data.region_files import RegionError, find_map, load_regions, read_masks, resized
from plrc.data.regions import Regions
from plrc.data.scan import first_of
from plrc.data.sources import ImageList
from plrc.errors import PlrcError
from plrc.text import aligned, note

SIDE = 256
"""Objects and regions are compared at this many places per side of an image."""


@dataclass(frozen=True)
class Quality:
    """Means over the images that have objects."""

    images: int
    empty: int
    """Images without objects, left out."""
    regions: float
    best_iou: float
    same_object: float
    unknown: tuple[str, ...]
    """Names of the images that the truth does not know, left out."""
    unusable: tuple[tuple[str, str], ...]
    """(relative name, reason) of the images that cannot be read, and those without regions."""

    def table(self) -> str:
        """Plain text to print."""
        rows = [
            ("images", f"{self.images}, and {self.empty} without objects, which do not count"),
            ("regions", f"{self.regions:.1f} an image"),
            ("mean best IoU", f"{self.best_iou:.3f}"),
            ("same object", f"{self.same_object:.3f} of the pairs of one region"),
            *(("left out", line) for line in note("images that the truth does not know", self.unknown)),
            *(("left out", line) for line in first_of(self.unusable)),
        ]
        return aligned(rows, width=15)


def measure(
    config: Config, images: ImageList, truth: str, positions: Sequence[int], progress: Callable[[int, int], None]
) -> Quality:
    """The quality of the regions that the settings make for the images at `positions`; progress(done, total).

    truth: a COCO file with masks, whose crowds count as unlabelled, or a folder of id maps, whose unlabelled places
    count as background. Raises PlrcError where no image has objects.
    """
    regions_of, objects_of = Regions(config, images), _truth(truth, images)
    found: list[tuple[int, float, float]] = []
    unknown: list[str] = []
    unusable: list[tuple[str, str]] = []
    for done, position in enumerate(positions, start=1):
        try:
            objects, ids = objects_of(position), regions_of(position).numpy()
        except (RegionError, DecodeError) as error:
            unusable.append((images.names[position], error.reason))
        else:
            if objects is None:
                unknown.append(images.names[position])
            else:
                large = resized(ids, SIDE)
                found.append((int(ids.max()) + 1, mean_best_iou(large, objects), same_object_share(large, objects)))
        progress(done, len(positions))
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    counted = table[~np.isnan(table[:, 1])]
    if not len(counted):
        why = f" (the first, {': '.join(unusable[0])})" if unusable else ""
        raise PlrcError(f"none of the {len(positions)} images has objects in {truth}{why}; name masks of these images")
    regions, best, same = map(_mean, counted.T)
    return Quality(len(counted), len(table) - len(counted), regions, best, same, tuple(unknown), tuple(unusable))


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of those that are numbers; nan where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _truth(path: str, images: ImageList) -> Callable[[int], NDArray[Any] | None]:
    """Position -> objects [SIDE, SIDE]; None where the truth does not know the image."""
    if Path(path).is_dir():

        def loaded(position: int) -> NDArray[Any] | None:
            file = find_map(path, images.names[position])
            return None if file is None else load_regions(file, SIDE).numpy() + 1

        return loaded
    masks = read_masks(path, images)

    def drawn(position: int) -> NDArray[Any] | None:
        name = images.names[position]
        return masks.objects(name, SIDE) if name in masks.entries else None

    return drawn


def mean_best_iou(regions: NDArray[Any], objects: NDArray[Any]) -> float:
    """Mean over the objects o of max over the regions r of |r and o| / |r or o|, in labelled pixels: [H, W] each.

    Pixels without a region count against the object alone. nan where there is no object.
    """
    shared = _shared(regions, objects)
    inside = shared[1:, 1:]
    union = shared[1:].sum(axis=1)[:, None] + shared[:, 1:].sum(axis=0) - inside
    present = shared[1:].sum(axis=1) > 0
    best = np.max(inside[present] / np.maximum(union[present], 1), axis=1, initial=0.0)
    return float(best.mean()) if len(best) else float("nan")


def same_object_share(regions: NDArray[Any], objects: NDArray[Any]) -> float:
    """Of the pairs of pixels of one region that are labelled and not both background, the share on one object: [H, W].

    With n_ro pixels of region r on object o (0: background), n_r their sum over o, and C(n) = n (n - 1) / 2:
    sum over r and o > 0 of C(n_ro), divided by the sum over r of C(n_r) - C(n_r0). nan where there is no such pair.
    """
    shared = _shared(regions, objects)[:, 1:].astype(np.float64)
    pairs = shared * (shared - 1) / 2
    whole = shared.sum(axis=0)
    counted = (whole * (whole - 1) / 2 - pairs[0]).sum()
    return float(pairs[1:].sum() / counted) if counted else float("nan")


def _shared(regions: NDArray[Any], objects: NDArray[Any]) -> NDArray[np.int64]:
    """Pixels that are labelled, by object (row 0: background) and region (column 0: none): [1 + objects, 1 + k]."""
    if regions.shape != objects.shape:
        raise PlrcError(f"regions {regions.shape} and objects {objects.shape} differ in shape; give maps of one shape")
    labelled = objects >= 0
    region, thing = np.maximum(regions[labelled].astype(np.int64), -1) + 1, objects[labelled].astype(np.int64)
    columns, rows = (int(ids.max(initial=0)) + 1 for ids in (region, thing))
    return np.bincount(thing * columns + region, minlength=rows * columns).reshape(rows, columns)
