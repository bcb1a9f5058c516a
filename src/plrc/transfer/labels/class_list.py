"""Lists of classes that users and labelling tools write: classes.txt, and the color tables of CVAT and CamVid."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from plrc.data.layouts import read_lines, read_numbered_lines
from plrc.errors import DataError
from plrc.transfer.labels.label_maps import MAX_ID

CLASS_FILES = ("classes.txt", "labelmap.txt", "label_colors.txt", "class_dict.csv")
"""Files that are looked for, in this order. All but the first have a color in each line."""

_COLOR = r"(?P<red>\d+)\s*,\s*(?P<green>\d+)\s*,\s*(?P<blue>\d+)"
_FORMS = (
    re.compile(rf"(?P<name>[^:]+?)\s*:\s*{_COLOR}\s*(?::.*)?"),  # road:128,64,128 and CVAT's road:128,64,128::
    re.compile(r"(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+(?P<name>\S.*)"),  # CamVid's 128 64 128 Road
    re.compile(rf"(?P<name>[^,]+?)\s*,\s*{_COLOR}"),  # Road,128,64,128
)
_NAME_AND_ID = re.compile(r"(?P<name>[^:]+?)\s*:\s*(?P<id>\d+)")
_UNLABELLED = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}


@dataclass(frozen=True)
class ClassList:
    """The classes that a file names.

    Attributes:
        path: The file.
        entries: (name, value) in the order of the file: an id, or a color as a number.
        in_color: The values are colors.
        numbered: The ids are those of the lines, from 0; the file states none.
    """

    path: Path
    entries: tuple[tuple[str, int], ...]
    in_color: bool
    numbered: bool

    def names(self) -> tuple[str, ...]:
        """Return the names of the classes, each once, without those that mean unlabelled."""
        names = [name for name, _ in self.entries if name.lower() not in _UNLABELLED]
        return tuple(dict.fromkeys(names))


def read_class_list(root: Path) -> ClassList | None:
    """Read the list of classes of a source.

    A line of classes.txt is a name, the first that of id 0; or NAME:ID, or NAME:R,G,B with a color. Several lines of
    one name are one class. Names such as "void" or "ignore" mean that the value is ignored.

    Args:
        root: The folder of the source.

    Returns:
        The content of the first of CLASS_FILES that is there; None without any.

    Raises:
        DataError: A line that cannot be read, lines of several forms, or a value that occurs twice.
    """
    path = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        return None
    lines = read_lines(str(path))
    if path.suffix == ".csv" and lines and not re.search(r"\d", lines[0]):
        lines = lines[1:]  # the header name,r,g,b
    colors = [_read_color(line, path) for line in lines]
    ids = [_read_id(line, path) for line in lines]
    if path.name == "classes.txt" and not any(colors) and not any(ids):
        lines = read_numbered_lines(str(path))
        if lines:
            numbered = tuple((name, number) for number, name in enumerate(lines))
            return ClassList(path, numbered, in_color=False, numbered=True)
    if not lines:
        raise DataError(f"{path} names no class; write one in each line")
    in_color = any(colors) or path.name != "classes.txt"
    kind = "color" if in_color else "id"
    example = "road:128,64,128" if in_color else "road:7"
    entries: list[tuple[str, int]] = []
    for line, entry in zip(lines, colors if in_color else ids, strict=True):
        if entry is None:
            raise DataError(f"{path}: the line {line!r} has no {kind}; write it like the others, such as {example}")
        entries.append(entry)
    _check_unique(entries, path, in_color)
    return ClassList(path, tuple(entries), in_color, numbered=False)


def color_text(color: int) -> str:
    """Return a color as R,G,B."""
    return f"{color >> 16},{color >> 8 & 255},{color & 255}"


def _read_color(line: str, path: Path) -> tuple[str, int] | None:
    for form in _FORMS:
        match = form.fullmatch(line)
        if match:
            red, green, blue = (int(match[channel]) for channel in ("red", "green", "blue"))
            if max(red, green, blue) > 255:
                raise DataError(f"{path}: the line {line!r} has a color above 255")
            return match["name"], red * 65536 + green * 256 + blue
    return None


def _read_id(line: str, path: Path) -> tuple[str, int] | None:
    match = _NAME_AND_ID.fullmatch(line)
    if match is None:
        return None
    number = int(match["id"])
    if number > MAX_ID:
        raise DataError(f"{path}: the line {line!r} has an id above {MAX_ID}")
    return match["name"], number


def _check_unique(entries: list[tuple[str, int]], path: Path, in_color: bool) -> None:
    names: dict[int, str] = {}
    for name, value in entries:
        if names.setdefault(value, name) != name:
            what = f"color {color_text(value)}" if in_color else f"id {value}"
            raise DataError(f"{path} gives the {what} to {names[value]} and to {name}; remove one of them")
