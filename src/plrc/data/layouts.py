"""The layouts of an image source (folder, glob, list, COCO, VOC): each lists the names of its images.

Layer 1: imports config, files and this folder's index. Lists folders and reads list files; opens no image and writes
nothing.

Names use "/" and are relative to the root (absolute where a list names a file outside of it). A note tells of something
that was skipped. An error names the source, what was looked for, and what was found instead.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from plrc.data.index import NEVER_FRESH
from plrc.errors import PlrcError
from plrc.files import parse_json
from plrc.text import note

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
SAMPLE = 1000  # COCO entries that are looked for in each candidate folder


@dataclass(frozen=True)
class Listing:
    """What a source has: names in no order, notes, and for a folder the mtimes of all folders below it."""

    root: str
    names: list[str]
    notes: list[str] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)


def folder(source: str) -> Listing:
    """All images below a folder. Hidden files and folders are left out; a linked folder is followed once, and real
    folders come before linked ones, so that a cycle of links ends."""
    root = os.path.abspath(source)
    if not os.path.isdir(root):
        raise PlrcError(f"{source} is not a folder")
    names: list[str] = []
    mtimes: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    unread: list[str] = []
    misnamed: list[str] = []
    dangling: list[str] = []
    others: Counter[str] = Counter()
    pending, linked = [""], list[str]()
    while pending or linked:
        here = pending.pop() if pending else linked.pop(0)
        try:
            status = os.stat(os.path.join(root, here))
            if (status.st_dev, status.st_ino) in seen:
                continue
            with os.scandir(os.path.join(root, here)) as scan:
                entries = list(scan)
        except OSError:
            unread.append(here or root)
            mtimes[here] = NEVER_FRESH
            continue
        seen.add((status.st_dev, status.st_ino))
        mtimes[here] = status.st_mtime_ns
        links: list[str] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{here}/{entry.name}" if here else entry.name
            image = entry.name.lower().endswith(ENDINGS)
            folder_here, file_here = _kind(entry)
            if folder_here:
                target = misnamed if image else links if entry.is_symlink() else pending
                target.append(name)
            elif not image:
                others[ending(name)] += 1
            elif file_here:
                names.append(name)
            else:
                dangling.append(name)
                mtimes[here] = NEVER_FRESH  # its target may appear without a trace in this folder
        linked += sorted(links)
    notes = [
        *note("skipped folders named like an image", misnamed),
        *note("skipped dangling links", dangling),
        *note("skipped folders that cannot be read", unread),
    ]
    if not names:
        raise PlrcError(_nothing(f"{source} (looked in {len(mtimes)} folders)", others, notes))
    return Listing(root, names, notes, mtimes)


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """(is it a folder, is it a file); neither where a link leads to itself, to nothing, or to a pipe or device."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:
        return False, False


def pattern(source: str) -> Listing:
    """Images that match a glob; `**` stands for any number of folders."""
    parts = os.path.abspath(source).replace(os.sep, "/").split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    root = "/".join(parts[:fixed]) or "/"
    matches = {name.replace(os.sep, "/") for name in glob.glob("/".join(parts[fixed:]), root_dir=root, recursive=True)}
    named = {name for name in matches if name.lower().endswith(ENDINGS)}
    names = [name for name in named if os.path.isfile(os.path.join(root, name))]
    notes = note("skipped folders and dangling links named like an image", named.difference(names))
    if not names:
        files = (name for name in matches - named if os.path.isfile(os.path.join(root, name)))
        raise PlrcError(_nothing(f"what matches {source}", Counter(map(ending, files)), notes))
    return Listing(root, names, notes)


def listed(source: str) -> Listing:
    """A text file with one path a line, relative to its own folder; a line that starts with `#` is a comment."""
    return _present(source, os.path.dirname(os.path.abspath(source)), lines(source), "entries of the list")


