"""Images in WebDataset tar shards: local files, or any URL that fsspec can open.

Each image is a range of bytes in a shard and is read on its own. So shards work with the same sampler, loader processes
and resume as a folder. Nothing is written or unpacked.
"""

from __future__ import annotations

import os
import re
import tarfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plrc.data.image_errors import DecodeError
from plrc.data.image_files import MAX_MEGAPIXELS, require_plausible_size
from plrc.data.layouts import Listing
from plrc.data.reading import ReadingReport
from plrc.data.shard_index import INDEX_NAME, Sample, import_webdataset, parse_index, read_samples
from plrc.errors import DataError

RETRY_WAITS = (0.2, 0.8, 2.0)  # seconds before a failed read is tried again
RETRY_BROKEN_AFTER = 600.0  # seconds until a shard that could not be read is tried again
HEADER_THREADS = 16  # shards whose headers are read at the same time

T = TypeVar("T")


class Shards:
    """The shards that hold the images of a list, and the place of each image in them.

    Args:
        root: The folder or URL of the shards.
        names: Names of the shards, relative to `root`.
        samples: int64 [images, 5], one row per image: number of its shard, then offset, length, map_offset and
            map_length as in `Sample`. All -1 if the image is no longer in any shard.

    Attributes:
        broken: Number of a shard that could not be read -> (`time.monotonic` of the next attempt, the error).
    """

    def __init__(self, root: str, names: Sequence[str], samples: NDArray[np.int64]) -> None:
        self.root = root
        self.names = tuple(names)
        self.samples = samples
        self.broken: dict[int, tuple[float, str]] = {}
        # (id of the process, file system, path in it): a forked process cannot use it, and opens its own
        self._connection: tuple[int, Any, str] | None = None
        self._last_read: tuple[int, bytes] = (-1, b"")  # an image's header may be read before its pixels

    @property
    def shard_numbers(self) -> NDArray[np.int64]:
        """Number of the shard of each image."""
        return self.samples[:, 0]

    @property
    def has_maps(self) -> bool:
        """Whether any image has an id map."""
        return bool(self.samples[:, 3].max() >= 0)

    def read(self, i: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        """Read the bytes of image i.

        Raises:
            DecodeError: The shard is still missing or cut off after several attempts, or the image has too many bytes
                for `max_megapixels`.
        """
        shard, offset, length = (int(value) for value in self.samples[i, :3])
        number, data = self._last_read
        if number == i:
            require_plausible_size(length, max_megapixels)
            return data
        data = self._read(shard, offset, length, max_megapixels)
        self._last_read = (i, data)
        return data

    def read_map(self, i: int) -> bytes | None:
        """Read the bytes of the id map of image i; None if it has none. Raises DecodeError as `read` does."""
        shard, _, _, offset, length = (int(value) for value in self.samples[i])
        return self._read(shard, offset, length) if offset >= 0 else None

    def file_size(self, i: int) -> int:
        """Return the size of image i in bytes; -1 if it is no longer in any shard."""
        return int(self.samples[i, 2])

    def broken_shard(self, i: int) -> str:
        """Return the name of the shard of image i if that shard could not be read, otherwise an empty string."""
        shard = int(self.shard_numbers[i])
        return self.names[shard] if shard in self.broken else ""

    def count_images(self, shard: str) -> int:
        """Return the number of images in the shard with this name; 0 if there is no such shard."""
        if shard not in self.names:
            return 0
        return int((self.shard_numbers == self.names.index(shard)).sum())

    def select(self, listed: Sequence[str], names: Sequence[str]) -> Shards:
        """Return the shards with some of their images.

        Args:
            listed: Names of all images, in the order of `samples`.
            names: Names of the images to keep, in the order of the result.
        """
        row_of = {name: row for row, name in enumerate(listed)}
        rows = np.array([row_of.get(name, -1) for name in names])
        samples = self.samples[rows]
        samples[rows < 0] = -1
        return Shards(self.root, self.names, samples)

    def _read(self, shard: int, offset: int, length: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        if shard < 0:
            raise DecodeError("it is no longer in any shard")
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
            raise OSError("the server sends whole files, not ranges of them; write simplecache:: before the URL")
        if len(data) < length:
            raise OSError(f"the shard ends before byte {offset + length}, inside of an image")
        return data


def open_shards(source: str, only: Collection[str] = ()) -> tuple[Shards, Listing]:
    """List the images of shards. A shard that cannot be read is left out, and named in a note.

    The index `shards.json` lists the place of each image. The headers of shards that are not in it are read.

    Args:
        source: A folder or URL of shards, or a pattern (`*`, `{000..999}`) of .tar files.
        only: Names of the shards to open; `source` must be their folder or its URL. Empty: all shards.

    Returns:
        The shards, and their images in the same order, named SHARD/MEMBER.

    Raises:
        DataError: There are no shards, none can be used, or their index is damaged.
        MissingPackageError: webdataset is needed and not installed.
    """
    root, pattern = _split_pattern(source)
    system, base = _open_file_system(root)
    samples_of = _read_index(system, base, root)
    if only:
        wanted = list(only)
    elif pattern:
        wanted = _expand_pattern(system, base, root, pattern)
    else:
        wanted = sorted(samples_of) or _expand_pattern(system, base, root, f"{root}/*.tar")
    if pattern and not wanted:
        raise DataError(f"{source} matches no .tar file; write a pattern that does, or the folder alone")
    if not wanted:
        raise DataError(f"{source} has no shards: neither {INDEX_NAME} nor a .tar file; plrc shard writes both")

    not_indexed = [name for name in wanted if name not in samples_of]
    unreadable: list[str] = []
    refused: list[str] = []
    if not_indexed:
        import_webdataset()
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = pool.map(partial(_read_headers, system, base), not_indexed)
        for name, samples_or_reason in zip(not_indexed, results, strict=True):
            if isinstance(samples_or_reason, str):
                unreadable.append(f"{name}: {samples_or_reason}")
            else:
                samples_of[name], refused_members = samples_or_reason
                refused += [f"{name}/{member}" for member in refused_members]

    shards = sorted(name for name in wanted if name in samples_of)
    names: list[str] = []
    rows: list[tuple[int, ...]] = []
    for number, shard in enumerate(shards):
        for sample in samples_of[shard]:
            names.append(f"{shard}/{sample.member}")
            rows.append((number, sample.offset, sample.length, sample.map_offset, sample.map_length))
    if not names:
        reason = unreadable[0] if unreadable else "they hold no images"
        raise DataError(f"none of the {len(wanted)} shards of {source} can be used ({reason})")
    reading = ReadingReport()
    for reason in unreadable:
        reading.count("left out", "shards that cannot be read", reason)
    for member in refused:
        reading.count("left out", "members of shards that are not regular files or have unsafe names", member)
    if not_indexed:
        reading.add(f"read the headers of {len(not_indexed)} shards that are not in {INDEX_NAME}")
    return Shards(root, shards, np.array(rows, dtype=np.int64)), Listing(root, names, reading)


def reopen_shards(root: str, names: Sequence[str]) -> Shards:
    """Open the shards that hold the images of these names, SHARD/MEMBER; see `open_shards`."""
    used = {name.partition(".tar/")[0] + ".tar" for name in names}
    shards, listing = open_shards(root, only=sorted(used))
    return shards.select(listing.names, names)


def _read_index(system: Any, base: str, root: str) -> dict[str, list[Sample]]:
    """Return the samples of each shard that `shards.json` lists; an empty dict if there is no index."""
    try:
        content = system.cat_file(f"{base}/{INDEX_NAME}")
    except FileNotFoundError:
        return {}
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"cannot read {root}/{INDEX_NAME}: {error}") from error
    return parse_index(content, root)


def _read_headers(system: Any, base: str, name: str) -> tuple[list[Sample], list[str]] | str:
    """Return the result of `read_samples` for a shard, or the reason why it cannot be read."""

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
    """Call `read`, and again after each of RETRY_WAITS if it fails. At last, raise OSError with a one-line reason."""
    for wait in RETRY_WAITS:
        try:
            return read()
        except Exception:  # noqa: PERF203 - each file system has errors of its own
            time.sleep(wait)
    try:
        return read()
    except Exception as error:
        raise OSError(f"{_reason(error)} (tried {len(RETRY_WAITS) + 1} times)") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _split_pattern(source: str) -> tuple[str, str]:
    """Return the folder or URL of the shards, and the pattern of their names: empty for a whole folder."""
    source = source if "://" in source else os.path.abspath(source)
    if not source.endswith(".tar") and not re.search(r"[*?\[{]", source):
        return source.rstrip("/"), ""
    return re.split(r"[*?\[{]", source, maxsplit=1)[0].rpartition("/")[0], source


def _expand_pattern(system: Any, base: str, root: str, pattern: str) -> list[str]:
    """Return the names of the shards that match a pattern, relative to the root."""
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
    """Return the fsspec file system of a folder or URL, and its path in that file system."""
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(root)
    except ImportError as error:
        raise DataError(f"{root}: {error}") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{root} is not a URL that can be read: {error}") from error
    return system, base.rstrip("/")
