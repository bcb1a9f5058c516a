"""The cached index: which images a source has and, after `plrc scan`, which of them cannot be read.

Layer 1: imports files. That of a scan lives in `.plrc-index.json` in a source folder or, where that cannot be written
or the source is no folder, in the user's cache folder. A missing, broken or stale index is ignored, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plrc.files import parse_json, write_text

NAME = ".plrc-index.json"
VERSION = 1
NEVER_FRESH = -2  # mtime of a folder whose contents may change without changing it


@dataclass(frozen=True)
class Index:
    """Names are relative to the root of the images. `folders` and `names` are filled for a plain folder alone."""

    layout: str
    folders: dict[str, int] = field(
        default_factory=dict
    )  # every folder below the root ("" is the root) -> its mtime in ns
    names: list[str] = field(default_factory=list)  # every image below the root
    notes: list[str] = field(default_factory=list)  # what the listing skipped
    bad: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # name -> (size, mtime in ns, reason)
    version: int = VERSION

    def lists(self, root: str) -> bool:
        """Are `names` still all images below `root`? A folder's mtime changes with each file that comes or goes."""
        return bool(self.folders) and all(mtime(os.path.join(root, f)) == t for f, t in self.folders.items())

    def still_bad(self, root: str) -> frozenset[str]:
        """The images that could not be read and have not changed since."""
        return frozenset(n for n, (size, time, _) in self.bad.items() if stamp(os.path.join(root, n)) == (size, time))


def mtime(path: str) -> int:
    """When a file or folder changed, in ns; -1 where there is none."""
    return stamp(path)[1]


def stamp(path: str) -> tuple[int, int]:
    """(size in bytes, mtime in ns) of a file or folder; (-1, -1) where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in a name
        return -1, -1
    return found.st_size, found.st_mtime_ns


def places(source: str) -> list[Path]:
    """Where the index of a source may lie, best place first."""
    source = os.path.abspath(source)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "plrc"
    fallback = cache / f"index-{hashlib.sha256(os.fsencode(source)).hexdigest()[:24]}.json"
    return [Path(source) / NAME, fallback] if os.path.isdir(source) else [fallback]


def prepare_index(source: str) -> Path | None:
    """The file that the index will be written to, created before the folders are listed: a new file changes its
    folder's mtime, writing into one that is there does not. None where no place can be written."""
    for place in places(source):
        try:
            if place.parent != Path(os.path.abspath(source)):
                place.parent.mkdir(parents=True, exist_ok=True)
            place.open("a").close()
        except OSError:
            continue
        return place
    return None


def write_index(place: Path, index: Index) -> bool:
    """Did it work? In place, not by renaming: that would change the folder's mtime. Half an index is a broken one."""
    try:
        place.write_text(json.dumps(vars(index)), encoding="utf-8")
    except OSError:
        return False
    return True


def settled(folders: dict[str, int], now: int) -> bool:
    """Whether a change to any of the folders after `now` (ns) would show: none may be untold by its mtime, nor have
    changed so recently that, with a clock of two seconds as some file systems have, another change looks the same."""
    return all(time != NEVER_FRESH and time < now - 2_000_000_000 for time in folders.values())


def remember(source: str, index: Index) -> None:
    """Keep an index in the user's cache folder; where that cannot be written, the next start lists the images again."""
    with contextlib.suppress(OSError):
        write_text(places(source)[-1], json.dumps(vars(index)))


def read_index(source: str, layout: str) -> Index | None:
    """The newest sound index of a source, or None."""
    newest_first = sorted(places(source), key=lambda place: mtime(str(place)), reverse=True)
    return next((index for index in map(_load, newest_first) if index is not None and index.layout == layout), None)


def _load(place: Path) -> Index | None:
    try:
        raw = parse_json(place.read_text(encoding="utf-8"))
        return _checked(raw) if raw["version"] == VERSION else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _checked(raw: dict[str, Any]) -> Index:
    """An Index of what a file holds; raises TypeError, ValueError or AttributeError where that is something else."""
    return Index(
        layout=raw["layout"],
        folders={os.fspath(folder): int(time) for folder, time in raw["folders"].items()},
        names=[os.fspath(name) for name in raw["names"]],
        notes=[os.fspath(note) for note in raw["notes"]],
        bad={os.fspath(name): (int(size), int(time), str(why)) for name, (size, time, why) in raw["bad"].items()},
    )
