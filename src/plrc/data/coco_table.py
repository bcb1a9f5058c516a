"""The JSON object of a COCO file, and the entries of its lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plrc.errors import DataError
from plrc.files import parse_json


def read_coco_table(path: str | Path) -> dict[str, Any]:
    """Read the JSON object of a COCO file. Raises DataError if it is not one."""
    try:
        table = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a COCO file") from error
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON ({error}); fix or remove it") from error
    if not isinstance(table, dict):
        raise DataError(f"{path} is not a COCO file of instances: it holds a {type(table).__name__}, not an object")
    return table


def read_entries(path: str | Path, table: Mapping[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a list of a COCO file.

    Args:
        path: The file, for messages.
        table: Its content.
        key: Name of the list, such as "images".

    Yields:
        (location for messages, entry).

    Raises:
        DataError: There is no such list, or it has an entry that is not an object.
    """
    entries = table.get(key)
    if not isinstance(entries, list):
        raise DataError(f'{path} is not a COCO file of instances: it has no list "{key}"')
    for number, entry in enumerate(entries):
        location = f"{Path(path).name} {key} {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{path} is not a COCO file of instances: entry {number} of its {key} is not an object")
        yield location, entry
