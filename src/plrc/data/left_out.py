"""Files of a folder that are not named like images: which are images all the same, and why the others are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from plrc.data.image_kinds import (
    HEIC_EXTENSIONS,
    HEIC_PACKAGE,
    NO_IMAGE_EXTENSIONS,
    NO_IMAGE_NAMES,
    OTHER_IMAGE_EXTENSIONS,
    RAW_EXTENSIONS,
    VIDEO_EXTENSIONS,
    file_extension,
    format_of_file,
    readable_formats,
)
from plrc.data.pages import names_page
from plrc.data.reading import ReadingReport

BY_CONTENTS = "images without a usual ending, recognized by their contents"
_REASONS = (
    (HEIC_EXTENSIONS, "HEIC photos ({ending}), to be read after pip install " + HEIC_PACKAGE),
    (VIDEO_EXTENSIONS, "videos ({ending}), whose frames can be read once they are extracted"),
    (RAW_EXTENSIONS, "raw files of cameras ({ending}), to be converted to TIFF or PNG"),
    (OTHER_IMAGE_EXTENSIONS, "images of a kind that is not read ({ending}), to be converted to PNG or TIFF"),
)


class OtherFiles:
    """Sorts files that are not named like images, and counts those that are left out.

    Only files without an ending or of an unknown one are opened; their first bytes decide.

    Args:
        root: The folder that names are relative to.

    Attributes:
        images: Files that are images by their contents.
        others: All other files.
        no_images: Ending or name -> number of the files that are certainly no images.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.images: list[str] = []
        self.others: list[str] = []
        self._reasons: list[tuple[str, str]] = []  # (reason, name)
        self.no_images: Counter[str] = Counter()

    def sort(self, name: str) -> None:
        """Sort a file in.

        Args:
            name: Its path, relative to the root.
        """
        ending = file_extension(name)
        base = os.path.basename(name).lower()
        if names_page(name):
            self._leave_out(name, "files that are named like a page of a TIFF")
            return
        if ending in NO_IMAGE_EXTENSIONS or base in NO_IMAGE_NAMES:
            self.others.append(name)
            self.no_images[ending if ending in NO_IMAGE_EXTENSIONS else base] += 1
            return
        for endings, reason in _REASONS:
            if ending in endings:
                self._leave_out(name, reason.format(ending=ending))
                return
        kind = format_of_file(os.path.join(self.root, name))
        if kind in readable_formats():
            self.images.append(name)
        elif kind:
            self._leave_out(name, _REASONS[0][1].format(ending=ending))
        else:
            self._leave_out(name, f"files that are no images by their contents ({ending})")

    def report(self) -> ReadingReport:
        """Return what was counted, without the files that are certainly no images."""
        report = ReadingReport()
        for name in self.images:
            report.count("read", BY_CONTENTS, name)
        for reason, name in sorted(self._reasons):  # a folder is listed in no particular order
            report.count("left out", reason, name)
        return report

    def _leave_out(self, name: str, reason: str) -> None:
        self.others.append(name)
        self._reasons.append((reason, name))


def describe_no_images(counts: Mapping[str, int]) -> list[str]:
    """Return a sentence that counts files that are no images by their ending, or none if there are no such files."""
    if not counts:
        return []
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ["files that are no images: " + ", ".join(f"{count} {ending}" for ending, count in most_first)]
