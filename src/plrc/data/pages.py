"""Pages of TIFF files as images of their own: page 2 of x.tif is called x.tif#2, page 1 x.tif."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from plrc.data.image_errors import DecodeError
from plrc.data.image_kinds import EXTENSIONS_OF_FORMAT, file_extension
from plrc.data.tiff import full_pages

_PAGE = re.compile(r"(?P<file>.+\.tiff?)#(?P<page>[1-9]\d*)", re.IGNORECASE)


def split_page(name: str) -> tuple[str, int]:
    """Return the file of an image and the number of its page, from 0: x.tif#2 -> (x.tif, 1), x.jpg -> (x.jpg, 0)."""
    match = _PAGE.fullmatch(name)
    return (match["file"], int(match["page"]) - 1) if match else (name, 0)


def names_page(name: str) -> bool:
    """Return whether a name is that of a page."""
    return _PAGE.fullmatch(name) is not None


def all_pages(root: str, names: Iterable[str]) -> list[str]:
    """Return the names of all pages of these files; a TIFF that cannot be read keeps its name alone."""
    pages: list[str] = []
    for name in names:
        pages.append(name)
        if file_extension(name) in EXTENSIONS_OF_FORMAT["TIFF"]:
            pages += [f"{name}#{page}" for page in range(2, _count_pages(os.path.join(root, name)) + 1)]
    return pages


def _count_pages(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return len(full_pages(file))
    except (OSError, DecodeError):  # reported when the image is decoded
        return 1
