"""The layouts of an image source (folder, glob, text file, COCO, VOC): each lists the names of its images.

Names use "/" and are relative to the root, or absolute if a list names a file outside of it. No image is decoded and
nothing is written. Only files of unknown endings are opened, for their first bytes.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from plrc.data.channels import NPY_EXTENSION
from plrc.data.coco_names import count_spellings, find_images, image_folders, split_of_file
from plrc.data.coco_values import read_id
from plrc.data.image_kinds import IMAGE_EXTENSIONS, file_extension, readable_formats
from plrc.data.index import INDEX_NAME, NEVER_FRESH
from plrc.data.left_out import OtherFiles
from plrc.data.pages import split_page
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError, LayoutError
from plrc.files import parse_json


def _is_no_name(line: str) -> bool:
    return False


@dataclass(frozen=True)
class Listing:
    """The images that a source has.

    Attributes:
        root: The folder that names are relative to.
        names: The images, in no particular order.
        reading: What was left out.
        folders: For a plain folder, each folder below the root ("" is the root) -> its mtime in ns.
        no_images: Ending or name -> number of the files that are certainly no images, such as labels.
    """

    root: str
    names: list[str]
    reading: ReadingReport = field(default_factory=ReadingReport)
    folders: dict[str, int] = field(default_factory=dict)
    no_images: dict[str, int] = field(default_factory=dict)


def list_folder(source: str, arrays: bool = False) -> Listing:
    """List all images below a folder. Of files without an ending or of an unknown one, the first bytes decide.

    Hidden files and folders are left out. Each folder is visited once, real folders before linked ones, so that a cycle
    of links ends.

    Args:
        source: The folder.
        arrays: Whether .npy files are images.

    Raises:
        LayoutError: The source is not a folder.
        DataError: It has no images.
    """
    root = os.path.abspath(source)
    if not os.path.isdir(root):
        raise LayoutError(f"{source} is not a folder")
    walk = _Walk(root, _extensions(arrays))
    walk.run()
    reading = walk.other_files.report()
    for name in walk.hidden:
        reading.count("left out", "hidden files and folders", name)
    for name in walk.misnamed:
        reading.count("left out", "folders named like an image", name)
    for name in walk.dangling:
        reading.count("left out", "dangling links", name)
    for name in walk.unreadable:
        reading.count("left out", "folders that cannot be read", name)
    images = walk.images + walk.other_files.images
    if not images:
        where = f"{source} (looked in {len(walk.mtimes)} folders)"
        raise DataError(_no_images(where, walk.other_files, reading, arrays))
    return Listing(root, images, reading, walk.mtimes, walk.other_files.no_images)


def list_glob(source: str, arrays: bool = False) -> Listing:
    """List the images that match a glob; `**` stands for any number of folders. See `list_folder`. Raises DataError."""
    parts = os.path.abspath(source).replace(os.sep, "/").split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    root = "/".join(parts[:fixed]) or "/"
    matches = glob.glob("/".join(parts[fixed:]), root_dir=root, recursive=True)
    names = {match.replace(os.sep, "/") for match in matches}
    named_like_images = {name for name in names if name.lower().endswith(_extensions(arrays))}
    images = [name for name in named_like_images if os.path.isfile(os.path.join(root, name))]
    other_files = OtherFiles(root)
    for name in names - named_like_images:
        if os.path.isfile(os.path.join(root, name)):
            other_files.sort(name)
    reading = other_files.report()
    for name in named_like_images.difference(images):
        reading.count("left out", "folders and dangling links named like an image", name)
    images += other_files.images
    if not images:
        raise DataError(_no_images(f"what matches {source}", other_files, reading, arrays))
    return Listing(root, images, reading, no_images=other_files.no_images)


def list_text_file(source: str) -> Listing:
    """List the images that a text file names, one path per line, relative to its folder.

    A line that starts with `#` is a comment, unless a file has this name.

    Raises:
        DataError: The file cannot be read, or names no file.
    """
    root = os.path.dirname(os.path.abspath(source))
    lines = read_lines(source, lambda line: os.path.isfile(os.path.join(root, line)))
    return _existing(source, root, lines, "entries of the list")


def list_coco(source: str, table: Any = None) -> Listing:
    """List the images of a COCO file; its boxes are ignored.

    The images are searched next to the file and in its parent folder, also in their folders `images`, `data` and SPLIT
    (`train2017` for instances_train2017.json); for the spellings of names see `coco_names.find_images`.

    Args:
        source: The file.
        table: Its content. None: it is read.

    Raises:
        LayoutError: The file is not a COCO file.
        DataError: None of its images exists.
    """
    reading = ReadingReport()
    images, annotations = _coco_lists(source, read_coco_json(source) if table is None else table, reading)
    entries = [str(image["file_name"]) for image in images]
    places = find_images(entries, image_folders(source, split_of_file(source)))
    missing = set(places.missing())
    present = [places.paths[entry] for entry in entries if entry not in missing]
    if not present:
        raise DataError(places.describe_failure(source))
    count_spellings(places, reading)
    for entry in missing:
        reading.count("left out", "images of the annotations that do not exist", entry)
    annotated = {str(read_id(annotation.get("image_id"))) for annotation in annotations}
    for image, entry in zip(images, entries, strict=True):
        if annotations and entry not in missing and str(read_id(image.get("id"))) not in annotated:
            reading.count("read", "images without an annotation", entry)
    return Listing(places.root, [relative_name(places.root, path) for path in present], reading)


def read_coco_json(source: str) -> Any:
    """Return the content of a COCO file, which may be anything. Raises LayoutError if it is not JSON."""
    try:
        return parse_json(_read_text(source))
    except ValueError as error:
        raise LayoutError(f"{source} is not a COCO file: it is not readable JSON ({error})") from error


def read_coco_names(source: str) -> list[str]:
    """Read the `file_name` entries of a COCO file. Raises LayoutError if it is not one, or an image has no name."""
    reading = ReadingReport()
    images, _ = _coco_lists(source, read_coco_json(source), reading)
    if reading.total("dropped"):
        raise LayoutError(f"{source} does not name all of its images: {'; '.join(reading.lines())}; remove these")
    return [str(image["file_name"]) for image in images]


def list_voc(source: str, split: str) -> Listing:
    """List the images of a Pascal VOC folder.

    Args:
        source: The folder that holds JPEGImages.
        split: Lists only the images in ImageSets/Main/SPLIT.txt. Empty: all images.

    Raises:
        LayoutError: There is no folder JPEGImages.
        ConfigError: There is no such split.
        DataError: The split names no image.
    """
    images = os.path.join(source, "JPEGImages")
    if not os.path.isdir(images):
        raise LayoutError(f"{source} has no folder JPEGImages; it is not laid out like Pascal VOC")
    listing = list_folder(images)
    if not split:
        return listing
    folder = os.path.join(source, "ImageSets", "Main")
    path = os.path.join(folder, f"{split}.txt")
    if not os.path.isfile(path):
        files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        splits = [name.removesuffix(".txt") for name in files if name.endswith(".txt")]
        raise ConfigError(
            f"data.split = {split} is not in {folder}; write one of: {', '.join(splits) or '(it has no lists)'}"
        )
    by_entry = {os.path.splitext(name)[0]: name for name in sorted(listing.names, reverse=True)}  # x.jpg before x.png
    by_entry |= {name: name for name in listing.names}
    names: list[str] = []
    lines = read_lines(path, by_entry.__contains__)
    for line in lines:
        entry = line if line in by_entry else line.split()[0]  # lists of a class have a second column
        if entry in by_entry:
            names.append(by_entry[entry])
        else:
            listing.reading.count("left out", f"entries of the split {split} without an image", entry)
    if not names:
        raise DataError(f"none of the {len(lines)} entries of {path} is an image in {images}")
    return Listing(listing.root, names, listing.reading)


def read_lines(path: str, is_name: Callable[[str], bool] = _is_no_name) -> list[str]:
    """Read the lines of a text file without empty lines and comments.

    Args:
        path: The file.
        is_name: Tells which lines that start with `#` are names, not comments.

    Raises:
        DataError: The file cannot be read.
    """
    stripped = (line.strip() for line in _read_text(path).splitlines())
    return [line for line in stripped if line and (not line.startswith("#") or is_name(line))]


def read_numbered_lines(path: str) -> list[str]:
    """Read the lines of a text file whose numbers have a meaning: all but empty ones at its end, `#` or not.

    Raises:
        DataError: The file cannot be read, or has an empty line before its last.
    """
    lines = [line.strip() for line in _read_text(path).rstrip().splitlines()]
    if "" in lines:
        raise DataError(
            f"{path}: line {lines.index('') + 1} is empty, and the number of a line is that of its class; remove the "
            "line, or write a name"
        )
    return lines


def relative_name(root: str, path: str) -> str:
    """Return the name of a file or relative path: relative to the root if it lies below it, otherwise absolute."""
    inside = root.replace(os.sep, "/").rstrip("/") + "/"
    return os.path.normpath(os.path.join(root, path)).replace(os.sep, "/").removeprefix(inside)


class _Walk:
    """A walk through all folders below a root; `run` fills the lists."""

    def __init__(self, root: str, extensions: tuple[str, ...]) -> None:
        self.root = root
        self.extensions = extensions
        self.images: list[str] = []
        self.mtimes: dict[str, int] = {}
        self.misnamed: list[str] = []
        self.dangling: list[str] = []
        self.unreadable: list[str] = []
        self.hidden: list[str] = []
        self.other_files = OtherFiles(root)
        self._folders = [""]
        self._linked_folders: list[str] = []
        self._seen: set[tuple[int, int]] = set()

    def run(self) -> None:
        while self._folders or self._linked_folders:
            folder = self._folders.pop() if self._folders else self._linked_folders.pop(0)
            known_links = len(self._linked_folders)
            for entry in self._enter(folder):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not entry.name.startswith("."):
                    self._sort_in(entry, name, folder)
                elif entry.name != INDEX_NAME:
                    self.hidden.append(name)
            self._linked_folders[known_links:] = sorted(self._linked_folders[known_links:])

    def _enter(self, folder: str) -> list[os.DirEntry[str]]:
        """The entries of a folder; none if it cannot be read or was visited before."""
        path = os.path.join(self.root, folder)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in self._seen:
                return []
            with os.scandir(path) as scan:
                entries = list(scan)
        except OSError:
            self.unreadable.append(folder or self.root)
            self.mtimes[folder] = NEVER_FRESH
            return []
        self._seen.add((status.st_dev, status.st_ino))
        self.mtimes[folder] = status.st_mtime_ns
        return entries

    def _sort_in(self, entry: os.DirEntry[str], name: str, folder: str) -> None:
        named_like_image = entry.name.lower().endswith(self.extensions)
        try:
            is_folder = entry.is_dir()
            is_file = entry.is_file()
        except OSError:  # a link that leads to itself
            is_folder = False
            is_file = False
        if is_folder:
            if named_like_image:
                self.misnamed.append(name)
            elif entry.is_symlink():
                self._linked_folders.append(name)
            else:
                self._folders.append(name)
        elif is_file and named_like_image:
            self.images.append(name)
        elif is_file:
            self.other_files.sort(name)
        else:
            self.dangling.append(name)
            self.mtimes[folder] = NEVER_FRESH  # its target may appear without a trace in this folder


def _coco_lists(source: str, table: Any, reading: ReadingReport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images that have a name, and the annotations of a COCO file; raises LayoutError if no image has a name."""
    entries = table.get("images") if isinstance(table, dict) else None
    images: list[dict[str, Any]] = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name:
            images.append(entry)
        else:
            reading.count("dropped", "images without a file name", f"{os.path.basename(source)} images {number}")
    if not images:
        raise LayoutError(f'{source} is not a COCO file: it has no list "images" with "file_name" entries')
    annotations = table.get("annotations")
    if not isinstance(annotations, list):
        annotations = []
    return images, [annotation for annotation in annotations if isinstance(annotation, dict)]


