"""One annotated image: as a file says it (`Picture`), and checked, as arrays (`Labelled`).

Layer 5: imports config and data. Whatever is dropped or mended is counted by reason in `Notes`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plrc.data.decode import DecodeError, decode, read_header
from plrc.data.masks import encode_segment
from plrc.text import note

BOXLESS = "objects without a box of four numbers, dropped"
FLAT = "boxes without width or height, dropped"
_TOLERANCE = 0.1  # pixels that a box may lie outside by rounding
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8: height and width change places
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 64  # bytes in which a file's end is looked for


class Thing(NamedTuple):
    """One object. box: x0 y0 x1 y1 in pixels, not clipped. area: None for the box's. segment: COCO's `segmentation`.
    ignored, difficult: COCO's crowd, and VOC's difficult, which may be trained on."""

    kind: str
    box: tuple[float, float, float, float]
    where: str
    ignored: bool = False
    area: float | None = None
    segment: Any = None
    difficult: bool = False


class Picture(NamedTuple):
    """One image. name: relative to the source. labels: path of its id map, if it has one."""

    name: str
    path: str
    height: int
    width: int
    things: list[Thing]
    labels: str = ""


@dataclass(frozen=True)
class Labelled:
    """One image with its labels: n objects, sizes in pixels."""

    name: str
    """Relative to the source; unique in the set."""
    path: str
    height: int
    width: int
    boxes: NDArray[np.float32]
    """[n, 4]: x0 y0 x1 y1, x1 and y1 exclusive, inside the image, never empty."""
    classes: NDArray[np.int64]
    """[n], from 0."""
    ignored: NDArray[np.bool_]
    """[n]: COCO's crowd, VOC's difficult. Not trained on, not counted against a detector."""
    areas: NDArray[np.float64]
    """[n] square pixels, as COCO's sizes use them: the annotation's own, else the box's."""
    segments: tuple[Any, ...] = ()
    """[n] masks as compressed COCO run lengths; () where only boxes are read."""
    labels: str = ""
    """Semantic: path of the id map, to be read through `LabelledSet.label_map`."""


class Notes:
    """What the reader has to say: sentences, and what it dropped or mended, counted by reason."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.found: dict[str, dict[str, None]] = {}

    def say(self, *sentences: str) -> None:
        self.sentences += sentences

    def count(self, reason: str, where: str) -> None:
        """One more for a reason; a place that two splits share counts once."""
        self.found.setdefault(reason, {})[where] = None

    def all(self) -> tuple[str, ...]:
        """The sentences, then "reason: count (first three places)"."""
        counted = [line for reason, places in self.found.items() for line in note(reason, places)]
        return tuple(dict.fromkeys([*self.sentences, *counted]))


def picture(root: Path, path: Path, notes: Notes, stated: tuple[int, int] | None = None) -> Picture | None:
    """An image file of the source `root` -> Picture without objects, its size from its header; None if unreadable.

    stated: the height and width that the annotation gives (0: unknown); None too where the file has others.
    """
    name = os.path.relpath(path, root).replace(os.sep, "/")
    try:
        size = _size_of_whole(path)
    except DecodeError:
        state = "cannot be read" if path.exists() else "are missing"
        notes.count(f"image files that {state}, dropped", name)
        return None
    if stated is not None and min(stated) > 0 and stated != size:
        notes.count("images of another size than their annotation says, dropped", name)
        return None
    return Picture(name, str(path), *size, [])


def checked(found: Picture, classes: Mapping[str, int], masks: bool, difficult: bool, notes: Notes) -> Labelled:
    """Check the objects and stack them. Boxes partly outside are clipped; what has no class, no box inside the image
    or (with `masks`) no mask is dropped. Difficult objects are ignored, unless `difficult`."""
    boxes, kinds, ignored, areas, segments = [], [], [], [], []
    border = (found.width, found.height) * 2
    for thing in found.things:
        box = np.clip(thing.box, 0, border).astype(np.float32)
        inside = bool(box[2] > box[0] and box[3] > box[1])
        if thing.kind not in classes:
            notes.count("objects of an unknown class, dropped", f"{thing.where} {thing.kind}")
            continue
        if not (thing.box[2] > thing.box[0] and thing.box[3] > thing.box[1]):
            notes.count(FLAT, thing.where)
            continue
        if not inside:
            notes.count("boxes outside of the image, dropped", thing.where)
            continue
        segment = encode_segment(thing.segment, found.height, found.width) if masks else None
        if masks and segment is None:
            notes.count("objects without a usable mask, dropped", thing.where)
            continue
        if np.abs(box - np.array(thing.box)).max() > _TOLERANCE:
            notes.count("boxes partly outside of the image, clipped", thing.where)
        boxes.append(box)
        kinds.append(classes[thing.kind])
        ignored.append(thing.ignored or (thing.difficult and not difficult))
        areas.append(float((box[2] - box[0]) * (box[3] - box[1])) if thing.area is None else thing.area)
        segments.append(segment)
    return Labelled(
        found.name, found.path, found.height, found.width,
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(kinds, dtype=np.int64),
        np.array(ignored, dtype=np.bool_), np.array(areas, dtype=np.float64),
        tuple(segments) if masks else (), found.labels,
    )  # fmt: skip


def _size_of_whole(path: Path) -> tuple[int, int]:
    """(height, width) as `decode` gives them, from the header alone; a JPEG or PNG whose last bytes are not the usual
    ones is decoded. Raises DecodeError."""
    try:
        with open(path, "rb") as file:
            header = read_header(file)
            file.seek(0)
            turned = header.format in ("JPEG", "MPO") and Image.open(file).getexif().get(_ORIENTATION, 1) in range(5, 9)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
    except (OSError, Image.DecompressionBombError) as error:
        raise DecodeError(str(error), str(path)) from error
    if _ENDS.get(header.format, b"") not in tail:
        decode(path)
    return (header.width, header.height) if turned else (header.height, header.width)
