"""List the images of the source that the user names in `config.data`.

No image is opened. Only the index of a large folder is written, into the user's cache folder.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from plrc.config import DataConfig
from plrc.data import layouts
from plrc.data.coco_names import plain_name
from plrc.data.decode import decode_bytes
from plrc.data.image_errors import DecodeError
from plrc.data.image_files import MAX_MEGAPIXELS, read_bytes, read_file_header
from plrc.data.image_header import Header, read_header
from plrc.data.image_kinds import file_extension
from plrc.data.index import Index, cache_index, describe_unused_index, mtimes_settled, read_index, size_and_mtime
from plrc.data.layouts import Listing
from plrc.data.left_out import describe_no_images
from plrc.data.pages import all_pages, split_page
from plrc.data.reading import ReadingReport
from plrc.data.shard_index import INDEX_NAME
from plrc.data.shards import Shards, open_shards
from plrc.errors import ConfigError, DataError
from plrc.pixels import RGB_CHANNELS
from plrc.text import note

_LOOKED_AT = 32  # images whose headers are read at the start of a run
LARGE_LISTING = 20_000  # a folder with this many images or more is cached: listing it on slow storage takes seconds


@dataclass(frozen=True)
class ImageList:
    """The images of a source.

    Attributes:
        root: The folder that names are relative to.
        names: The sorted paths of the images with "/" as separator: relative to the root, absolute outside of it.
        layout: The layout of the source: folder, glob, list, coco, voc or shards.
        excluded: Number of images that `data.exclude` left out.
        reading: Everything else that was left out.
        shards: The shards that hold the images; None if the images are files.
    """

    root: str
    names: tuple[str, ...]
    layout: str
    excluded: int = 0
    reading: ReadingReport = field(default_factory=ReadingReport, compare=False)
    shards: Shards | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def notes(self) -> tuple[str, ...]:
        """The lines of `reading`."""
        return self.reading.lines()

    def path(self, i: int) -> str:
        """Return the path of the file with image i."""
        return os.path.join(self.root, split_page(self.names[i])[0])

    def page(self, i: int) -> int:
        """Return the number of the page of image i in its file, from 0."""
        return split_page(self.names[i])[1]

    def read(self, i: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        """Read the bytes of image i. Raises DecodeError, also if it has too many bytes for `max_megapixels`."""
        return self.shards.read(i, max_megapixels) if self.shards else read_bytes(self.path(i), max_megapixels)

    def read_header(self, i: int, channels: int) -> Header:
        """Read the header of image i; for `channels` see `image_header.read_header`. Raises DecodeError."""
        if self.shards:
            return read_header(io.BytesIO(self.read(i)), channels, self.page(i))
        return read_file_header(self.path(i), channels, self.page(i))

    def decode(self, i: int, data: DataConfig, min_side: int = 0) -> Tensor:
        """Decode image i with the settings of `data`; for `min_side` see `decode_bytes`.

        Returns:
            uint8 [data.channels, H, W].

        Raises:
            DecodeError: The image cannot be read.
        """
        return decode_bytes(
            self.read(i, data.max_megapixels),
            percentiles=data.rescale_percentiles,
            max_megapixels=data.max_megapixels,
            min_side=min_side,
            channels=data.channels,
            page=self.page(i),
        )

    def file_size(self, i: int) -> int:
        """Return the size of image i in bytes; -1 if it is missing."""
        return self.shards.file_size(i) if self.shards else size_and_mtime(self.path(i))[0]

    def evenly_spaced(self, count: int) -> list[int]:
        """Return at most `count` evenly spaced positions."""
        count = min(count, len(self))
        return [i * len(self) // count for i in range(count)]


def find_images(config: DataConfig, coco_table: Any = None) -> ImageList:
    """List the images of `config.source` without those that `config.exclude` names.

    A folder is not searched again if its index is current. `plrc scan` writes the index, and so does this function for
    LARGE_LISTING images or more. Images that a scan could not read and that have not changed since are left out.

    Args:
        config: Settings of the source.
        coco_table: Content of the source, a COCO file, for a caller that has read it. None: it is read.

    Raises:
        DataError: The source does not exist, cannot be read, or has no images.
        LayoutError: The source does not have the layout that the settings name.
        ConfigError: The settings of the source cannot be used.
    """
    layout = detect_layout(config)
    if layout == "shards":
        if config.pages != "first":
            raise ConfigError(f"data.pages is {config.pages}, which works for files, not for shards; see plrc shard")
        shards, listing = open_shards(config.source)
        images = select_images(config, layout, listing)
        return replace(images, shards=shards.select(listing.names, images.names))
    settings = index_settings(config)
    index = read_index(config.source, layout, settings)
    root = os.path.abspath(config.source)
    if layout == "folder" and index is not None and index.is_current(root):
        listing = Listing(root, index.names, index.reading, index.folders)
        return select_images(config, layout, listing, index)
    started = time.time_ns()
    listing = list_images(config, layout, coco_table)
    unused = describe_unused_index(config.source, layout, settings) if index is None else ""
    is_large = layout == "folder" and len(listing.names) >= LARGE_LISTING
    if is_large and mtimes_settled(listing.folders, started):
        bad = index.bad if index is not None else {}  # `select_images` checks whether these images have changed
        index = Index(layout, listing.folders, listing.names, listing.reading, bad, settings)
        cache_index(config.source, index)
    images = select_images(config, layout, listing, index)
    if unused:
        images.reading.add(unused)
    return images


def detect_layout(config: DataConfig) -> str:
    """Return the layout that the settings name; for "auto", detect it."""
    source = config.source
    if not source:
        raise ConfigError("data.source is empty; name a folder, glob, .txt list, COCO .json or VOC folder with --data")
    layout = config.layout if config.layout != "auto" else _guess_layout(source)
    if config.split and layout != "voc":
        raise ConfigError(f"data.split is {config.split}, but {source} is read as {layout}; only VOC has splits")
    return layout


def list_images(config: DataConfig, layout: str, coco_table: Any = None) -> Listing:
    """List all images of a source that is not shards, before exclusions and without an index."""
    source = config.source
    arrays = config.channels != RGB_CHANNELS
    if layout == "folder":
        listing = layouts.list_folder(source, arrays)
    elif layout == "glob":
        listing = layouts.list_glob(source, arrays)
    elif layout == "list":
        listing = layouts.list_text_file(source)
    elif layout == "coco":
        listing = layouts.list_coco(source, coco_table)
    else:
        listing = layouts.list_voc(source, config.split)
    listing.reading.add(*describe_no_images(listing.no_images))
    if config.pages == "all":
        return replace(listing, names=all_pages(listing.root, listing.names))
    return listing


def index_settings(config: DataConfig) -> dict[str, Any]:
    """Return what an index depends on besides the files: settings, and optional packages that read images."""
    return {
        "max_megapixels": config.max_megapixels,
        "channels": config.channels,
        "pages": config.pages,
        "packages": [name for name in ("pillow_heif", "imagecodecs") if find_spec(name) is not None],
    }


def select_images(config: DataConfig, layout: str, listing: Listing, index: Index | None = None) -> ImageList:
    """Return the sorted images of a listing without repetitions, unreadable images and excluded images.

    Raises:
        DataError: All images are unreadable.
        ConfigError: All images are excluded.
    """
    root = listing.root
    names = sorted(set(listing.names))
    unreadable: set[str] = set()
    if index is not None:
        unreadable = index.unchanged_bad(root).intersection(names)
    readable = [name for name in names if name not in unreadable]
    excluded, unmatched = match_exclusions(readable, root, config.exclude)
    kept = tuple(name for name in readable if name not in excluded)
    if not readable:
        raise DataError(f"plrc scan could read none of the {len(names)} images of {config.source}")
    if not kept:
        raise ConfigError(f"data.exclude = {config.exclude} names all {len(readable)} images of {config.source}")
    reading = ReadingReport()
    reading.extend(listing.reading)
    for name, times in Counter(listing.names).items():
        if times > 1:
            reading.count("dropped", "further entries of an image", name)
    for name in unreadable:
        reading.count("left out", "images that plrc scan could not read", name)
    reading.add(*note("entries of data.exclude that match no image", unmatched))
    return ImageList(root, kept, layout, len(excluded), reading)


def sample_remarks(images: ImageList, config: DataConfig) -> list[str]:
    """Describe how images are read that are not plain pictures of 8 bits, after a look at some of their headers.

    Args:
        images: The images. Those in shards are not looked at.
        config: Settings of the source.

    Returns:
        A sentence for each kind.
    """
    counts: Counter[str] = Counter()
    for header in sample_headers(images, config.channels):
        counts.update(header.remarks(config.pages, config.channels))
    looked_at = min(_LOOKED_AT, len(images))
    return [f"{remark}: {count} of {looked_at} images looked at" for remark, count in counts.items()]


def sample_headers(images: ImageList, channels: int) -> list[Header]:
    """Read the headers of some evenly spaced images, without those that cannot be read.

    Args:
        images: The images. Those in shards are not looked at.
        channels: Channels of the images (`data.channels`).
    """
    if images.shards is not None:
        return []
    headers: list[Header] = []
    for i in images.evenly_spaced(_LOOKED_AT):
        with contextlib.suppress(DecodeError):  # reported when its turn comes
            headers.append(images.read_header(i, channels))
    return headers


def match_exclusions(names: list[str], root: str, exclude: str) -> tuple[set[str], list[str]]:
    """Find the images that `data.exclude` names.

    An entry with a folder in it is first compared with the paths of the images, relative to their root or to the list.
    If it matches none, or has no folder, it is compared with the file names in all folders; if it matches none of them,
    with the file names without extension. So a copy of a test image is excluded in any folder, while an image that only
    has the same file name as an excluded image of the same source stays.

    Args:
        names: The images.
        root: The folder that `names` are relative to.
        exclude: A .txt list (paths, file names or names without extension; lines that start with `#` and match nothing
            are comments), a COCO .json, or a folder or glob of images. Empty: nothing is excluded. A TIFF file stands
            for all its pages.

    Returns:
        The names to leave out, and the entries that match nothing.
    """
    if not exclude:
        return set(), []
    exclude_root, entries = _read_exclusions(exclude)
    by_path: defaultdict[str, set[str]] = defaultdict(set)
    by_file: defaultdict[str, list[str]] = defaultdict(list)
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        path = split_page(name)[0]
        by_path[name].add(name)
        by_path[path].add(name)
        file = path.rpartition("/")[2]
        by_file[file].append(name)
        if path != name:
            by_file[name.rpartition("/")[2]].append(name)
        by_stem[file.rpartition(".")[0]].append(name)

    def match(entry: str) -> list[str]:
        file = os.path.basename(entry)
        if file != entry:
            paths = [layouts.relative_name(root, os.path.join(folder, entry)) for folder in (root, exclude_root)]
            matches = [name for path in paths for name in by_path.get(path, ())]
            if matches:
                return matches
        return by_file[file] if file in by_file else by_stem.get(file, [])

    excluded: set[str] = set()
    unmatched: list[str] = []
    for entry in entries:
        matches = match(entry) or match(plain_name(entry))  # such as a name of a COCO file with Windows separators
        if not matches and not os.path.basename(entry).startswith("#"):
            unmatched.append(entry)
        excluded.update(matches)
    return excluded, unmatched


def _guess_layout(source: str) -> str:
    if os.path.isdir(source):
        if os.path.isfile(os.path.join(source, INDEX_NAME)):
            return "shards"
        return "voc" if os.path.isdir(os.path.join(source, "JPEGImages")) else "folder"
    if "://" in source or source.endswith(".tar"):
        return "shards"
    if os.path.isfile(source):
        extension = file_extension(source)
        if extension == ".json":
            return "coco"
        if extension == ".txt":
            return "list"
        raise DataError(f"{source} is a single file, neither a .txt list nor a COCO .json; name its folder instead")
    if glob.has_magic(source):
        return "glob"
    raise DataError(f"{source} does not exist (looked in {os.getcwd()}); name a folder, glob, .txt list or COCO .json")


def _read_exclusions(exclude: str) -> tuple[str, list[str]]:
    """Return the folder that relative entries start from, and the entries."""
    if os.path.isfile(exclude):
        is_coco = file_extension(exclude) == ".json"
        entries = layouts.read_coco_names(exclude) if is_coco else layouts.read_lines(exclude, lambda _: True)
        return os.path.dirname(os.path.abspath(exclude)), entries
    if not os.path.isdir(exclude) and not glob.has_magic(exclude):
        raise ConfigError(f"data.exclude = {exclude} does not exist; name a list file, or a folder or glob of images")
    try:
        listing = layouts.list_folder(exclude) if os.path.isdir(exclude) else layouts.list_glob(exclude)
    except DataError as error:
        raise ConfigError(f"data.exclude = {exclude}: {error}") from error
    return listing.root, [os.path.join(listing.root, name) for name in listing.names]