def _existing(source: str, root: str, entries: list[str], what: str) -> Listing:
    """The entries that are files below the root; `what` is for messages."""
    named = [relative_name(root, entry) for entry in entries]
    names = [name for name in named if os.path.isfile(split_page(os.path.join(root, name))[0])]
    if not names:
        example = f", such as {entries[0]}," if entries else ""
        raise DataError(f"none of the {len(entries)} entries of {source}{example} is a file; looked in {root}")
    reading = ReadingReport()
    for name in set(named).difference(names):
        reading.count("left out", f"{what} that do not exist", name)
    return Listing(root, names, reading)


def _read_text(path: str) -> str:
    if not os.path.isfile(path):
        raise DataError(f"{path} is not a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8") from error


def _extensions(arrays: bool) -> tuple[str, ...]:
    return (*IMAGE_EXTENSIONS, NPY_EXTENSION) if arrays else IMAGE_EXTENSIONS


def _no_images(where: str, other_files: OtherFiles, reading: ReadingReport, arrays: bool) -> str:
    looked_for = " ".join((*readable_formats(), "NPY") if arrays else readable_formats())
    files = "no files"
    if other_files.others:
        counts = Counter(map(file_extension, other_files.others)).most_common(4)
        extensions = ", ".join(f"{count} {extension}" for extension, count in counts)
        files = f"{len(other_files.others)} files, none with an image ending ({extensions})"
    return "; ".join([f"no image in {where}: looked for {looked_for}; found {files}", *reading.lines()])
