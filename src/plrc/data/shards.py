"""WebDataset tar shards, here or behind any address that fsspec knows, read by range.

Layer 1: imports config, files and this folder. Reads, never writes, and unpacks nothing: an image is (shard,
offset, length), so shards serve the same sampler, workers and resume as a folder does. `shards.json` beside the shards,
which `plrc shard` writes, tells the places; of shards without it the headers are read, once at the start.
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

from plrc.data.decode import MAX_MEGAPIXELS, DecodeError, check_bytes
from plrc.data.layouts import ENDINGS, Listing
from plrc.errors import PlrcError
from plrc.files import parse_json
from plrc.text import note

INDEX, VERSION = "shards.json", 1
MAP = "regions.png"  # the part of a sample that is its id map: KEY.regions.png beside KEY.jpg
WAITS = (0.2, 0.8, 2.0)  # seconds before a shard is tried again
FORGIVEN = 600.0  # seconds until a shard that could not be read may be tried anew
READERS = 16  # shards whose headers are read at once

Sample = tuple[str, int, int, int, int]
"""Member's name, then offset and bytes of the image and of its id map (-1 -1: it has none)."""
T = TypeVar("T")


class Shards:
    """Where the images of a list lie: row i of `samples` [images, 5] is (shard, then as in Sample) of image i."""

    def __init__(self, root: str, names: Sequence[str], samples: NDArray[np.int64]) -> None:
        self.root, self.names, self.samples = root, tuple(names), samples
        self.broken: dict[int, tuple[float, str]] = {}  # shard -> (until when it is not asked again, why)
        self._store: tuple[int, Any, str] | None = None  # of the process with this number: no file system may be forked

    def read(self, i: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        """The bytes of image i. Raises DecodeError where its shard is missing or cut off, after trying a few times, and
        where they are too many for `max_megapixels`."""
        return self._read(int(self.samples[i, 0]), int(self.samples[i, 1]), int(self.samples[i, 2]), max_megapixels)

    def read_map(self, i: int) -> bytes | None:
        """The bytes of its id map, if it has one. Raises DecodeError as `read` does."""
        offset, length = int(self.samples[i, 3]), int(self.samples[i, 4])
        return self._read(int(self.samples[i, 0]), offset, length) if offset >= 0 else None

    def size(self, i: int) -> int:
        """Bytes of image i; -1 where no shard has it any more."""
        return int(self.samples[i, 2])

    def broken_shard(self, i: int) -> str:
        """The name of image i's shard, where that could not be read; empty otherwise."""
        shard = int(self.samples[i, 0])
        return self.names[shard] if shard in self.broken else ""

    def images_of(self, shard: str) -> int:
        """How many of the images a shard holds; 0 for anything but a shard."""
        return int((self.samples[:, 0] == self.names.index(shard)).sum()) if shard in self.names else 0

    def _read(self, shard: int, offset: int, length: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        if shard < 0:
            raise DecodeError("is in none of the shards any more")
        check_bytes(length, max_megapixels)
        until, reason = self.broken.get(shard, (0.0, ""))
        if time.monotonic() < until:
            raise DecodeError(reason)
        self.broken.pop(shard, None)
        try:
            return _retried(partial(self._fetch, self.names[shard], offset, length))
        except OSError as error:
            self.broken[shard] = time.monotonic() + FORGIVEN, str(error)
            raise DecodeError(str(error)) from error

    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        if self._store is None or self._store[0] != os.getpid():
            self._store = os.getpid(), *_store(self.root)
        data: bytes = self._store[1].cat_file(f"{self._store[2]}/{name}", start=offset, end=offset + length)
        if len(data) > length:
            raise OSError("the server answers with the whole file, not with a range; write simplecache:: before it")
        if len(data) < length:
            raise OSError(f"the shard ends before byte {offset + length}, where an image should")
        return data


def open_shards(source: str, only: Iterable[str] = ()) -> tuple[Shards, Listing]:
    """The images of a folder or address of shards, or of a pattern (`*`, `{000..999}`) of .tar files.

    `only`: the shards to look at, relative to the source, which then is their folder. Image names are SHARD/MEMBER.
    A shard that cannot be read is left out, in a note. Raises PlrcError where there are none or the index is unusable.
    """
    root, pattern = _split(source)
    system, base = _store(root)
    indexed = _indexed(system, base, root)
    wanted = list(only) or (_expanded(system, base, root, pattern) if pattern else sorted(indexed))
    if not wanted:
        wanted = _expanded(system, base, root, f"{root}/*.tar")
    if not wanted:
        raise PlrcError(f"{source} has no shards: neither {INDEX} nor a .tar file; plrc shard writes both")
    unknown = [name for name in wanted if name not in indexed]
    bad: dict[str, str] = {}
    refused: list[str] = []
    if unknown:
        webdataset_package()
    with ThreadPoolExecutor(READERS) as pool:
        for name, found in zip(unknown, pool.map(partial(_headers, system, base), unknown), strict=True):
            if isinstance(found, str):
                bad[name] = found
            else:
                indexed[name] = found[0]
                refused += [f"{name}/{member}" for member in found[1]]
    shards = sorted(name for name in wanted if name in indexed)
    rows = [(number, *s) for number, name in enumerate(shards) for s in indexed[name]]
    names = [f"{shards[number]}/{member}" for number, member, *_ in rows]
    if not names:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:1]) or "they hold no images"
        raise PlrcError(f"none of the {len(wanted)} shards of {source} can be used ({why})")
    places = np.array([(row[0], *row[2:]) for row in rows], dtype=np.int64)
    notes = [
        *note("left out shards that cannot be read", [f"{name}: {reason}" for name, reason in bad.items()]),
        *note("left out members of shards that are no plain files with plain names", refused),
        *([f"read the headers of {len(unknown)} shards that no {INDEX} lists"] if unknown else []),
    ]
    return Shards(root, shards, places), Listing(root, names, notes)


