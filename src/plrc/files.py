"""Files that appear whole or not at all. Layer 0: imports nothing of ours."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write to a neighbour file, flush it to the disk, then rename: the path holds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for text, in UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """`write_atomic` for JSON, which has no nan: see `without_nan`."""
    write_text(path, json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError where it is none, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def printable(text: str) -> str:
    """`text`, such as a file's name, on one line that any terminal and any log can take: control characters, what turns
    the direction of writing, and bytes that are no text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`printable` for each of the lines of a text of ours that may hold foreign names."""
    return "\n".join(map(printable, text.split("\n")))


def without_nan(value: Any) -> Any:
    """A copy of nested dicts and lists with None, JSON's null, for every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
