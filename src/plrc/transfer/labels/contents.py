"""What a folder of labels contains: a bounded survey for recognizing its layout, and all files of an ending."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from plrc.data.image_kinds import IMAGE_EXTENSIONS, file_extension
from plrc.text import printable, some

_DEPTH = 3  # levels of folders that a survey enters
_MOST_FOLDERS = 300
_MOST_FILES = 20_000  # of each folder
_MOST_NAMED = 8  # folders and endings that a message names


@dataclass(frozen=True)
class Contents:
    """The first levels of a folder.

    Attributes:
        root: The folder.
        files: Folder relative to the root ("" is the root itself) -> names of its files, at most 20,000 of each folder.
    """

    root: Path
    files: dict[str, list[str]]

    def find(self, *folders: str) -> list[str]:
        """Return the folders of these names, which are compared without regard to case."""
        wanted = [folder.lower() for folder in folders]
        return [folder for folder in self.files if folder.lower() in wanted]

    def below(self, folder: str) -> list[str]:
        """Return a folder and the surveyed folders below it."""
        return [other for other in self.files if other == folder or other.startswith(f"{folder}/")]

    def named(self, folder: str, *endings: str) -> list[str]:
        """Return the files of a folder with one of these endings, relative to the root, in the order of their names."""
        prefix = f"{folder}/" if folder else ""
        return [prefix + name for name in sorted(self.files[folder]) if name.lower().endswith(endings)]

    def named_in(self, folders: Iterable[str], *endings: str) -> list[str]:
        """Return the files of several folders with one of these endings, as `named` does."""
        names: list[str] = []
        for folder in folders:
            names += self.named(folder, *endings)
        return names

    def images(self, folder: str) -> list[str]:
        """Return the image files of a folder, relative to the root."""
        return self.named(folder, *IMAGE_EXTENSIONS)

    @property
    def has_images(self) -> bool:
        """Whether any of the folders has an image file."""
        return any(self.images(folder) for folder in self.files)

    def describe(self) -> str:
        """Return what a message says about the folder, such as "the folders a, b and 14 .jpg, 2 .txt"."""
        folders = sorted(printable(folder) for folder in self.files if folder)
        counts = Counter(file_extension(name) for names in self.files.values() for name in names)
        endings = [f"{count} {printable(ending)}" for ending, count in counts.most_common()]
        described = f"the folders {some(folders, _MOST_NAMED)}" if folders else "no folders"
        return f"{described} and {some(endings, _MOST_NAMED) or 'no files'}"


def survey(root: Path) -> Contents:
    """Look at the first levels of a folder."""
    return Contents(root, {folder: list(islice(names, _MOST_FILES)) for folder, names in _walk(root, _DEPTH)})


def files_below(root: Path, ending: str) -> list[str]:
    """List all files below a folder with an ending, which is compared without regard to case.

    Args:
        root: The folder; without it, there are no files.
        ending: In lower case, such as ".xml".

    Returns:
        Their sorted names relative to the folder, with "/" as separator.
    """
    names = []
    for folder, files in _walk(root, depth=None):
        prefix = f"{folder}/" if folder else ""
        names += [prefix + name for name in files if name.lower().endswith(ending)]
    return sorted(names)


def read_start(path: Path, size: int) -> bytes:
    """Read at most `size` bytes from the start of a file; nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""


def folder_named(parent: Path, *names: str) -> Path | None:
    """Return the folder in `parent` with the first of these names that exists, compared without regard to case."""
    if not parent.is_dir():
        return None
    folders = {entry.name.lower(): entry for entry in sorted(parent.iterdir(), reverse=True) if entry.is_dir()}
    for name in names:
        if (parent / name).is_dir():
            return parent / name
        if name.lower() in folders:
            return folders[name.lower()]
    return None


def _walk(root: Path, depth: int | None) -> Iterator[tuple[str, Iterator[str]]]:
    """(folder relative to the root, names of its files), without hidden ones; each folder once, also with links.

    With a depth, no more than `_MOST_FOLDERS` folders are entered.
    """
    waiting = deque([""])
    visited: set[tuple[int, int]] = set()
    while waiting:
        folder = waiting.popleft()
        try:
            status = os.stat(root / folder)
            with os.scandir(root / folder) as scan:
                entries = [entry for entry in scan if not entry.name.startswith(".")]
        except OSError:
            continue
        key = (status.st_dev, status.st_ino)
        if key in visited:
            continue
        visited.add(key)
        if depth is not None and len(visited) > _MOST_FOLDERS:
            return
        inner_folders = {entry.name for entry in entries if entry.is_dir()}
        if depth is None or len(Path(folder).parts) < depth:
            prefix = f"{folder}/" if folder else ""
            waiting += [prefix + name for name in sorted(inner_folders)]
        yield folder, (entry.name for entry in entries if entry.name not in inner_folders)
