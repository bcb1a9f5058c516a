"""The hashes of many image files, kept in the user's cache folder: a file that has not changed is hashed once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plrc.config import DataConfig
from plrc.data.image_errors import DecodeError
from plrc.data.image_hash import HASH_BYTES, MIN_SIDE, Hashes, hash_image, unpack_hashes
from plrc.data.index import cache_file, size_and_change
from plrc.data.sources import ImageList
from plrc.files import parse_json, write_text
from plrc.machine import cores

StoredHash = tuple[int, int, str]
"""Size of the file in bytes, time of its last change in ns, hash in hexadecimal digits."""


def hash_files(images: ImageList, positions: Sequence[int], channels: int) -> tuple[list[int], Hashes]:
    """Return the hashes of images that are files.

    Args:
        images: The images; not of shards.
        positions: Which of them.
        channels: Channels of the images (`data.channels`).

    Returns:
        The positions of the images that can be read, and their hashes.
    """
    stored = read_stored_hashes(images.root, channels)
    settings = DataConfig(channels=channels)

    def stored_or_new(i: int) -> StoredHash | None:
        size, changed = size_and_change(images.path(i))
        known = stored.get(images.names[i])
        if known is not None and known[:2] == (size, changed):
            return known
        try:
            pixels = images.decode(i, settings, MIN_SIDE)
        except DecodeError:
            return None
        return size, changed, hash_image(pixels).tobytes().hex()

    with ThreadPoolExecutor(cores()) as pool:
        entries = dict(zip(positions, pool.map(stored_or_new, positions), strict=True))
    readable = {i: entry for i, entry in entries.items() if entry is not None}
    store_hashes(images.root, channels, {images.names[i]: entry for i, entry in readable.items()}, stored)
    return list(readable), unpack_hashes(digits for _, _, digits in readable.values())


def read_stored_hashes(root: str, channels: int) -> dict[str, StoredHash]:
    """Read what is stored of the images below a folder, read with so many channels. A damaged file counts as empty.

    Returns:
        Relative name -> hash.
    """
    try:
        table = parse_json(_hash_file(root, channels).read_text(encoding="utf-8"))
        stored: dict[str, StoredHash] = {}
        for name, (size, changed, digits) in table.items():
            if len(bytes.fromhex(digits)) == HASH_BYTES:
                stored[name] = (int(size), int(changed), digits)
        return stored
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def store_hashes(root: str, channels: int, hashes: Mapping[str, StoredHash], stored: Mapping[str, StoredHash]) -> None:
    """Store hashes of the images below a folder, if any of them is new. If that fails, they are computed again.

    Args:
        root: The folder.
        channels: Channels with which the images were read.
        hashes: Relative name -> hash.
        stored: What is stored so far.
    """
    together = {**stored, **hashes}
    if together != stored:
        with contextlib.suppress(OSError):
            write_text(_hash_file(root, channels), json.dumps(together))


def _hash_file(root: str, channels: int) -> Path:
    return cache_file(f"hashes-{channels}", root)
