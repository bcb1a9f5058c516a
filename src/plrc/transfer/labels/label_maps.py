"""Maps of class ids (semantic segmentation): reading a file, and naming the ids.

A table is id in the file -> class name; an id that it lacks is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plrc.data.layouts import read_lines
from plrc.errors import DataError
from plrc.measures.segmentation import IGNORED

MODES = ("L", "P", "1")
"""Pillow's modes of an id map: gray values, palette entries, bits."""

_UNLABELLED = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}


def check_mode(path: str | Path, mode: str, modes: tuple[str, ...] = MODES) -> None:
    """Raise DataError for an id map of another mode, such as an image of colors."""
    if mode not in modes:
        raise DataError(f"{path} contains {mode} pixels, not ids; write label maps as gray or palette PNG files")


def read_ids(path: str | Path) -> NDArray[np.uint8]:
    """Read an id map [H, W] from a file of gray values or palette entries.

    Raises:
        DataError: The file cannot be read or is not an id map.
    """
    try:
        with Image.open(path) as image:
            check_mode(path, image.mode)
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's for a damaged PNG
        raise DataError(f"the label map {path} cannot be read ({error}); fix or remove it") from error


def index_classes(table: Mapping[int, str]) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Number the classes of a table in the order of their ids.

    Returns:
        The names of the classes, and the array [256] that maps an id to its class (255: ignored).
    """
    ids = sorted(table)
    class_of_id = np.full(256, IGNORED, dtype=np.uint8)
    class_of_id[ids] = np.arange(len(ids))
    return tuple(table[i] for i in ids), class_of_id


def table_of_used_ids(id_maps: Iterable[str], names: Mapping[int, str], ignored: Iterable[int] = ()) -> dict[int, str]:
    """Build the table of the ids that occur in id maps, without 255 and `ignored`; "class 3" if an id has no name.

    Args:
        id_maps: Paths of the files; all are read.
        names: Known names by id.
        ignored: Ids to leave out.
    """
    pixels = np.zeros(256, dtype=np.int64)
    for path in id_maps:
        pixels += np.bincount(read_ids(path).ravel(), minlength=256)
    ids = set(np.flatnonzero(pixels).tolist()) - {IGNORED, *ignored}
    return {i: names.get(i, f"class {i}") for i in sorted(ids)}


def table_of_source(root: Path, id_maps: Iterable[str]) -> dict[int, str]:
    """Build the table of a source without fixed classes: its classes.txt, or else the ids that occur.

    Each line of classes.txt is a name, the first that of id 0. Names such as "void" or "unlabelled" are ignored.
    """
    path = root / "classes.txt"
    if not path.is_file():
        return table_of_used_ids(id_maps, {})
    return {i: name for i, name in enumerate(read_lines(str(path))) if name.lower() not in _UNLABELLED}
