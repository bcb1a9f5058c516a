"""WebDataset tar shards, local or behind any address that fsspec knows, read by range.

An image is (shard, offset, length), so shards serve the same sampler, loader processes and resume as a folder does.
Nothing is written or unpacked.
"""

from __future__ import annotations

import os
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plrc.data.image_files import MAX_MEGAPIXELS, DecodeError, require_plausible_size
from plrc.data.layouts import Listing
from plrc.data.shard_index import INDEX_NAME, Sample, import_webdataset, parse_index, read_samples
from plrc.errors import DataError
from plrc.text import note

RETRY_WAITS = (0.2, 0.8, 2.0)  # seconds before a failed read is tried again
RETRY_BROKEN_AFTER = 600.0  # seconds until a shard that could not be read is tried again
HEADER_THREADS = 16  # shards whose headers are read at the same time

T = TypeVar("T")


class Shards:
    """Where the images of a list lie in shards.

    Args:
        root: The folder or address of the shards.
        names: Names of the shards, relative to `root`.
        samples: int64 [images, 5], one row per image: number of its shard, then offset, length, map_offset and
            map_length as in `Sample`. All -1 for an image that no shard has anymore.

    Attributes:
        broken: Number of a shard that could not be read -> (when it is tried again, what is wrong).
    """

    def __init__(self, root: str, names: Sequence[str], samples: NDArray[np.int64]) -> None:
        self.root = root
        self.names = tuple(names)
        self.samples = samples
        self.broken: dict[int, tuple[float, str]] = {}
        self._connection: tuple[int, Any, str] | None = None  # (process, file system, path): it must not be forked

    def read(self, i: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        """Read the bytes of image i.

        Raises:
            DecodeError: The shard is missing or cut off, also after several attempts, or the image is larger than
                `max_megapixels` can be.
        """
        shard, offset, length = (int(value) for value in self.samples[i, :3])
        return self._read(shard, offset, length, max_megapixels)

    def read_map(self, i: int) -> bytes | None:
        """Read the bytes of the id map of image i; None if it has none. Raises DecodeError as `read` does."""
        shard, _, _, offset, length = (int(value) for value in self.samples[i])
        return self._read(shard, offset, length) if offset >= 0 else None

    def file_size(self, i: int) -> int:
        """Bytes of image i; -1 if no shard has it anymore."""
        return int(self.samples[i, 2])

    def broken_shard(self, i: int) -> str:
        """Name of the shard of image i if that shard could not be read; otherwise empty."""
        shard = int(self.samples[i, 0])
        return self.names[shard] if shard in self.broken else ""

    def count_images(self, shard: str) -> int:
        """How many of the images a shard holds; 0 for a name that is not a shard."""
        return int((self.samples[:, 0] == self.names.index(shard)).sum()) if shard in self.names else 0

    def select(self, listed: Sequence[str], names: Sequence[str]) -> Shards:
        """Return the same shards for other images.

        Args:
            listed: Names of the images of these shards, in the order of `samples`.
            names: Names of the wanted images.
        """
        row_of = dict(zip(listed, range(len(listed)), strict=True))
        rows = np.array([row_of.get(name, -1) for name in names])
        return Shards(self.root, self.names, np.where(rows[:, None] >= 0, self.samples[rows], -1))

    def _read(self, shard: int, offset: int, length: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        if shard < 0:
            raise DecodeError("is in none of the shards any more")
        require_plausible_size(length, max_megapixels)
        try_again_at, reason = self.broken.get(shard, (0.0, ""))
        if time.monotonic() < try_again_at:
            raise DecodeError(reason)
        self.broken.pop(shard, None)
        try:
            return _with_retries(partial(self._read_range, self.names[shard], offset, length))
        except OSError as error:
            self.broken[shard] = (time.monotonic() + RETRY_BROKEN_AFTER, str(error))
            raise DecodeError(str(error)) from error

    def _read_range(self, name: str, offset: int, length: int) -> bytes:
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = (os.getpid(), *_open_file_system(self.root))
        _, system, base = self._connection
        data: bytes = system.cat_file(f"{base}/{name}", start=offset, end=offset + length)
        if len(data) > length:
            raise OSError("the server answers with the whole file, not with a range; write simplecache:: before it")
        if len(data) < length:
            raise OSError(f"the shard ends before byte {offset + length}, where an image should")
        return data


def open_shards(source: str, only: Iterable[str] = ()) -> tuple[Shards, Listing]:
    """List the images of shards. A shard that cannot be read is left out, and named in a note.

    The places come from the index `shards.json`; of shards that it does not list, the headers are read.

    Args:
        source: A folder or address of shards, or a pattern (`*`, `{000..999}`) of .tar files.
        only: The shards to open, relative to the source, which must then be their folder. Empty: all.

    Returns:
        The shards, and the images in the same order, named SHARD/MEMBER.

    Raises:
        DataError: There are no shards, none can be used, or their index is damaged.
        MissingPackageError: webdataset is needed and not installed.
    """
    root, pattern = _split_pattern(source)
    system, base = _open_file_system(root)
    samples_of = _read_index(system, base, root)
    wanted = list(only)
    if not wanted:
        wanted = _expand_pattern(system, base, root, pattern) if pattern else sorted(samples_of)
    if not wanted:
        wanted = _expand_pattern(system, base, root, f"{root}/*.tar")
    if not wanted:
        raise DataError(f"{source} has no shards: neither {INDEX_NAME} nor a .tar file; plrc shard writes both")

    not_indexed = [name for name in wanted if name not in samples_of]
    unreadable: list[str] = []
    refused: list[str] = []
    if not_indexed:
        import_webdataset()
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        headers = pool.map(partial(_read_headers, system, base), not_indexed)
        for name, header in zip(not_indexed, headers, strict=True):
            if isinstance(header, str):
                unreadable.append(f"{name}: {header}")
            else:
                samples_of[name] = header[0]
                refused += [f"{name}/{member}" for member in header[1]]

    shards = sorted(name for name in wanted if name in samples_of)
    names: list[str] = []
    rows: list[tuple[int, ...]] = []
    for number, shard in enumerate(shards):
        for member, *place in samples_of[shard]:
            names.append(f"{shard}/{member}")
            rows.append((number, *place))
    if not names:
        reason = unreadable[0] if unreadable else "they hold no images"
        raise DataError(f"none of the {len(wanted)} shards of {source} can be used ({reason})")
    notes = [
        *note("left out shards that cannot be read", unreadable),
        *note("left out members of shards that are no plain files with plain names", refused),
    ]
    if not_indexed:
        notes.append(f"read the headers of {len(not_indexed)} shards that no {INDEX_NAME} lists")
    return Shards(root, shards, np.array(rows, dtype=np.int64)), Listing(root, names, notes)


def reopen_shards(root: str, names: Sequence[str]) -> Shards:
    """Open the shards of images that were listed before, by the images' names; see `open_shards`."""
    shards, listing = open_shards(root, dict.fromkeys(f"{name.partition('.tar/')[0]}.tar" for name in names))
    return shards.select(listing.names, names)


def _read_index(system: Any, base: str, root: str) -> dict[str, list[Sample]]:
    """Shard -> samples as `shards.json` lists them; empty if there is no index."""
    try:
        content = system.cat_file(f"{base}/{INDEX_NAME}")
    except FileNotFoundError:
        return {}
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"cannot read {root}/{INDEX_NAME}: {error}") from error
    return parse_index(content, root)


def _read_headers(system: Any, base: str, name: str) -> tuple[list[Sample], list[str]] | str:
    """`read_samples` of a shard, or why it cannot be read."""

    def read() -> tuple[list[Sample], list[str]]:
        with system.open(f"{base}/{name}", "rb") as file:
            try:
                return read_samples(file)
            except tarfile.TarError as error:
                raise OSError(f"a damaged tar file ({error})") from error

    try:
        return _with_retries(read)
    except OSError as error:
        return str(error)


def _with_retries(read: Callable[[], T]) -> T:
    """Call `read`, again after each of RETRY_WAITS if it fails; at last raise OSError with a reason of one line."""
    for wait in (*RETRY_WAITS, None):
        try:
            return read()
        except Exception as error:  # noqa: PERF203 - each file system has errors of its own
            if wait is None:
                raise OSError(f"{_reason(error)} (tried {len(RETRY_WAITS) + 1} times)") from error
            time.sleep(wait)
    raise AssertionError  # the last wait is None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _split_pattern(source: str) -> tuple[str, str]:
    """(folder or address of the shards, pattern or empty)."""
    source = source if "://" in source else os.path.abspath(source)
    if not source.endswith(".tar") and not re.search(r"[*?\[{]", source):
        return source.rstrip("/"), ""
    return re.split(r"[*?\[{]", source, maxsplit=1)[0].rpartition("/")[0], source


def _expand_pattern(system: Any, base: str, root: str, pattern: str) -> list[str]:
    """The shards that a pattern names, relative to the root."""
    import_webdataset()
    from braceexpand import braceexpand

    names: list[str] = []
    for url in braceexpand(pattern):
        name = url[len(root) + 1 :]
        if not re.search(r"[*?\[]", name):
            names.append(name)
            continue
        try:
            paths = system.glob(f"{base}/{name}")
        except Exception as error:  # each file system has errors of its own
            raise DataError(f"cannot list {url}: {error}; name the shards as {{000..999}}") from error
        names += sorted(path[len(base) + 1 :] for path in paths if path.endswith(".tar"))
    return list(dict.fromkeys(names))


def _open_file_system(root: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of an address."""
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(root)
    except ImportError as error:
        raise DataError(f"{root}: {error}") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{root} is not an address that can be read: {error}") from error
    return system, base.rstrip("/")
