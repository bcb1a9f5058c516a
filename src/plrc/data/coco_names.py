"""The image files that a COCO file names: with "/" or Windows separators, as URLs, with folders of another place."""

from __future__ import annotations

import ntpath
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from plrc.data.reading import ReadingReport

_SAMPLE = 200  # names that are looked for in each candidate folder
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a drive such as C:/ has a single letter
_DRIVE = re.compile(r"[A-Za-z]:|//")  # C: or //host/share
_LOCAL_FILES = "/data/local-files/?d="  # Label Studio's address of a file of its own storage
_FOLDERS = ("", "images", "data")


@dataclass(frozen=True)
class Places:
    """Where the images of a COCO file lie.

    Attributes:
        paths: `file_name` as written -> path of the file; if no spelling of it exists, where it would be.
        root: The folder that has the images whose names are relative; without such names, the other ones.
        folders: The folders that were searched.
    """

    paths: dict[str, str]
    root: str
    folders: tuple[str, ...]

    def missing(self) -> list[str]:
        """Return the names whose file does not exist."""
        return [name for name, path in self.paths.items() if not os.path.isfile(path)]

    def describe_failure(self, source: str) -> str:
        """Return the sentence for a COCO file of which no image exists."""
        example = f", such as {next(iter(self.paths))}," if self.paths else ""
        folders = ", ".join(self.folders)
        return f"none of the {len(self.paths)} images of {source}{example} is a file; looked in {folders}"


def plain_name(file_name: str) -> str:
    """Return a `file_name` as a path with "/": without drive, host and query, URL escapes resolved, "." left out."""
    name = file_name.strip()
    if _LOCAL_FILES in name:
        name = name.partition(_LOCAL_FILES)[2].partition("&")[0]
    elif _URL.match(name):
        name = _url_path(name)
    name = unquote(name).replace("\\", "/")
    if _DRIVE.match(name):
        name = ntpath.splitdrive(name)[1]
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts) if name.startswith("/") else "/".join(parts)


def split_of_file(path: str) -> str:
    """Return the split that the name of a COCO file states: train2017 for instances_train2017.json."""
    return os.path.splitext(os.path.basename(path))[0].rpartition("_")[2]


def image_folders(path: str, split: str, root: str = "") -> list[str]:
    """List the folders in which the images of a COCO file may lie, the closest first.

    Args:
        path: The COCO file.
        split: Name of its split.
        root: Folders outside of this one are left out; empty: the parent of the file's folder.
    """
    here = os.path.dirname(os.path.abspath(path))
    root = os.path.abspath(root) if root else os.path.dirname(here)
    bases = [base for base in (here, os.path.dirname(here)) if os.path.commonpath([base, root]) == root]
    inner_folders: list[str] = []
    for name in _FOLDERS:
        inner_folders += [os.path.join(split, name), os.path.join(name, split)]
    inner_folders += _FOLDERS
    folders = [os.path.join(here, name) for name in _FOLDERS]
    for inner in inner_folders:
        folders += [os.path.join(base, inner) for base in bases]
    return list(dict.fromkeys(os.path.normpath(folder) for folder in folders))


def find_images(file_names: Iterable[str], folders: Sequence[str]) -> Places:
    """Find the files of the images that a COCO file names.

    A file of the name as written is taken first, then that of its plain name. Leading folders that all names share,
    such as those of the computer where the file was written, are left out if the files lie without them. All names with
    a full path, and all relative ones, lie in one of the folders, the one that has most of them.

    Args:
        file_names: The names as written.
        folders: Where to look.
    """
    plain_names = {name: plain_name(name) for name in file_names}
    full = {name: plain for name, plain in plain_names.items() if plain.startswith("/")}
    relative = {name: plain for name, plain in plain_names.items() if not plain.startswith("/")}
    root_of_full, paths_of_full = _find_folder(full, folders)
    root_of_relative, paths_of_relative = _find_folder(relative, folders)
    paths = paths_of_full | paths_of_relative
    root = root_of_relative if relative else root_of_full
    return Places({name: paths[name] for name in plain_names}, root, tuple(folders))


def names_by_ending(file_names: Iterable[str]) -> dict[str, str]:
    """Return what the path of an image of a COCO file may end with -> its `file_name` as written.

    That is the plain name, and for full paths and URLs also the plain name without leading folders that all share.
    """
    plain_names = {name: plain_name(name) for name in file_names}
    num_shared = _count_shared_folders([plain for plain in plain_names.values() if plain.startswith("/")])
    endings: dict[str, str] = {}
    for name, plain in plain_names.items():
        most_skipped = num_shared if plain.startswith("/") else 0
        for skipped in range(most_skipped + 1):
            endings[_without_folders(plain, skipped)] = name
    return endings


def count_spellings(places: Places, reading: ReadingReport) -> None:
    """Count the images whose file has another name than the one written."""
    for name, path in places.paths.items():
        end = os.path.normpath(name).replace(os.sep, "/")
        as_written = f"/{path.replace(os.sep, '/')}".endswith(f"/{end.lstrip('/')}")
        if not as_written and os.path.isfile(path):
            reading.count(
                "repaired", "image names with Windows separators, URL escapes or folders of another place", name
            )


def _url_path(name: str) -> str:
    try:
        return urlsplit(name).path
    except ValueError:  # such as an open bracket in the host
        return name


def _find_folder(plain_names: dict[str, str], folders: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The folder in which most files of these names lie, and the path of each name there.

    Of several such folders, the first; of several numbers of skipped leading folders, the smallest.

    Args:
        plain_names: Name as written -> plain name.
        folders: Where to look.
    """
    names = list(plain_names)
    sample = names[:: max(1, len(names) // _SAMPLE)]
    best_folder = folders[0]
    best_skipped = 0
    most = 0
    for skipped in range(_count_shared_folders(list(plain_names.values())) + 1):
        for folder in folders:
            num_files = sum(os.path.isfile(_path(folder, name, plain_names[name], skipped)) for name in sample)
            if num_files > most:
                best_folder = folder
                best_skipped = skipped
                most = num_files
        if most == len(sample):
            break
    paths = {name: _path(best_folder, name, plain, best_skipped) for name, plain in plain_names.items()}
    return best_folder, paths


def _count_shared_folders(plain_names: list[str]) -> int:
    """The number of leading folders that all names have in common."""
    folders = [name.lstrip("/").split("/")[:-1] for name in plain_names]
    shared = 0
    for names_at_depth in zip(*folders, strict=False):
        if len(set(names_at_depth)) > 1:
            break
        shared += 1
    return shared


def _path(folder: str, name: str, plain: str, skipped: int) -> str:
    """Where the file of a name is, or would be.

    That is the name as written or as a full path, if it is a file; else the plain name in the folder, without its first
    `skipped` folders. If folders are skipped, only the latter counts.
    """
    if not skipped:
        as_written = os.path.join(folder, name)
        if os.path.isfile(as_written):
            return as_written
        if plain.startswith("/") and os.path.isfile(plain):
            return plain
    return os.path.join(folder, *_without_folders(plain, skipped).split("/"))


def _without_folders(plain: str, skipped: int) -> str:
    """A plain name without the "/" at its start and its first folders."""
    return "/".join(plain.lstrip("/").split("/")[skipped:])