def coco(source: str) -> Listing:
    """The images of a COCO file; boxes are ignored. Searched next to the file and in its parent, there also in `images`
    and in a folder named after the split (`train2017` for instances_train2017.json); the folder with the most wins."""
    entries = coco_names(source)
    here = os.path.dirname(os.path.abspath(source))
    split = os.path.splitext(os.path.basename(source))[0].rpartition("_")[2]
    tails = ("", "images", split, os.path.join("images", split))
    places = dict.fromkeys(os.path.normpath(os.path.join(base, t)) for t in tails for base in (here, f"{here}/.."))
    some = entries[:: max(1, len(entries) // SAMPLE)]
    root = max(places, key=lambda place: sum(os.path.isfile(os.path.join(place, entry)) for entry in some))
    return _present(source, root, entries, "images of the annotations", places)


def coco_names(source: str) -> list[str]:
    """The `file_name` entries of a COCO file."""
    try:
        return [str(image["file_name"]) for image in parse_json(_text(source))["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise PlrcError(f'{source} is not a COCO file: it has no list "images" with "file_name" entries') from error


def voc(source: str, split: str) -> Listing:
    """Images in JPEGImages, or those of them that ImageSets/Main/SPLIT.txt names."""
    images = os.path.join(source, "JPEGImages")
    if not os.path.isdir(images):
        raise PlrcError(f"{source} has no folder JPEGImages; it is not laid out like Pascal VOC")
    found = folder(images)
    if not split:
        return found
    lists = os.path.join(source, "ImageSets", "Main")
    path = os.path.join(lists, f"{split}.txt")
    if not os.path.isfile(path):
        there = sorted(n[:-4] for n in os.listdir(lists) if n.endswith(".txt")) if os.path.isdir(lists) else []
        raise PlrcError(
            f"data.split = {split} is not in {lists}; write one of: {', '.join(there) or '(it has no lists)'}"
        )
    known = {os.path.splitext(name)[0]: name for name in sorted(found.names)} | {name: name for name in found.names}
    wanted = [line if line in known else line.split()[0] for line in lines(path)]  # class lists have a second column
    names = [known[entry] for entry in wanted if entry in known]
    if not names:
        raise PlrcError(f"none of the {len(wanted)} entries of {path} is an image in {images}")
    missing = note(f"entries of the split {split} without an image", [w for w in wanted if w not in known])
    return Listing(found.root, names, found.notes + missing)


def lines(path: str) -> list[str]:
    """The lines of a text file without empty ones and comments."""
    stripped = (line.strip() for line in _text(path).splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def relative(root: str, path: str) -> str:
    """The name of a file (absolute, or relative to the root): relative where it lies below the root, else absolute."""
    inside = root.replace(os.sep, "/").rstrip("/") + "/"
    return os.path.normpath(os.path.join(root, path)).replace(os.sep, "/").removeprefix(inside)


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"


def _present(source: str, root: str, entries: list[str], what: str, places: Collection[str] = ()) -> Listing:
    """Those of the entries that are files."""
    named = [relative(root, entry) for entry in entries]
    names = [name for name in named if os.path.isfile(os.path.join(root, name))]
    if not names:
        example = f", such as {entries[0]}," if entries else ""
        looked = ", ".join(places or (root,))
        raise PlrcError(f"none of the {len(entries)} entries of {source}{example} is a file; looked in {looked}")
    missing = set(named).difference(names)
    return Listing(root, names, note(f"{what} that do not exist", missing))


def _text(path: str) -> str:
    if not os.path.isfile(path):
        raise PlrcError(f"{path} is not a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise PlrcError(f"{path} cannot be opened: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlrcError(f"{path} is not a text file in UTF-8") from error


def _nothing(where: str, others: Counter[str], notes: list[str]) -> str:
    looked = " ".join(e[1:] for e in ENDINGS)
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(4))
    files = f"{sum(others.values())} files, none with an image ending ({kinds})" if others else "no files"
    return "; ".join([f"no image in {where}: looked for {looked}; found {files}", *notes])
