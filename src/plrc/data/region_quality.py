"""How well regions fit annotated objects.

Shapes: H x W maps of the same pixels. regions: -1 unlabelled, 0 and above a region. objects: below 0 unlabelled (left
out of both measures), 0 background, above 0 an object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.config import Config
from plrc.data.id_maps import find_map, load_regions, resize_nearest
from plrc.data.image_errors import ImageError
from plrc.data.masks import read_coco_masks
from plrc.data.regions import Regions
from plrc.data.sources import ImageList
from plrc.errors import DataError
from plrc.progress import OnProgress, ignore_progress
from plrc.text import aligned, list_failures, note

SIDE = 256
"""Objects and regions are compared at this many places per side of an image."""


@dataclass(frozen=True)
class QualityReport:
    """Means over the images that have objects.

    Attributes:
        images: Number of these images.
        empty: Number of images without objects, which are left out.
        regions: Mean number of regions per image.
        best_iou: Mean of `mean_best_iou`.
        same_object: Mean of `same_object_share`.
        unknown: Names of images that the annotations do not have, which are left out.
        unusable: (relative name, reason) of each image that cannot be read or has no regions.
    """

    images: int
    empty: int
    regions: float
    best_iou: float
    same_object: float
    unknown: tuple[str, ...]
    unusable: tuple[tuple[str, str], ...]

    def table(self) -> str:
        """Return the report as plain text."""
        rows = [
            ("images", f"{self.images}, and {self.empty} without objects, which do not count"),
            ("regions", f"{self.regions:.1f} per image"),
            ("mean best IoU", f"{self.best_iou:.3f}"),
            ("same object", f"{self.same_object:.3f} of the pairs of one region"),
        ]
        rows += [("left out", line) for line in note("images that the truth does not know", self.unknown)]
        rows += [("left out", line) for line in list_failures(self.unusable)]
        return aligned(rows, width=15)


def measure_quality(
    config: Config,
    images: ImageList,
    truth: str,
    positions: Sequence[int],
    on_progress: OnProgress = ignore_progress,
) -> QualityReport:
    """Compare the regions of images with annotated objects.

    Args:
        config: The settings of the regions.
        images: The images.
        truth: A COCO file with masks, whose crowds count as unlabelled; or a folder of id maps, whose unlabelled places
            count as background.
        positions: Which of the images to measure.
        on_progress: Called with numbers of images.

    Raises:
        DataError: None of the images has objects.
    """
    regions_of = Regions(config, images)
    objects_of = _object_reader(truth, images, config.data.channels)
    rows: list[tuple[int, float, float]] = []
    unknown: list[str] = []
    unusable: list[tuple[str, str]] = []
    for done, position in enumerate(positions, start=1):
        name = images.names[position]
        try:
            objects = objects_of(position)
            ids = regions_of(position).numpy()
        except ImageError as error:
            unusable.append((name, error.reason))
        else:
            if objects is None:
                unknown.append(name)
            else:
                regions = resize_nearest(ids, SIDE)
                count = int(ids.max()) + 1
                rows.append((count, mean_best_iou(regions, objects), same_object_share(regions, objects)))
        on_progress(done, len(positions))
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    counted = table[~np.isnan(table[:, 1])]
    if not len(counted):
        first = f" (the first, {': '.join(unusable[0])})" if unusable else ""
        raise DataError(
            f"none of the {len(positions)} images has objects in {truth}{first}; name masks of these images"
        )
    return QualityReport(
        images=len(counted),
        empty=len(table) - len(counted),
        regions=_mean(counted[:, 0]),
        best_iou=_mean(counted[:, 1]),
        same_object=_mean(counted[:, 2]),
        unknown=tuple(unknown),
        unusable=tuple(unusable),
    )


def mean_best_iou(regions: NDArray[Any], objects: NDArray[Any]) -> float:
    """Mean over the objects o of the maximum over the regions r of |r and o| / |r or o|, in labelled pixels.

    Pixels without a region count only for the object.

    Args:
        regions: Region ids [H, W].
        objects: Object ids [H, W].

    Returns:
        A number from 0 to 1; nan if there is no object.
    """
    shared = _shared_pixels(regions, objects)
    inside = shared[1:, 1:]
    object_size = shared[1:].sum(axis=1)
    union = object_size[:, None] + shared[:, 1:].sum(axis=0) - inside
    present = object_size > 0
    best = np.max(inside[present] / np.maximum(union[present], 1), axis=1, initial=0.0)
    return float(best.mean()) if len(best) else float("nan")


def same_object_share(regions: NDArray[Any], objects: NDArray[Any]) -> float:
    """Share of the pairs of pixels of one region that lie on one object; pairs on the background do not count.

    With n_ro pixels of region r on object o (0: background), n_r their sum over o, and C(n) = n (n - 1) / 2:
    sum over r and o > 0 of C(n_ro), divided by the sum over r of C(n_r) - C(n_r0).

    Args:
        regions: Region ids [H, W].
        objects: Object ids [H, W].

    Returns:
        A number from 0 to 1; nan if there is no such pair.
    """
    shared = _shared_pixels(regions, objects)[:, 1:].astype(np.float64)
    pairs = shared * (shared - 1) / 2
    region_size = shared.sum(axis=0)
    counted = (region_size * (region_size - 1) / 2 - pairs[0]).sum()
    return float(pairs[1:].sum() / counted) if counted else float("nan")


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the numbers that are not nan; nan if there is none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else float("nan")


def _object_reader(truth: str, images: ImageList, channels: int) -> Callable[[int], NDArray[Any] | None]:
    """Position -> objects [SIDE, SIDE]; None if the annotations do not have the image."""
    if Path(truth).is_dir():

        def read_map(position: int) -> NDArray[Any] | None:
            file = find_map(truth, images.names[position])
            if file is None:
                return None
            header = partial(images.read_header, position, channels)
            return load_regions(file, SIDE, header=header).numpy() + 1

        return read_map
    masks = read_coco_masks(truth, images, channels)

    def draw_masks(position: int) -> NDArray[Any] | None:
        name = images.names[position]
        return masks.objects(name, SIDE) if name in masks.entries else None

    return draw_masks


def _shared_pixels(regions: NDArray[Any], objects: NDArray[Any]) -> NDArray[np.int64]:
    """Labelled pixels by object (row 0: background) and region (column 0: none): [1 + objects, 1 + k]."""
    if regions.shape != objects.shape:
        raise ValueError(f"regions {regions.shape} and objects {objects.shape} must have the same shape")
    labelled = objects >= 0
    column = np.maximum(regions[labelled].astype(np.int64), -1) + 1
    row = objects[labelled].astype(np.int64)
    columns = int(column.max(initial=0)) + 1
    rows = int(row.max(initial=0)) + 1
    return np.bincount(row * columns + column, minlength=rows * columns).reshape(rows, columns)
