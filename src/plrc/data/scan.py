"""Look at every image of a source once: what can be used, what cannot and why; leaves an index behind.

Layer 1: imports config, files and this folder. Decodes in threads (the decoders release Python's lock) and writes the
index, a file of its own, nothing else.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from plrc.config import DataConfig
from plrc.data.decode import DecodeError, decode_bytes, read_header
from plrc.data.index import Index, prepare_index, stamp, write_index
from plrc.data.sources import ImageList, find_images, layout_of, list_source, select
from plrc.machine import cores
from plrc.text import aligned, printable

CHUNK = 16  # images that a thread takes at once
NO_INDEX = ("not written: neither the source nor the cache folder can be written", "shards have one of their own")
SHOWN = 10  # unusable files and duplicates that the table names

Range = tuple[float, float, float]  # smallest, median, largest


def first_of(unusable: Sequence[tuple[str, str]]) -> list[str]:
    """The first SHOWN files with the reason of each, and how many more there are."""
    more = [f"and {len(unusable) - SHOWN} more"] if len(unusable) > SHOWN else []
    return [*(f"{printable(name)}: {reason}" for name, reason in unusable[:SHOWN]), *more]


class Found(NamedTuple):
    """One file. `reason` is empty where it can be used; height and width are those after EXIF rotation."""

    name: str
    size: int
    mtime: int
    reason: str
    digest: str = ""
    height: int = 0
    width: int = 0
    mode: str = ""
    format: str = ""


@dataclass(frozen=True)
class ScanReport:
    """What `scan` found. Sizes, modes and formats are of the usable images; all ranges are 0 where there are none."""

    root: str
    layout: str
    files: int
    usable: int
    excluded: int
    unusable: tuple[tuple[str, str], ...]
    """(relative name, reason)"""
    width: Range
    height: Range
    megapixels: Range
    modes: dict[str, int]
    formats: dict[str, int]
    duplicates: tuple[tuple[str, ...], ...]
    """Groups of files with the same contents."""
    notes: tuple[str, ...]
    index: str
    """Where the index was written; empty: no place could be written."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Plain text to print."""
        copies = sum(len(group) - 1 for group in self.duplicates)
        rows = [
            ("source", f"{self.root} ({self.layout})"),
            ("files", f"{self.files}, of which usable {self.usable}, unusable {len(self.unusable)}"),
            ("excluded", str(self.excluded)),
            ("width", "{:.0f} to {:.0f}, median {:.0f}".format(*np.take(self.width, [0, 2, 1]))),
            ("height", "{:.0f} to {:.0f}, median {:.0f}".format(*np.take(self.height, [0, 2, 1]))),
            ("megapixels", "{:.3g} to {:.3g}, median {:.3g}".format(*np.take(self.megapixels, [0, 2, 1]))),
            ("modes", _counted(self.modes)),
            ("formats", _counted(self.formats)),
            ("duplicates", f"{copies} files repeat the contents of another" if copies else "none"),
            *(("note", note) for note in self.notes),
            *(("unusable", line) for line in first_of(self.unusable)),
            *(("same", ", ".join(map(printable, group))) for group in self.duplicates[:SHOWN]),
            ("index", self.index or NO_INDEX[self.layout == "shards"]),
        ]
        return aligned(rows)


def scan(config: DataConfig, workers: int = 0, progress: Callable[[int, int], None] | None = None) -> ScanReport:
    """Decode every image of a source in `workers` threads (0: one a core); `progress(done, total)` is told as it goes.

    Writes the index that `find_images` uses from then on. Raises PlrcError where no image is found.
    """
    layout = layout_of(config)
    shards = layout == "shards"
    select(config, layout, list_source(config, layout))  # raises before anything is written
    place = None if shards else prepare_index(config.source)
    listing = list_source(config, layout)
    images = find_images(config) if shards else select(config, layout, listing)

    def look(positions: range) -> list[Found]:
        return [_look(images, i, config) for i in positions]

    chunks = [range(i, min(i + CHUNK, len(images))) for i in range(0, len(images), CHUNK)]
    found: list[Found] = []
    with ThreadPoolExecutor(workers or cores()) as pool:
        for part in pool.map(look, chunks):
            found += part
            if progress is not None:
                progress(len(found), len(images))

    bad = {f.name: (f.size, f.mtime, f.reason) for f in found if f.reason}
    named = listing if layout == "folder" else None
    index = Index(
        layout,
        folders=named.folders if named else {},
        names=named.names if named else [],
        notes=named.notes if named else [],
        bad=bad,
    )
    written = place is not None and write_index(place, index)
    good = [f for f in found if not f.reason]
    return ScanReport(
        root=images.root,
        layout=layout,
        files=len(found),
        usable=len(good),
        excluded=images.excluded,
        unusable=tuple((name, reason) for name, (_, _, reason) in bad.items()),
        width=_range(f.width for f in good),
        height=_range(f.height for f in good),
        megapixels=_range(f.width * f.height / 1e6 for f in good),
        modes=dict(Counter(f.mode for f in good).most_common()),
        formats=dict(Counter(f.format for f in good).most_common()),
        duplicates=_duplicates(found),
        notes=images.notes,
        index=str(place) if written else "",
    )


def _look(images: ImageList, i: int, config: DataConfig) -> Found:
    name = images.names[i]
    size, mtime = stamp(images.path(i))
    digest = ""
    try:
        data = images.read(i, config.max_megapixels)
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        head = read_header(io.BytesIO(data))
        image = decode_bytes(data, percentiles=config.rescale_percentiles, max_megapixels=config.max_megapixels)
    except DecodeError as error:
        return Found(name, size, mtime, error.reason, digest)
    return Found(name, size, mtime, "", digest, image.shape[1], image.shape[2], head.mode, head.format)


def _duplicates(found: list[Found]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for f in found:
        if f.digest:
            groups[f.digest].append(f.name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _range(values: Iterable[float]) -> Range:
    array = np.array(list(values), dtype=np.float64)
    return (float(array.min()), float(np.median(array)), float(array.max())) if array.size else (0.0, 0.0, 0.0)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
