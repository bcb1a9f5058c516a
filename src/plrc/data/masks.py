"""Masks of objects in COCO's formats: as run lengths, as arrays, and as the object maps of the images of a COCO file.

Needs the package faster-coco-eval once a function is called.

Shapes: n objects, H x W pixels of the annotated image.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.data.coco_file import CocoImage, read_images, read_objects
from plrc.data.coco_names import find_images, names_by_ending
from plrc.data.coco_table import read_coco_table
from plrc.data.coco_values import Ids
from plrc.data.id_maps import RegionError, require_pixels, resize_nearest
from plrc.data.orientation import turn
from plrc.data.reading import ReadingReport
from plrc.data.sources import ImageList
from plrc.errors import DataError, MissingPackageError
from plrc.files import parse_json
from plrc.pixels import RGB_CHANNELS

logger = logging.getLogger(__name__)


def mask_functions() -> Any:
    """Return faster-coco-eval's module of mask functions. Raises MissingPackageError."""
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise MissingPackageError("masks", "faster-coco-eval") from error
    return mask


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask [H, W] as compressed COCO run lengths {"size": [H, W], "counts": bytes}."""
    run_lengths: dict[str, Any] = mask_functions().encode(np.asfortranarray(mask, dtype=np.uint8))
    return run_lengths


def decode_masks(segments: tuple[Any, ...], height: int, width: int) -> NDArray[np.uint8]:
    """Decode the compressed run lengths of n objects into masks of 0 and 1: uint8 [n, H, W]."""
    if not segments:
        return np.zeros((0, height, width), dtype=np.uint8)
    return np.ascontiguousarray(mask_functions().decode(list(segments)).transpose(2, 0, 1))


def encode_segment(segment: Any, height: int, width: int) -> dict[str, Any] | None:
    """Convert a COCO `segmentation` into compressed run lengths.

    Args:
        segment: Polygons, a single polygon, run lengths or compressed run lengths.
        height: Pixels of the image.
        width: Pixels of the image.

    Returns:
        Compressed run lengths; None for a segmentation that is malformed, belongs to another image size, or covers no
        pixel.
    """
    functions = mask_functions()
    size = [height, width]
    try:
        if isinstance(segment, dict):
            counts = segment["counts"]
            if isinstance(counts, str):
                counts = counts.encode()
            elif isinstance(counts, list):
                counts = [_whole(count) for count in counts]
            if list(segment["size"]) != size or (isinstance(counts, list) and sum(counts) != height * width):
                return None
            run_lengths = {"size": size, "counts": counts}
            if not isinstance(counts, bytes):
                run_lengths = functions.frPyObjects(run_lengths, height, width)
            functions.decode(run_lengths)  # raises if the run lengths do not fill the image
        else:
            polygons = [part for part in _parts(segment) if _is_polygon(part)]
            run_lengths = functions.merge(functions.frPyObjects(polygons, height, width))
        return run_lengths if int(functions.area(run_lengths)) > 0 else None
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        OverflowError,
        RuntimeError,
    ):  # what Python and the C++ raise on odd data
        return None


def count_short_parts(segment: Any, location: str, reading: ReadingReport) -> None:
    """Count an object of whose polygons `encode_segment` uses only some.

    Args:
        segment: A COCO `segmentation`.
        location: Where the object is annotated.
        reading: Counts it.
    """
    if isinstance(segment, dict):
        return
    try:
        usable = [_is_polygon(part) for part in _parts(segment)]
    except (TypeError, ValueError, IndexError, OverflowError):  # `encode_segment` refuses all of it
        return
    if any(usable) and not all(usable):
        reading.count("dropped", "parts of masks that are no polygons of 3 points or more", location)


def _parts(segment: Any) -> list[Any]:
    """The polygons of a segmentation, which may be a single one."""
    return [segment] if segment and not isinstance(segment[0], list) else list(segment)


def _is_polygon(part: list[Any]) -> bool:
    return len(part) >= 6 and len(part) % 2 == 0 and all(map(math.isfinite, part))


def _whole(count: float) -> int:
    """A run length as a whole number, also if it is written as 3.0; raises ValueError for anything else."""
    if count < 0 or int(count) != count:
        raise ValueError(f"a run of {count} pixels")
    return int(count)


@dataclass(frozen=True)
class CocoMasks:
    """The masks that a COCO file has for the images of a list.

    Attributes:
        path: The COCO file.
        entries: Image name -> JSON of [H, W, [[segmentation, is crowd], ...]]. Kept as text, which takes a few hundred
            megabytes for 100,000 images, shared by all loader processes.
        images: The list.
        positions: Image name -> its position in the list.
        channels: Channels of the images (`data.channels`).
    """

    path: str
    entries: dict[str, bytes]
    images: ImageList
    positions: dict[str, int]
    channels: int = RGB_CHANNELS

    def objects(self, name: str, size: int) -> NDArray[np.int32]:
        """Return the object map of an image, read at the centers of size x size cells.

        Smaller objects lie on larger ones, and all objects on crowds (areas whose objects are not annotated one by
        one). Malformed masks are left out. Masks for the image as stored are turned as EXIF turns the image.

        Args:
            name: The image.
            size: Side of the map.

        Returns:
            int32 [size, size]: 0 background, above 0 the number of an object, -1 a crowd.

        Raises:
            RegionError: The file does not list the image, or states a size of another shape than it has.
            DecodeError: The header of the image cannot be read.
        """
        if name not in self.entries:
            raise RegionError(f"{self.path} does not list image {name}; add it there, or leave it out of the images")
        height, width, annotations = parse_json(self.entries[name])
        header = self.images.read_header(self.positions[name], self.channels)
        orientation = header.orientation_for(height, width)
        if orientation is None:
            raise RegionError(
                f"{self.path} states {width} x {height} pixels for {name}, the image has {header.width} x "
                f"{header.height}"
            )
        usable: list[tuple[dict[str, Any], bool]] = []
        for segmentation, is_crowd in annotations:
            run_lengths = encode_segment(segmentation, height, width)
            if run_lengths is not None:
                usable.append((run_lengths, is_crowd))
        areas = [int(mask_functions().area(run_lengths)) for run_lengths, _ in usable]
        crowds_then_large_first = sorted(range(len(usable)), key=lambda i: (not usable[i][1], -areas[i]))
        objects = np.zeros((size, size), dtype=np.int32)
        for i in crowds_then_large_first:
            run_lengths, is_crowd = usable[i]
            mask = resize_nearest(decode_masks((run_lengths,), height, width)[0], size)
            objects[mask > 0] = -1 if is_crowd else i + 1
        return turn(objects, orientation)


def read_coco_masks(path: str | Path, images: ImageList, channels: int = RGB_CHANNELS) -> CocoMasks:
    """Read the masks of a COCO file for the images of a list.

    An entry whose `file_name` leads from the file's own folder to an image belongs to that image alone. Each other
    image has the entry with the longest `file_name` with which its path ends (see `coco_names.names_by_ending`).

    Args:
        path: The COCO file.
        images: The list.
        channels: Channels of the images (`data.channels`).

    Raises:
        DataError: The file cannot be read, has no masks or only those of crowds, lists none of the images, or one entry
            for two of them.
        MissingPackageError: faster-coco-eval is not installed.
    """
    mask_functions()
    table = read_coco_table(path)
    reading = ReadingReport()
    entries_by_id = read_images(path, table, reading)
    read_objects(path, table, entries_by_id, Ids(), reading)
    _require_objects(path, entries_by_id.values())
    entries = {image.file_name: image for image in entries_by_id.values()}
    entry_of = _match_images(path, list(entries), images)
    matched = {name: entries[file_name] for name, file_name in entry_of.items()}
    if not any(_has_object(image) for image in matched.values()):
        raise DataError(
            f"none of the {len(images)} images has objects in {path}, only crowds or nothing; name their masks"
        )
    for image in matched.values():
        for item in image.objects:
            if item.segmentation is None:
                reading.count("dropped", "objects without a mask", item.location)
            elif item.crowd:
                reading.count("left out", "crowds, whose pixels belong to no region", item.location)
            count_short_parts(item.segmentation, item.location, reading)
    for line in reading.lines():
        logger.info(f"{path}: {line}")
    positions = {name: i for i, name in enumerate(images.names) if name in matched}
    encoded = {name: _encode_entry(path, image) for name, image in matched.items()}
    return CocoMasks(str(path), encoded, images, positions, channels)


def _require_objects(path: str | Path, entries: Iterable[CocoImage]) -> None:
    """Raise DataError if no object of a COCO file has a mask, or all objects with a mask are crowds."""
    crowds = 0
    for image in entries:
        if _has_object(image):
            return
        crowds += sum(item.segmentation is not None for item in image.objects)
    if crowds:
        raise DataError(
            f"{path} has masks of crowds only ({crowds} annotations with iscrowd 1), and a crowd is no object; name a "
            "COCO file with masks of objects"
        )
    raise DataError(f"{path} has no masks (no annotation has a segmentation); name a COCO file with masks")


def _has_object(image: CocoImage) -> bool:
    """Whether the image has an object with a mask that is no crowd."""
    return any(item.segmentation is not None and not item.crowd for item in image.objects)


def _encode_entry(path: str | Path, image: CocoImage) -> bytes:
    """The image as `CocoMasks.entries` has it."""
    if not image.height or not image.width:
        raise DataError(f"{path} lists the image {image.file_name} without height and width, which its masks need")
    try:
        require_pixels(image.height, image.width)
    except ValueError as error:
        raise DataError(f"{path} lists the image {image.file_name} with {error}") from error
    masks = [(item.segmentation, item.crowd) for item in image.objects if item.segmentation is not None]
    return json.dumps([image.height, image.width, masks]).encode()


def _match_images(path: str | Path, file_names: list[str], images: ImageList) -> dict[str, str]:
    """Image name -> `file_name` of its entry, for the images that have one."""
    places = find_images(file_names, [os.path.dirname(os.path.abspath(path))])
    exact: dict[str, str] = {}
    for file_name, place in places.paths.items():
        if os.path.isfile(place):
            exact[os.path.realpath(place)] = file_name
    by_ending = names_by_ending(set(file_names).difference(exact.values()))
    owner: dict[str, str] = {}
    for i, name in enumerate(images.names):
        match = exact.get(os.path.realpath(images.path(i))) or by_ending.get(
            _longest_ending(images.path(i), by_ending), ""
        )
        if match in owner:
            raise DataError(f"{path} lists {match} once, but {owner[match]} and {name} both fit; name its images alone")
        if match:
            owner[match] = name
    if not owner:
        raise DataError(f"{path} lists none of the {len(images)} images, such as {images.names[0]}; name its images")
    return {name: file_name for file_name, name in owner.items()}


def _longest_ending(path: str, file_names: Collection[str]) -> str:
    """The longest of `file_names` with which `path` ends; empty if there is none."""
    parts = path.replace(os.sep, "/").split("/")
    for start in range(len(parts)):
        ending = "/".join(parts[start:])
        if ending in file_names:
            return ending
    return ""
