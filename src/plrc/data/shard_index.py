"""Where the images lie in tar shards: from the index `shards.json`, or from the headers of a tar file."""

from __future__ import annotations

import re
import tarfile
from typing import Any, NamedTuple

from plrc.data.image_kinds import IMAGE_EXTENSIONS
from plrc.errors import DataError, MissingPackageError
from plrc.files import parse_json

INDEX_NAME = "shards.json"
VERSION = 1
MAP_SUFFIX = "regions.png"
"""Member with the id map of an image: KEY.regions.png next to KEY.jpg."""


class Sample(NamedTuple):
    """Where one image of a shard lies. All places are in bytes.

    Attributes:
        member: Name of the image in the tar file.
        offset: First byte of the image.
        length: Size of the image.
        map_offset: First byte of its id map; -1 if it has none.
        map_length: Size of its id map; -1 if it has none.
    """

    member: str
    offset: int
    length: int
    map_offset: int
    map_length: int


def read_samples(file: Any) -> tuple[list[Sample], list[str]]:
    """Read the headers of an open, seekable tar file.

    Nothing is unpacked, but names become those of id maps: absolute names, `..`, links and devices are refused.

    Returns:
        The samples, and the names of refused members.

    Raises:
        tarfile.TarError: The file is damaged.
        OSError: The file cannot be read.
    """
    base_plus_ext = import_webdataset().tariterators.base_plus_ext
    images: list[tuple[str, int, int]] = []
    maps: dict[str, tuple[int, int]] = {}
    refused: list[str] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            key, extension = base_plus_ext(name)
            if name.rpartition("/")[2].startswith("._"):  # what macOS adds for each file
                continue
            if not (member.isreg() and is_safe_name(name)) or member.issparse():
                refused.append(name)
            elif key is not None and extension.lower() == MAP_SUFFIX:
                maps[key] = (member.offset_data, member.size)
            elif name.lower().endswith(IMAGE_EXTENSIONS):
                images.append((name, member.offset_data, member.size))
    samples = []
    for name, offset, length in images:
        key, _ = base_plus_ext(name)
        map_offset, map_length = maps.get(key, (-1, -1))
        samples.append(Sample(name, offset, length, map_offset, map_length))
    return samples, refused


def parse_index(content: bytes, root: str) -> dict[str, list[Sample]]:
    """Parse and check the content of `shards.json`.

    Args:
        content: The file.
        root: The folder or address that the index lies in, for error messages.

    Returns:
        Name of a shard -> its samples.

    Raises:
        DataError: The index is damaged, unfinished, of another version, or names places outside of its folder.
    """
    path = f"{root}/{INDEX_NAME}"
    try:
        raw = parse_json(content)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); make it anew with plrc shard") from error
    try:
        if raw["shards"] is None:
            raise DataError(f"the shards of {root} are unfinished; give the same plrc shard command again")
        if raw["version"] != VERSION:
            versions = f"of version {raw['version']}, this plrc reads {VERSION}"
            raise DataError(f"the shards of {root} are {versions}; give the same plrc shard command again")
        index: dict[str, list[Sample]] = {}
        for name, samples in raw["shards"].items():
            index[str(name)] = [_parse_sample(values) for values in samples]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not an index of plrc shard ({error}); make it anew") from error
    for name, samples in index.items():
        for entry in (name, *(sample.member for sample in samples)):
            if not is_safe_name(entry):
                raise DataError(f"{path} names {entry!r}, which may lie outside of its folder; make it anew")
    return index


def is_safe_name(name: str) -> bool:
    """Return whether a name stays in its folder on every operating system."""
    return not (set(name.split("/")) & {"", "..", "."} or re.search(r"[\\:\x00-\x1f]", name))


def import_webdataset() -> Any:
    """Return the package webdataset. Raises MissingPackageError."""
    try:
        import webdataset
    except ImportError as error:
        raise MissingPackageError("shards", "webdataset") from error
    return webdataset


def _parse_sample(values: Any) -> Sample:
    member, *numbers = values
    offset, length, map_offset, map_length = map(int, numbers)
    if min(offset, length) < 0 or max(map(abs, (offset, length, map_offset, map_length))) >= 2**62:
        raise ValueError("a place that no file has")
    return Sample(str(member), offset, length, map_offset, map_length)
