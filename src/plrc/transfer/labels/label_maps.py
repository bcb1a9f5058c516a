"""Id maps of semantic segmentation: reading one, the public tables of ids, and what an unknown set's ids are called.

Layer 5: imports config and data. A table is id in the file -> class name; an id that it lacks is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plrc.data.layouts import lines
from plrc.errors import PlrcError
from plrc.measures.segmentation import IGNORED

MODES = ("L", "P", "1")
"""Pillow's modes of a map of ids: grey values, palette entries, bits."""

_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
VOC = dict(enumerate(_VOC_NAMES))

CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""The 19 classes that are scored, by labelId; their order is that of the trainIds."""

CITYSCAPES_INSTANCES = {i: name for i, name in CITYSCAPES.items() if i >= 24}
"""The 8 of them whose objects are told apart."""

CAMVID = dict(enumerate("sky building pole road pavement tree sign fence car pedestrian bicyclist".split()))
"""CamVid as prepared for SegNet; 11 is unlabelled."""

_CAMVID_FILE = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_")  # its four sequences

COCO_STUFF = {
    92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter", 109: "curtain", 112: "door-stuff",
    118: "floor-wood", 119: "flower", 122: "fruit", 125: "gravel", 128: "house", 130: "light", 133: "mirror-stuff",
    138: "net", 141: "pillow", 144: "platform", 145: "playingfield", 147: "railroad", 148: "river", 149: "road",
    151: "roof", 154: "sand", 155: "sea", 156: "shelf", 159: "snow", 161: "stairs", 166: "tent", 168: "towel",
    171: "wall-brick", 175: "wall-stone", 176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind",
    181: "window-other", 184: "tree-merged", 185: "fence-merged", 186: "ceiling-merged", 187: "sky-other-merged",
    188: "cabinet-merged", 189: "table-merged", 190: "floor-other-merged", 191: "pavement-merged",
    192: "mountain-merged", 193: "grass-merged", 194: "dirt-merged", 195: "paper-merged", 196: "food-other-merged",
    197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged", 200: "rug-merged",
}  # fmt: skip
"""COCO panoptic's ids beyond the categories of its objects."""

_UNLABELLED = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}


def check_mode(path: str | Path, mode: str, modes: tuple[str, ...] = MODES) -> None:
    """Raises PlrcError for a label map of another mode, such as one of colors."""
    if mode not in modes:
        raise PlrcError(f"{path} holds {mode} pixels, not ids; write label maps as grey or palette PNG files")


def read_ids(path: str | Path) -> NDArray[np.uint8]:
    """An id map [H, W] from a file of grey values or palette entries. Raises PlrcError for anything else."""
    try:
        with Image.open(path) as image:
            check_mode(path, image.mode)
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError) as error:  # Pillow's for a damaged PNG
        raise PlrcError(f"the label map {path} cannot be read ({error}); mend or remove it") from error


def look_up(table: Mapping[int, str]) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """A table -> the classes in the order of their ids, and the array [256] id -> class (255: ignored)."""
    classes = np.full(256, IGNORED, dtype=np.uint8)
    classes[sorted(table)] = np.arange(len(table))
    return tuple(table[i] for i in sorted(table)), classes


def found_table(maps: Iterable[str], known: Mapping[int, str], ignored: Iterable[int] = ()) -> dict[int, str]:
    """The table of the ids that occur in the maps, without 255 and those ignored; "class 3" where no name is known."""
    pixels = np.zeros(256, dtype=np.int64)
    for path in maps:
        pixels += np.bincount(read_ids(path).ravel(), minlength=256)
    ids = set(np.flatnonzero(pixels).tolist()) - {IGNORED, *ignored}
    return {i: known.get(i, f"class {i}") for i in sorted(ids)}


def listed_table(path: Path) -> dict[int, str]:
    """The table of a text file: a name a line, the first of id 0. Lines such as "void" or "unlabelled" are ignored."""
    return {i: name for i, name in enumerate(lines(str(path))) if name.lower() not in _UNLABELLED}


def is_camvid(maps: Iterable[str]) -> bool:
    """Whether every file is named as CamVid's are."""
    return all(_CAMVID_FILE.match(Path(path).name) for path in maps)