def placed(shards: Shards, listed: Sequence[str], names: Sequence[str]) -> Shards:
    """The same shards for other images: `listed` are those of `shards`, `names` the wanted ones (-1: not there)."""
    rows = dict(zip(listed, range(len(listed)), strict=True))
    at = np.array([rows.get(name, -1) for name in names])
    return Shards(shards.root, shards.names, np.where(at[:, None] >= 0, shards.samples[at], -1))


def reopen(root: str, names: Sequence[str]) -> Shards:
    """The shards of images that were listed before, by their names. Images that are gone have the size -1."""
    shards, listing = open_shards(root, dict.fromkeys(f"{name.partition('.tar/')[0]}.tar" for name in names))
    return placed(shards, listing.names, names)


def members(file: Any) -> tuple[list[Sample], list[str]]:
    """(samples, names of refused members) of an open, seekable tar file. Raises tarfile.TarError, OSError.

    Nothing is unpacked, but names become those of id maps: absolute ones, `..`, links and devices are refused.
    """
    base_plus_ext = webdataset_package().tariterators.base_plus_ext
    images: list[tuple[str, int, int]] = []
    maps: dict[str, tuple[int, int]] = {}
    refused: list[str] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            key, ending = base_plus_ext(name)
            if not (member.isreg() and plain(name)) or member.issparse():
                refused.append(name)
            elif key is not None and ending.lower() == MAP:
                maps[key] = member.offset_data, member.size
            elif name.lower().endswith(ENDINGS):
                images.append((name, member.offset_data, member.size))
    return [(name, at, size, *maps.get(base_plus_ext(name)[0], (-1, -1))) for name, at, size in images], refused


def plain(name: str) -> bool:
    """Whether a name stays in its folder on every system."""
    return not (set(name.split("/")) & {"", "..", "."} or re.search(r"[\\:\x00-\x1f]", name))


