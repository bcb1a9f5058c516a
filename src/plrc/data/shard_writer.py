"""Images -> WebDataset tar shards: the original bytes, the id maps next to them, and an index of their places.

Each shard appears whole or not at all, so that writing may be stopped at any time and resumed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from plrc.data.channels import NPY_EXTENSION
from plrc.data.id_maps import find_map, require_own_maps
from plrc.data.image_errors import DecodeError, ImageError
from plrc.data.image_files import read_bytes
from plrc.data.pages import names_page
from plrc.data.shard_index import INDEX_NAME, MAP_SUFFIX, VERSION, Sample, import_webdataset, read_samples
from plrc.data.sources import ImageList
from plrc.errors import ConfigError, DataError
from plrc.files import is_unused, parse_json, write_atomic, write_text
from plrc.progress import OnProgress, ignore_progress
from plrc.text import aligned, list_failures


@dataclass(frozen=True)
class ShardReport:
    """The result of `write_shards`.

    Attributes:
        out: The folder.
        shards: Number of shards.
        present: How many of them existed before.
        images: Number of images in the shards.
        maps: Number of id maps in the shards.
        unusable: (relative name, reason) of each image that is left out.
    """

    out: Path
    shards: int
    present: int
    images: int
    maps: int
    unusable: tuple[tuple[str, str], ...]

    def table(self) -> str:
        """Return the report as plain text."""
        rows = [
            ("shards", f"{self.shards} in {self.out}, of which {self.present} were there"),
            ("images", str(self.images)),
            ("id maps", str(self.maps)),
            ("left out", str(len(self.unusable))),
        ]
        rows += [("left out", line) for line in list_failures(self.unusable)]
        return aligned(rows)


def write_shards(
    images: ImageList, out: Path, maps: str, megabytes: float, on_progress: OnProgress = ignore_progress
) -> ShardReport:
    """Write images into shards. Shards that exist are kept; unreadable images are left out.

    Args:
        images: The images.
        out: The folder to write into: missing, empty, or with shards of an earlier call that was stopped.
        maps: A folder of PNG id maps; empty: none.
        megabytes: Approximate size of a shard.
        on_progress: Called with numbers of shards.

    Raises:
        ConfigError: `maps` is not a folder, or images are arrays (.npy) or pages of TIFF files.
        DataError: The folder holds anything else, an id map is not a PNG or belongs to two images, a file cannot be
            written, or no image can be read.
    """
    if any(names_page(name) for name in images.names):
        raise ConfigError(
            "shards hold whole files, not pages of TIFF files: write the pages to files of their own first"
        )
    if maps and not Path(maps).is_dir():
        raise ConfigError(f"--maps is {maps}, which is not a folder; name the one with the id maps")
    if maps:
        require_own_maps(maps, images.names)
    arrays = [name for name in images.names if name.lower().endswith(NPY_EXTENSION)]
    if arrays:
        raise ConfigError(
            f"shards hold image files, but {len(arrays)} of the images are arrays, such as {arrays[0]}; save them as "
            "TIFF, or train on their folder"
        )
    sizes = [images.file_size(i) for i in range(len(images))]
    parts = _split_by_size(sizes, megabytes * 1e6)
    keys = _sample_keys(images.names)
    origin = _origin(images, sizes, maps, megabytes)
    _claim_folder(out, origin)

    present = 0
    index: dict[str, list[Sample]] = {}
    unusable: list[tuple[str, str]] = []
    digits = max(6, len(str(len(parts))))
    for number, part in enumerate(parts):
        path = out / f"shard-{number:0{digits}d}.tar"
        if path.exists():
            present += 1
        else:
            try:
                write_atomic(path, partial(_write_shard, images=images, keys=keys, part=part, maps=maps))
            except OSError as error:
                raise DataError(
                    f"cannot write {path}: {error.strerror}; the {number} shards before it are kept: "
                    "fix this and give the same command again"
                ) from error
        with path.open("rb") as file:
            index[path.name] = read_samples(file)[0]
        members = {sample.member for sample in index[path.name]}
        left_out = [i for i in part if f"{keys[i]}.{_extension(images, i)}" not in members]
        unusable += [(images.names[i], _reason(images, i)) for i in left_out]
        on_progress(number + 1, len(parts))

    samples = [sample for samples in index.values() for sample in samples]
    if not samples:
        raise DataError(f"none of the {len(images)} images can be read; the first, {': '.join(unusable[0])}")
    write_text(out / INDEX_NAME, json.dumps(origin | {"images": len(samples), "shards": index}))
    count_maps = sum(sample.map_offset >= 0 for sample in samples)
    return ShardReport(out, len(parts), present, len(samples), count_maps, tuple(unusable))


def _write_shard(file: BinaryIO, images: ImageList, keys: list[str], part: range, maps: str) -> None:
    """Write the readable images of one shard, with fixed times and owners: the same images give the same bytes."""
    writer = import_webdataset().TarWriter
    with writer(file, encoder=False, mtime=0, user="plrc", group="plrc", format="PAX_FORMAT") as tar:
        for i in part:
            try:
                sample: dict[str, Any] = {"__key__": keys[i], _extension(images, i): images.read(i)}
                id_map = find_map(maps, images.names[i]) if maps else None
            except ImageError:
                continue
            if id_map is not None:
                if id_map.suffix != ".png":
                    raise DataError(
                        f"{id_map} is no PNG; shards hold id maps as PNG: plrc regions precompute writes them"
                    )
                sample[MAP_SUFFIX] = read_bytes(id_map)
            tar.write(sample)


def _split_by_size(sizes: list[int], limit: float) -> list[range]:
    """Split consecutive images into parts of about `limit` bytes."""
    parts: list[range] = []
    start = 0
    filled = 0
    for i, size in enumerate(sizes):
        if filled and filled + size > limit:
            parts.append(range(start, i))
            start = i
            filled = 0
        filled += max(size, 0)
    return [*parts, range(start, len(sizes))]


def _sample_keys(names: tuple[str, ...]) -> list[str]:
    """WebDataset's keys: unique names without extension and without dots, which would end a key."""
    taken: set[str] = set()
    keys: list[str] = []
    for number, name in enumerate(names):
        stem = name.rpartition(".")[0]
        key = "/".join(part for part in stem.split("/") if part)
        key = key.replace(".", "_").replace(":", "_").replace("\\", "_")
        if key in taken:
            key = f"{key}~{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _extension(images: ImageList, i: int) -> str:
    return images.names[i].rpartition(".")[2].lower()


def _reason(images: ImageList, i: int) -> str:
    try:
        images.read(i)
    except DecodeError as error:
        return error.reason
    return "could not be read when its shard was written"


def _origin(images: ImageList, sizes: list[int], maps: str, megabytes: float) -> dict[str, Any]:
    """What the shards are made from: entries of their index."""
    digest = hashlib.sha256(json.dumps([images.names, sizes]).encode()).hexdigest()
    return {"version": VERSION, "digest": digest, "maps": maps, "megabytes": megabytes}


def _claim_folder(out: Path, origin: dict[str, Any]) -> None:
    """Record in an empty folder what its shards are made from; refuse a folder with shards of other data."""
    path = out / INDEX_NAME
    if is_unused(out):
        write_text(path, json.dumps(origin | {"shards": None}))
        return
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        changed = [name for name, value in origin.items() if stored[name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out} is not empty and holds no {INDEX_NAME} of plrc shard; name a new folder") from error
    if changed:
        raise DataError(f"{out} holds shards of other images or settings ({', '.join(changed)}); name another --out")
