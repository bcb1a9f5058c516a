"""Where images and label files lie: the paths that data.yaml and lists name, which may be of another machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from plrc.data.layouts import read_lines
from plrc.transfer.labels.contents import files_below, folder_named

_NO_LABELS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "validation.txt", "test.txt")
_SHOWN = 3  # replaced paths that are reported


@dataclass
class Locator:
    """Finds files and folders by the paths that a data set names.

    A path is tried below several folders without its leading "../", then with it, and then below `root` without more
    and more of its first folders, which finds the data of another machine. A folder that contains `root` is no answer.

    Attributes:
        root: The folder that is read.
        base: The folder that `path` of data.yaml names; it need not exist.
        replaced: The first paths that lie elsewhere than they say -> path relative to `root`, for the report.
    """

    root: Path
    base: Path
    replaced: dict[str, str] = field(default_factory=dict)

    def locate(self, name: str, start: Path | None = None) -> Path | None:
        """Return the file or folder of a path; None if there is none.

        Args:
            name: The path, with "/" as separator.
            start: A folder that is tried first: that of the list which names the path.
        """
        folders = [folder for folder in (start, self.base, self.root) if folder is not None]
        parts = [part for part in name.split("/") if part not in ("", ".")]
        while parts and parts[0] == "..":
            parts.pop(0)
        inside = "/".join(parts)
        places = [folder / name for folder in folders]
        if not os.path.isabs(name):
            places = [folder / inside for folder in folders] + places
        for place in places:
            if self._fits(place):
                return Path(os.path.normpath(place))
        for dropped in range(1, len(parts)):
            tail = "/".join(parts[dropped:])
            if ".." not in parts and self._fits(self.root / tail):
                if len(self.replaced) < _SHOWN:
                    self.replaced[name] = tail
                return self.root / tail
        return None

    def _fits(self, place: Path) -> bool:
        if os.path.isfile(place):
            return True
        if not os.path.isdir(place):
            return False
        folder = os.path.realpath(place)
        root = os.path.realpath(self.root)
        return folder == root or os.path.commonpath([root, folder]) != folder


def label_folder(images: Path) -> Path:
    """Return the path with `labels` in place of its last folder `images`; if that is no folder, the images' own."""
    for folder in (images, *images.parents):
        if folder.name.lower() != "images":
            continue
        labels = folder_named(folder.parent, "labels")
        if labels is not None and (labels / images.relative_to(folder)).is_dir():
            return labels / images.relative_to(folder)
    return images


def may_hold_labels(name: str) -> bool:
    """Return whether a .txt file may be one of labels, by its name."""
    base = name.rpartition("/")[2].lower()
    return base not in _NO_LABELS and not base.startswith("readme")


def has_label_file(place: Path, locator: Locator) -> bool:
    """Return whether any image of a place has a label file.

    Args:
        place: A folder of images, or a text file that lists images.
        locator: Finds the paths that lists name.
    """
    if place.is_dir():
        return any(map(may_hold_labels, files_below(label_folder(place), ".txt")))
    for line in read_lines(str(place), lambda _: True):
        image = locator.locate(as_path(line), place.parent)
        if image is None:
            continue
        stem = label_folder(image.parent) / image.stem
        if any(Path(f"{stem}{ending}").is_file() for ending in (".txt", ".TXT")):
            return True
    return False


def as_path(text: str) -> str:
    """Return a path as it is written in data.yaml or a list, with "/" as separator."""
    return text.strip().replace("\\", "/")
