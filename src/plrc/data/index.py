"""The cached index of a source: which images it has and, after `plrc scan`, which of them cannot be read.

A scan writes `.plrc-index.json` into the source folder or, if that is not a folder or cannot be written, a file in the
user's cache folder. A missing, damaged or outdated index is ignored, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plrc.data.pages import split_page
from plrc.data.reading import ReadingReport
from plrc.files import parse_json, write_text

INDEX_NAME = ".plrc-index.json"
VERSION = 3
NEVER_FRESH = -2
"""The mtime of a folder whose contents may change without changing its mtime."""

_CLOCK_TICK = 2_000_000_000  # ns; the coarsest clock of common file systems


@dataclass(frozen=True)
class Index:
    """What is known about a source. Names are relative to the root of its images.

    Attributes:
        layout: The layout that the source was read as.
        folders: For a plain folder, each folder below the root ("" is the root) -> its mtime in ns.
        names: For a plain folder, all images below the root.
        reading: For a plain folder, what was left out.
        bad: Each unreadable image -> (size in bytes, time of the last change in ns, reason).
        settings: What the names and the verdicts depend on besides the files: see `sources.index_settings`.
    """

    layout: str
    folders: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    reading: ReadingReport = field(default_factory=ReadingReport)
    bad: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def is_current(self, root: str) -> bool:
        """Return whether `names` are still all images below `root`: new and removed files change a folder's mtime."""
        return bool(self.folders) and all(mtime(os.path.join(root, f)) == time for f, time in self.folders.items())

    def unchanged_bad(self, root: str) -> set[str]:
        """Return the unreadable images that have not changed since."""
        names: set[str] = set()
        for name, (size, time, _) in self.bad.items():
            if size_and_change(os.path.join(root, split_page(name)[0])) == (size, time):
                names.add(name)
        return names


def size_and_mtime(path: str) -> tuple[int, int]:
    """Return size in bytes and mtime in ns of a file or folder; (-1, -1) if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in a name
        return -1, -1
    return status.st_size, status.st_mtime_ns


def size_and_change(path: str) -> tuple[int, int]:
    """Return size in bytes and time of the last change in ns, of contents or permissions; (-1, -1) without a file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in a name
        return -1, -1
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


def mtime(path: str) -> int:
    """Return the mtime in ns of a file or folder; -1 if it does not exist."""
    return size_and_mtime(path)[1]


def cache_file(kind: str, source: str) -> Path:
    """Return the file in the user's cache folder that keeps something of this kind about a source."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "plrc"
    return cache / f"{kind}-{hashlib.sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:24]}.json"


def index_paths(source: str) -> list[Path]:
    """Return where the index of a source may lie, the preferred place first."""
    fallback = cache_file("index", source)
    return [Path(os.path.abspath(source)) / INDEX_NAME, fallback] if os.path.isdir(source) else [fallback]


def create_index_file(source: str) -> Path | None:
    """Create the file that an index will be written to, before the folders are listed.

    Creating a file changes its folder's mtime, writing into an existing one does not.

    Returns:
        The file; None if no place can be written.
    """
    for path in index_paths(source):
        try:
            if path.parent != Path(os.path.abspath(source)):
                path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError:
            continue
        return path
    return None


def write_index(path: Path, index: Index) -> bool:
    """Write an index into the file that `create_index_file` created.

    The file is written in place: replacing it would change the folder's mtime. A truncated index is ignored when read.

    Returns:
        Whether writing succeeded.
    """
    try:
        path.write_text(_format(index), encoding="utf-8")
    except OSError:
        return False
    return True


def cache_index(source: str, index: Index) -> None:
    """Write an index into the user's cache folder. If that fails, the next start lists the images again."""
    with contextlib.suppress(OSError):
        write_text(index_paths(source)[-1], _format(index))


def mtimes_settled(folders: dict[str, int], now: int) -> bool:
    """Return whether every change to the folders after `now` (ns) will change one of their mtimes.

    It may not if a folder's mtime is NEVER_FRESH, or so recent that two changes can fall into one tick of the clock.
    """
    return all(time != NEVER_FRESH and time < now - _CLOCK_TICK for time in folders.values())


def read_index(source: str, layout: str, settings: dict[str, Any]) -> Index | None:
    """Return the newest index of a source that is readable and has this layout and these settings, or None."""
    for index in _indexes(source, layout):
        if index.settings == settings:
            return index
    return None


def describe_unused_index(source: str, layout: str, settings: dict[str, Any]) -> str:
    """Return a remark if the newest index of a source knows unreadable images, but was made with other settings."""
    for index in _indexes(source, layout):
        if index.settings == settings or not index.bad:
            return ""
        changed = [name for name in settings if index.settings.get(name) != settings[name]]
        return (
            f"the {len(index.bad)} images that plrc scan could not read are not left out, because it was run with "
            f"another {', '.join(changed)}; run it again with the settings of this run"
        )
    return ""


def _indexes(source: str, layout: str) -> Iterator[Index]:
    """The readable indexes of a source that have this layout, the newest first."""
    newest_first = sorted(index_paths(source), key=lambda path: mtime(str(path)), reverse=True)
    for path in newest_first:
        try:
            index = _parse(parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if (index.version, index.layout) == (VERSION, layout):
            yield index


def _format(index: Index) -> str:
    return json.dumps({**vars(index), "reading": index.reading.to_dict()})


def _parse(raw: dict[str, Any]) -> Index:
    """The index that a file holds; raises TypeError, ValueError, KeyError or AttributeError for anything else."""
    bad: dict[str, tuple[int, int, str]] = {}
    for name, (size, time, reason) in raw["bad"].items():
        bad[os.fspath(name)] = (int(size), int(time), str(reason))
    return Index(
        layout=raw["layout"],
        folders={os.fspath(folder): int(time) for folder, time in raw["folders"].items()},
        names=[os.fspath(name) for name in raw["names"]],
        reading=ReadingReport.from_dict(raw["reading"]),
        bad=bad,
        settings=dict(raw["settings"]),
        version=raw["version"],
    )
