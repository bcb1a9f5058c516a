"""The categories of a COCO file, without those that only stand for a group or the background."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plrc.data.coco_table import read_entries
from plrc.data.coco_values import Ids, read_id
from plrc.data.reading import ReadingReport
from plrc.errors import DataError


def read_categories(path: str | Path, table: Mapping[str, Any], reading: ReadingReport) -> Ids[str]:
    """Read the names of the categories, in the order of the ids.

    Args:
        path: The file, for messages.
        table: Its content.
        reading: Counts what is repaired and dropped.

    Raises:
        DataError: There are none, or two of one id.
    """
    names: dict[int | str, str] = {}
    for location, entry in read_entries(path, table, "categories"):
        key = read_id(entry.get("id"))
        name = entry.get("name")
        if key is None or not isinstance(name, (str, int, float)):
            reading.count("dropped", "categories without an id and a name", location)
            continue
        if names.setdefault(key, str(name)) != str(name):
            raise DataError(
                f"{path}: two categories, {names[key]} and {name}, have the id {key}, so the class of an object is not "
                "certain; give each category its own id"
            )
    if not names:
        raise DataError(f'{path} is not a COCO file of instances: it has no "categories" with id and name')
    ids: Ids[str] = Ids()
    known: set[str] = set()
    numbers_first = sorted(names, key=lambda key: (isinstance(key, str), key))
    for key in numbers_first:
        if names[key] in known:
            reading.count("repaired", "categories of the same name, read as one", f"{names[key]} (id {key})")
        known.add(names[key])
        ids[key] = names[key]
    return ids


def without_unused_groups(
    path: str | Path, categories: Ids[str], table: Mapping[str, Any], reading: ReadingReport
) -> Ids[str]:
    """Return the categories without those that no object has and that only stand for a group or the background.

    Some exporters write such a category with the id 0.

    Args:
        path: The file, for messages.
        categories: All categories.
        table: Content of the file.
        reading: Counts what is left out.

    Raises:
        DataError: There is no list of annotations.
    """
    used = {str(read_id(entry.get("category_id"))) for _, entry in read_entries(path, table, "annotations")}
    members: defaultdict[str, set[int | str]] = defaultdict(set)  # group -> ids of its categories
    for _, entry in read_entries(path, table, "categories"):
        key = read_id(entry.get("id"))
        if key is not None:
            members[str(entry.get("supercategory") or "")].add(key)
    kept: Ids[str] = Ids()
    for key in categories:
        name = categories[key]
        is_background = name.strip("_").lower() == "background"
        if str(key) not in used and (is_background or _is_group(key, name, members)):
            reading.count("left out", "categories of a group or the background that no object has", name)
        else:
            kept[key] = name
    return kept if kept.values() else categories


def _is_group(key: int | str, name: str, members: Mapping[str, set[int | str]]) -> bool:
    """Whether a category is the group of others, or has the group "none" while others have a group."""
    if members.get(name, set()) - {key}:
        return True
    return key in members.get("none", ()) and len(members) > 1
