"""Images -> WebDataset tar shards: the original bytes, id maps beside them, and an index of where each image lies.

Layer 1: imports config, files and this folder. Writes into the folder it is given: the shards, each whole or not at
all, and `shards.json`, so that a run may end at any time and goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from plrc.data.decode import DecodeError, read_bytes
from plrc.data.region_files import RegionError, find_map
from plrc.data.scan import first_of
from plrc.data.shards import INDEX, MAP, VERSION, members, webdataset_package
from plrc.data.sources import ImageList
from plrc.errors import PlrcError
from plrc.files import parse_json, write_atomic, write_text
from plrc.text import aligned


@dataclass(frozen=True)
class Sharded:
    """What `write_shards` did."""

    out: Path
    shards: int
    present: int
    """Shards that were there already."""
    images: int
    maps: int
    unusable: tuple[tuple[str, str], ...]
    """(relative name, reason) of what is left out."""

    def table(self) -> str:
        """Plain text to print."""
        rows = [
            ("shards", f"{self.shards} in {self.out}, of which {self.present} were there"),
            ("images", str(self.images)),
            ("id maps", str(self.maps)),
            ("left out", str(len(self.unusable))),
            *(("left out", line) for line in first_of(self.unusable)),
        ]
        return aligned(rows)


def write_shards(
    images: ImageList, out: Path, maps: str, megabytes: float, progress: Callable[[int, int], None]
) -> Sharded:
    """Write shards of about `megabytes` each; `maps`: a folder of PNG id maps, or empty. progress(shards done, all).

    A shard that is there is not written again. Unreadable images are left out and named. Raises PlrcError where the
    folder holds anything else, an id map is no PNG, or a file cannot be written.
    """
    if maps and not Path(maps).is_dir():
        raise PlrcError(f"--maps is {maps}, which is not a folder; name the one with the id maps")
    sizes = [images.size(i) for i in range(len(images))]
    parts = _parts(sizes, megabytes * 1e6)
    keys = _keys(images.names)
    _claim(images, sizes, out, maps, megabytes)
    width = max(6, len(str(len(parts))))
    present, index, unusable = 0, {}, list[tuple[str, str]]()
    for number, part in enumerate(parts):
        path = out / f"shard-{number:0{width}d}.tar"
        if path.exists():
            present += 1
        else:
            try:
                write_atomic(path, partial(_write, images=images, keys=keys, part=part, maps=maps))
            except OSError as error:
                raise PlrcError(
                    f"cannot write {path}: {error.strerror}; the {number} shards before it are kept: "
                    "mend this and give the same command again"
                ) from error
        with path.open("rb") as file:
            index[path.name] = members(file)[0]
        there = {name for name, *_ in index[path.name]}
        unusable += [
            (images.names[i], _reason(images, i)) for i in part if f"{keys[i]}.{_ending(images, i)}" not in there
        ]
        progress(number + 1, len(parts))
    count = sum(map(len, index.values()))
    if not count:
        raise PlrcError(f"none of the {len(images)} images can be read; the first, {': '.join(unusable[0])}")
    done = json.dumps(_claimed(images, sizes, maps, megabytes) | {"images": count, "shards": index})
    write_text(out / INDEX, done)
    mapped = sum(sample[3] >= 0 for samples in index.values() for sample in samples)
    return Sharded(out, len(parts), present, count, mapped, tuple(unusable))


def _write(file: BinaryIO, images: ImageList, keys: list[str], part: range, maps: str) -> None:
    """The images of one shard that can be read, with fixed times and owners: the same images, the same bytes."""
    with webdataset_package().TarWriter(
        file, encoder=False, mtime=0, user="plrc", group="plrc", format="PAX_FORMAT"
    ) as tar:
        for i in part:
            try:
                sample: dict[str, Any] = {"__key__": keys[i], _ending(images, i): images.read(i)}
                found = find_map(maps, images.names[i]) if maps else None
            except (DecodeError, RegionError):
                continue
            if found is not None:
                if found.suffix != ".png":
                    raise PlrcError(
                        f"{found} is no PNG; shards hold id maps as PNG: plrc regions precompute writes them"
                    )
                sample[MAP] = read_bytes(found)
            tar.write(sample)


def _parts(sizes: list[int], limit: float) -> list[range]:
    """Consecutive images of about `limit` bytes."""
    starts, filled = [0], 0
    for i, size in enumerate(sizes):
        if filled and filled + size > limit:
            starts.append(i)
            filled = 0
        filled += max(size, 0)
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def _keys(names: tuple[str, ...]) -> list[str]:
    """WebDataset's keys: the names without ending, without dots (which would end a key) and each once."""
    taken: set[str] = set()
    keys = []
    for number, name in enumerate(names):
        parts = [part for part in name.rpartition(".")[0].split("/") if part]
        key = "/".join(parts).replace(".", "_").replace(":", "_").replace("\\", "_")
        if key in taken:
            key = f"{key}~{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _ending(images: ImageList, i: int) -> str:
    return images.names[i].rpartition(".")[2].lower()


def _reason(images: ImageList, i: int) -> str:
    try:
        images.read(i)
    except DecodeError as error:
        return error.reason
    return "could not be read when its shard was written"


def _claimed(images: ImageList, sizes: list[int], maps: str, megabytes: float) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps([images.names, sizes]).encode()).hexdigest()
    return {"version": VERSION, "digest": digest, "maps": maps, "megabytes": megabytes}


def _claim(images: ImageList, sizes: list[int], out: Path, maps: str, megabytes: float) -> None:
    """Note in the folder what its shards are made of, or refuse where they were made of something else."""
    now = _claimed(images, sizes, maps, megabytes)
    path = out / INDEX
    if not out.exists() or not any(out.iterdir()):
        write_text(path, json.dumps(now | {"shards": None}))
        return
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        changed = [name for name, value in now.items() if stored[name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlrcError(f"{out} is not empty and holds no {INDEX} of plrc shard; name a new folder") from error
    if changed:
        raise PlrcError(f"{out} holds shards of other images or settings ({', '.join(changed)}); name another --out")