def _headers(system: Any, base: str, name: str) -> tuple[list[Sample], list[str]] | str:
    """`members` of a shard, or why it cannot be read."""

    def look() -> tuple[list[Sample], list[str]]:
        with system.open(f"{base}/{name}", "rb") as file:
            try:
                return members(file)
            except tarfile.TarError as error:
                raise OSError(f"a damaged tar file ({error})") from error

    try:
        return _retried(look)
    except OSError as error:
        return str(error)


def _retried(read: Callable[[], T]) -> T:
    """What `read` gives, after trying again a few times; raises OSError with one reason."""
    for wait in (*WAITS, None):
        try:
            return read()
        except Exception as error:  # noqa: PERF203 - each file system has errors of its own
            if wait is None:
                missing = isinstance(error, FileNotFoundError)
                detail = str(error).strip().splitlines()
                reason = "does not exist" if missing else detail[0] if detail else type(error).__name__
                raise OSError(f"{reason} (tried {len(WAITS) + 1} times)") from error
            time.sleep(wait)
    raise AssertionError  # the last wait is None


def _indexed(system: Any, base: str, root: str) -> dict[str, list[Sample]]:
    """Shard -> samples as `shards.json` has them; empty where there is none."""
    try:
        raw = parse_json(system.cat_file(f"{base}/{INDEX}"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PlrcError(f"{root}/{INDEX} is damaged ({error}); make it anew with plrc shard") from error
    except Exception as error:  # each file system has errors of its own
        raise PlrcError(f"cannot read {root}/{INDEX}: {error}") from error
    try:
        if raw["version"] != VERSION or raw["shards"] is None:
            what = "unfinished" if raw["shards"] is None else f"of version {raw['version']}, this plrc reads {VERSION}"
            raise PlrcError(f"the shards of {root} are {what}; give the same plrc shard command again")
        found = {str(name): [_sample(values) for values in samples] for name, samples in raw["shards"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlrcError(f"{root}/{INDEX} is not an index of plrc shard ({error}); make it anew") from error
    strange = [name for name in found if not plain(name)]
    strange += [member for samples in found.values() for member, *_ in samples if not plain(member)]
    if strange:
        raise PlrcError(f"{root}/{INDEX} names {strange[0]!r}, which may lie outside of its folder; make it anew")
    return found


def _sample(values: Any) -> Sample:
    name, *numbers = values
    offset, length, map_offset, map_length = map(int, numbers)
    if min(offset, length) < 0 or max(map(abs, (offset, length, map_offset, map_length))) >= 2**62:
        raise ValueError("a place that no file has")
    return str(name), offset, length, map_offset, map_length


def _split(source: str) -> tuple[str, str]:
    """(folder or address of the shards, pattern or empty)."""
    source = source if "://" in source else os.path.abspath(source)
    if not source.endswith(".tar") and not re.search(r"[*?\[{]", source):
        return source.rstrip("/"), ""
    return re.split(r"[*?\[{]", source, maxsplit=1)[0].rpartition("/")[0], source


def _expanded(system: Any, base: str, root: str, pattern: str) -> list[str]:
    """The shards that a pattern names, relative to the root."""
    webdataset_package()
    from braceexpand import braceexpand

    found: list[str] = []
    for url in braceexpand(pattern):
        name = url[len(root) + 1 :]
        if not re.search(r"[*?\[]", name):
            found.append(name)
            continue
        try:
            paths = system.glob(f"{base}/{name}")
        except Exception as error:  # each file system has errors of its own
            raise PlrcError(f"cannot list {url}: {error}; name the shards as {{000..999}}") from error
        found += sorted(path[len(base) + 1 :] for path in paths if path.endswith(".tar"))
    return list(dict.fromkeys(found))


def _store(root: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of an address."""
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(root)
    except ImportError as error:
        raise PlrcError(f"{root}: {error}") from error
    except (ValueError, OSError) as error:
        raise PlrcError(f"{root} is not an address that can be read: {error}") from error
    return system, base.rstrip("/")


def webdataset_package() -> Any:
    """The package webdataset, loaded. Raises PlrcError where it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise PlrcError("shards need the package webdataset; pip install 'plrc-pretrain[shards]'") from error
    return webdataset
