"""What the user names in `config.data` -> the sorted list of images to train on.

Layer 1: imports config and this folder's decode, layouts, shards and index. Listing opens no image;
it writes nothing but the index of a large folder, in the user's cache folder.
"""

from __future__ import annotations

import glob
import os
import time
from dataclasses import dataclass, field, replace

from torch import Tensor

from plrc.config import DataConfig
from plrc.data import layouts
from plrc.data.decode import MAX_MEGAPIXELS, decode_bytes, read_bytes
from plrc.data.index import Index, read_index, remember, settled, stamp
from plrc.data.layouts import Listing
from plrc.data.shards import INDEX, Shards, open_shards, placed
from plrc.errors import PlrcError
from plrc.text import note

MANY = 20_000  # images whose listing is worth keeping: a second or more on slow storage


@dataclass(frozen=True)
class ImageList:
    """The images of a source. `names` are sorted, use "/", and are relative to `root` (absolute where a list names a
    file outside of it). `excluded` counts what `data.exclude` took away; `notes` tell of everything else left out."""

    root: str
    names: tuple[str, ...]
    layout: str
    excluded: int = 0
    notes: tuple[str, ...] = ()
    shards: Shards | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def read(self, i: int, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
        """The bytes of an image. Raises DecodeError where they cannot be had, or are too many for `max_megapixels`."""
        return self.shards.read(i, max_megapixels) if self.shards else read_bytes(self.path(i), max_megapixels)

    def decode(self, i: int, data: DataConfig, least: int = 0) -> Tensor:
        """An image as the settings say, uint8 [3, H, W]; `least` as in `decode_bytes`. Raises DecodeError."""
        file = self.read(i, data.max_megapixels)
        return decode_bytes(file, percentiles=data.rescale_percentiles, max_megapixels=data.max_megapixels, least=least)

    def size(self, i: int) -> int:
        """Bytes of an image; -1 where it is gone."""
        return self.shards.size(i) if self.shards else stamp(self.path(i))[0]

    def spread(self, count: int) -> list[int]:
        """At most `count` positions, evenly spread over all."""
        number = min(count, len(self))
        return [i * len(self) // number for i in range(number)]


def find_images(config: DataConfig) -> ImageList:
    """List the images of `config.source` without those that `config.exclude` names.

    A fresh index saves the walk through a folder: that of `plrc scan`, or what the first walk through MANY images left
    behind. Images that a scan found unreadable and that have not changed since are left out. Raises PlrcError where no
    image is found.
    """
    layout = layout_of(config)
    if layout == "shards":
        shards, listing = open_shards(config.source)
        images = select(config, layout, listing)
        return replace(images, shards=placed(shards, listing.names, images.names))
    index = read_index(config.source, layout)
    before = time.time_ns()
    listing = list_source(config, layout, index)
    walked = index is None or listing.names is not index.names
    if layout == "folder" and walked and len(listing.names) >= MANY and settled(listing.folders, before):
        bad = index.bad if index is not None else {}
        remember(config.source, Index(layout, listing.folders, listing.names, listing.notes, bad))
    return select(config, layout, listing, index)


def layout_of(config: DataConfig) -> str:
    """The layout that is asked for or, for "auto", the one that the source looks like."""
    source = config.source
    if not source:
        raise PlrcError("data.source is empty; name a folder, glob, .txt list, COCO .json or VOC folder with --data")
    layout = config.layout if config.layout != "auto" else _detect(source)
    if config.split and layout != "voc":
        raise PlrcError(f"data.split is {config.split}, but {source} is read as {layout}; splits work with VOC alone")
    return layout


def _detect(source: str) -> str:
    if os.path.isdir(source):
        if os.path.isfile(os.path.join(source, INDEX)):
            return "shards"
        return "voc" if os.path.isdir(os.path.join(source, "JPEGImages")) else "folder"
    if "://" in source or source.endswith(".tar"):
        return "shards"
    if os.path.isfile(source):
        kinds = {".json": "coco", ".txt": "list"}
        if layouts.ending(source) in kinds:
            return kinds[layouts.ending(source)]
        raise PlrcError(f"{source} is a single file, neither a .txt list nor a COCO .json; name its folder instead")
    if glob.has_magic(source):
        return "glob"
    raise PlrcError(f"{source} does not exist (looked in {os.getcwd()}); name a folder, glob, .txt list or COCO .json")


def list_source(config: DataConfig, layout: str, index: Index | None = None) -> Listing:
    """Everything that the source has, before exclusions; from the index where that is still true."""
    source = config.source
    if layout == "folder":
        root = os.path.abspath(source)
        if index is not None and index.lists(root):
            return Listing(root, index.names, index.notes, index.folders)
        return layouts.folder(source)
    if layout == "shards":
        return open_shards(source)[1]
    if layout == "voc":
        return layouts.voc(source, config.split)
    return {"glob": layouts.pattern, "list": layouts.listed, "coco": layouts.coco}[layout](source)


def select(config: DataConfig, layout: str, listing: Listing, index: Index | None = None) -> ImageList:
    """Sort, take each name once, and leave out what is unreadable or excluded."""
    root = listing.root
    names = sorted(set(listing.names))
    bad = (index.still_bad(root) if index is not None else frozenset()).intersection(names)
    readable = [name for name in names if name not in bad]
    gone, unmatched = excluded(readable, root, config.exclude)
    kept = tuple(name for name in readable if name not in gone)
    if not readable:
        raise PlrcError(f"plrc scan could read none of the {len(names)} images of {config.source}")
    if not kept:
        raise PlrcError(f"data.exclude = {config.exclude} names all {len(readable)} images of {config.source}")
    twice = len(listing.names) - len(names)
    notes = (
        *listing.notes,
        *([f"images that are named more than once and taken once: {twice}"] if twice else []),
        *note("left out images that plrc scan could not read", bad),
        *note("entries of data.exclude that match no image", unmatched),
    )
    return ImageList(root, kept, layout, len(gone), notes)


def excluded(names: list[str], root: str, exclude: str) -> tuple[set[str], list[str]]:
    """(names to leave out, entries that match nothing).

    `exclude` is a .txt list (paths, file names or stems, `#` comments), a COCO .json, or a folder or glob of images.
    An entry with a folder in it takes the image at that very path (relative to the images' root or to the list). Where
    there is none, and for an entry without a folder, it takes every image of that file name; where there is none again,
    every image of which it is the file name without ending. So a copy of a test image is found wherever it lies, while
    an image that only shares its file name with an excluded image of the same source stays.
    """
    if not exclude:
        return set(), []
    base, entries = _exclusions(exclude)
    known = set(names)
    by_file: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for name in names:
        file = name.rpartition("/")[2]
        by_file.setdefault(file, []).append(name)
        by_stem.setdefault(file.rpartition(".")[0], []).append(name)
    gone: set[str] = set()
    unmatched = []
    for entry in entries:
        file = os.path.basename(entry)
        paths = [layouts.relative(root, os.path.join(at, entry)) for at in (root, base)] if file != entry else []
        found = [path for path in paths if path in known] or by_file.get(file) or by_stem.get(file) or []
        gone.update(found)
        if not found:
            unmatched.append(entry)
    return gone, unmatched


def _exclusions(exclude: str) -> tuple[str, list[str]]:
    """(folder that relative entries start from, entries)."""
    if os.path.isfile(exclude):
        read = layouts.coco_names if layouts.ending(exclude) == ".json" else layouts.lines
        return os.path.dirname(os.path.abspath(exclude)), read(exclude)
    if not os.path.isdir(exclude) and not glob.has_magic(exclude):
        raise PlrcError(f"data.exclude = {exclude} does not exist; name a list file, or a folder or glob of images")
    try:
        found = layouts.folder(exclude) if os.path.isdir(exclude) else layouts.pattern(exclude)
    except PlrcError as error:
        raise PlrcError(f"data.exclude = {exclude}: {error}") from error
    return found.root, [os.path.join(found.root, name) for name in found.names]
