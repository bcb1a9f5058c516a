"""The classes of a semantic source: which values of its label maps are which class.

What the values mean is decided once for all maps of a source. What is not certain, classes.txt decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plrc.data.reading import ReadingReport
from plrc.errors import DataError
from plrc.measures.segmentation import IGNORED
from plrc.text import some
from plrc.transfer.labels.class_list import ClassList, color_text, read_class_list
from plrc.transfer.labels.label_maps import MAX_ID, MapEncoding, MapValues

BINARY = ("background", "foreground")
"""Names of the classes of maps with nothing but 0 and 255, if no file names them."""
MAX_UNNAMED = 32
"""Largest number of ids that are classes without a list of names: blurred masks have more."""
_SURELY_NUMBERS = 64  # ids below it number classes, so 255 next to them means unlabelled; 85 and 170 may be gray values
_FEWEST_CLASSES = {"train": 2, "val": 0, "test": 1}  # with 1 class to train on, any prediction is right


@dataclass(frozen=True)
class ClassTable:
    """The classes of a source, and how to read them from its label maps.

    Attributes:
        names: The classes, by number.
        class_of_value: Id or color -> number of its class. Other values are ignored.
        encoding: How the files are read.
    """

    names: tuple[str, ...]
    class_of_value: Mapping[int, int]
    encoding: MapEncoding

    @cached_property
    def _class_of_each_value(self) -> NDArray[np.uint8]:
        """The class of each value up to the largest id or color that has one; one more entry for all larger values."""
        largest = max([MAX_ID, *self.class_of_value])
        table = np.full(largest + 2, IGNORED, dtype=np.uint8)
        for value, number in self.class_of_value.items():
            table[value] = number
        return table

    def read(self, path: str) -> NDArray[np.uint8]:
        """Read the class of each pixel of a label map, [H, W]; 255 is ignored. Raises DataError."""
        values = self.encoding.read(path)
        table = self._class_of_each_value
        if values.dtype.itemsize > 2:  # values may be larger than every id
            values = np.minimum(values, len(table) - 1)
        classes: NDArray[np.uint8] = table.take(values)
        return classes

    def count(self, contents: Iterable[MapValues]) -> tuple[NDArray[np.int64], dict[int, int]]:
        """Count pixels.

        Args:
            contents: The values of label maps.

        Returns:
            The pixels of each class, and value -> number of pixels for the values that are ignored.
        """
        pixels = np.zeros(len(self.names), dtype=np.int64)
        ignored: dict[int, int] = {}
        for content in contents:
            for value, count in self.encoding.pixels(content).items():
                if value in self.class_of_value:
                    pixels[self.class_of_value[value]] += count
                else:
                    ignored[value] = ignored.get(value, 0) + count
        return pixels, ignored

    def value_text(self, value: int) -> str:
        """Return a value as messages show it: an id, or a color R,G,B."""
        return color_text(value) if self.encoding.in_color else str(value)


def fixed_classes(names: Mapping[int, str], maps: Mapping[str, MapValues], root: Path) -> ClassTable:
    """Build the table of a public data set or of COCO's categories: id -> name, numbered in the order of the ids.

    Args:
        names: The classes by id; other ids are ignored.
        maps: Path of a label map -> its values.
        root: The source, for messages.

    Raises:
        DataError: The maps have colors, not ids.
    """
    if _in_color(maps):
        raise DataError(_ask_for_colors(root, maps))
    ids = sorted(names)
    return ClassTable(tuple(names[i] for i in ids), {i: number for number, i in enumerate(ids)}, _encoding_of_ids(maps))


def used_ids(maps: Mapping[str, MapValues]) -> list[int]:
    """Return the ids that occur in label maps of ids, in increasing order."""
    encoding = _encoding_of_ids(maps)
    ids: set[int] = set()
    for content in maps.values():
        ids |= set(encoding.pixels(content))
    return sorted(ids)


def classes_of_source(
    root: Path, maps: Mapping[str, MapValues], reading: ReadingReport, known: Mapping[int, str] | None = None
) -> ClassTable:
    """Find the classes of a source: by its own list (`CLASS_FILES`), else `known`, else the ids that occur.

    Args:
        root: The source.
        maps: Path of a label map -> its values, for all maps of the source that are used.
        reading: Receives how the maps were understood.
        known: Id -> name for a public data set.

    Raises:
        DataError: What a value means is not certain, or the list is not that of these maps.
    """
    listed = read_class_list(root)
    if listed is not None:
        table = _listed_classes(listed, maps)
        reading.add(f"classes: {len(table.names)} of {listed.path.name}")
        return table
    if known is not None:
        return fixed_classes(known, maps, root)
    if _in_color(maps):
        raise DataError(_ask_for_colors(root, maps))
    _require_equal_palettes(root, maps)
    ids = used_ids(maps)
    if ids == [0, IGNORED]:
        reading.add("label maps with nothing but 0 and 255: 0 is the background, 255 is the class foreground")
        return ClassTable(BINARY, {0: 0, IGNORED: 1}, _encoding_of_ids(maps))
    classes = [i for i in ids if i != IGNORED]
    if len(classes) > MAX_UNNAMED:
        raise DataError(
            f"the label maps of {root} have {len(classes)} different ids ({_list_ids(classes)}) without names: name "
            f"the classes in {root / 'classes.txt'}, one line for each id from 0; if the maps were blurred, scaled or "
            "compressed, write them again without loss"
        )
    are_numbers = not classes or classes[-1] < max(_SURELY_NUMBERS, 4 * len(classes))
    if IGNORED in ids and not are_numbers:
        raise DataError(
            f"the label maps of {root} have the ids {_list_ids(ids)}, and whether 255 is a class or unlabelled is not "
            f"certain: name them in {root / 'classes.txt'} with lines such as name:{classes[-1]}, and name:255 or "
            "ignore:255"
        )
    return fixed_classes({i: f"class {i}" for i in classes}, maps, root)


def describe_pixels(table: ClassTable, contents: Iterable[MapValues], role: str, split: str) -> str:
    """Describe how the pixels of a set of label maps are shared by the classes.

    Args:
        table: The classes.
        contents: The values of the maps.
        role: What the set is for: train, val or test.
        split: Its split, for messages.

    Returns:
        The share of each class, and of ignored pixels, in percent.

    Raises:
        DataError: No pixel to train on or to test on counts; or all pixels to train on are of one class, so that any
            prediction is right.
    """
    pixels, ignored = table.count(contents)
    total = max(1, int(pixels.sum()) + sum(ignored.values()))
    values = some(map(table.value_text, sorted(ignored)))
    what = "colors" if table.encoding.in_color else "ids"
    ignored_share = f"ignored {sum(ignored.values()) / total:.1%} ({what} {values})" if ignored else "ignored 0.0%"
    present = np.flatnonzero(pixels)
    if len(present) < _FEWEST_CLASSES[role]:
        seen = f"no class but {table.names[present[0]]}" if len(present) else "no class"
        raise DataError(
            f"the label maps of the split {split}, read for {role}, show {seen} ({ignored_share}); check them, or name "
            f"their {what} in classes.txt"
        )
    order = sorted(present.tolist(), key=lambda number: -pixels[number])
    shares = some((f"{table.names[number]} {pixels[number] / total:.1%}" for number in order), 8)
    absent = [table.names[number] for number in np.flatnonzero(pixels == 0)]
    without = f", none of {some(absent)}" if absent else ""
    return f"{shares}{without}, {ignored_share}"


def _listed_classes(listed: ClassList, maps: Mapping[str, MapValues]) -> ClassTable:
    """The classes of a list; raises DataError if it is not the list of these maps."""
    names = listed.names()
    if len(names) > IGNORED:
        raise DataError(f"{listed.path} names {len(names)} classes; at most {IGNORED} can be used")
    used = _list_for_maps(listed, maps)
    number_of_name = {name: number for number, name in enumerate(names)}
    class_of_value = {value: number_of_name[name] for name, value in used.entries if name in number_of_name}
    encoding = MapEncoding(in_color=True) if used.in_color else _encoding_of_ids(maps)
    table = ClassTable(names, class_of_value, encoding)
    _require_named(used, table, maps)
    return table


def _list_for_maps(listed: ClassList, maps: Mapping[str, MapValues]) -> ClassList:
    """The list with the values that its names have in these maps."""
    entries = listed.entries
    if listed.in_color:
        if _in_color(maps) or _names_all_colors(entries, maps):
            return listed
        are_lines = used_ids(maps)[-1] < len(entries)  # the maps have the numbers of the lines, not the colors
        by_line = tuple((name, line) for line, (name, _) in enumerate(entries))
        return replace(listed, entries=by_line, in_color=False) if are_lines else listed
    if _in_color(maps):
        raise DataError(_ask_for_colors(listed.path.parent, maps))
    if listed.numbered and len(entries) == 2 and used_ids(maps) == [0, IGNORED]:
        background, foreground = (name for name, _ in entries)
        return replace(listed, entries=((background, 0), (foreground, IGNORED)))
    return listed


def _names_all_colors(entries: Iterable[tuple[str, int]], maps: Mapping[str, MapValues]) -> bool:
    named = {value for _, value in entries}
    encoding = MapEncoding(in_color=True)
    return all(named.issuperset(encoding.pixels(content)) for content in maps.values())


def _require_named(listed: ClassList, table: ClassTable, maps: Mapping[str, MapValues]) -> None:
    """Raise DataError if a value occurs that the list does not name."""
    named = {value for _, value in listed.entries}
    in_color = table.encoding.in_color
    pixels, ignored = table.count(maps.values())
    unnamed = {value: count for value, count in ignored.items() if value not in named}
    if not in_color and used_ids(maps) != [0, IGNORED]:
        unnamed.pop(IGNORED, None)  # next to other ids than 0, 255 means unlabelled
    if not unnamed:
        return
    share = sum(unnamed.values()) / (int(pixels.sum()) + sum(ignored.values()))
    shown = some(map(table.value_text, sorted(unnamed)))
    smallest = min(unnamed)
    value = table.value_text(smallest)
    example = next(path for path, content in maps.items() if smallest in table.encoding.pixels(content))
    advice = f"add a line such as name:{value} or ignore:{value} for each"
    if listed.numbered:
        advice = f"write its lines as name:ID, such as {listed.entries[0][0]}:0, and name:{value} or ignore:{value}"
    raise DataError(
        f"{listed.path} does not name the {'colors' if in_color else 'ids'} {shown}, which {share:.1%} of all label "
        f"pixels have, such as in {example}; {advice}"
    )


def _in_color(maps: Mapping[str, MapValues]) -> bool:
    return any(content.kind == "color" for content in maps.values())


def _encoding_of_ids(maps: Mapping[str, MapValues]) -> MapEncoding:
    """How maps of ids are read: a set bit is 1 if gray maps have other ids than 0 and 255; else 255."""
    ids: set[int] = set()
    for content in maps.values():
        if content.kind != "bits":
            ids |= set(content.pixels)
    has_other_ids = bool(ids - {0, IGNORED})
    return MapEncoding(bit=1 if has_other_ids else 255)


def _require_equal_palettes(root: Path, maps: Mapping[str, MapValues]) -> None:
    """Raise DataError if an index has different colors in two maps: then the colors are the classes."""
    first: dict[int, tuple[str, int]] = {}
    for path, content in maps.items():
        for index, color in content.palette.items():
            other, other_color = first.setdefault(index, (path, color))
            if color != other_color:
                raise DataError(
                    f"the palettes of the label maps of {root} differ: index {index} is {color_text(other_color)} in "
                    f"{other} and {color_text(color)} in {path}; name the classes by color in {root / 'classes.txt'} "
                    "with lines such as road:128,64,128, or write gray maps of ids"
                )


def _ask_for_colors(root: Path, maps: Mapping[str, MapValues]) -> str:
    encoding = MapEncoding(in_color=True)
    pixels: dict[int, int] = {}
    for content in maps.values():
        for color, count in encoding.pixels(content).items():
            pixels[color] = pixels.get(color, 0) + count
    total = sum(pixels.values())
    frequent = sorted(pixels, key=lambda color: (-pixels[color], color))
    shown = some((f"{color_text(color)} ({pixels[color] / total:.1%})" for color in frequent), 6)
    example = next(path for path, content in maps.items() if content.kind == "color")
    return (
        f"the label maps of {root} have {len(pixels)} colors, {shown}, such as {example}, and no file names their "
        f"classes: write {root / 'classes.txt'} with a line name:R,G,B or ignore:R,G,B for each (or add CVAT's "
        "labelmap.txt)"
    )


def _list_ids(ids: list[int]) -> str:
    return some(map(str, ids), 8)
