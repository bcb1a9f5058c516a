"""Groups of images that belong together: frames of a video, tiles of a scene, images of a patient.

A split that is drawn at random never parts a group, so what is measured on one part was not seen in the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from plrc import rng
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError

FOLDER = "folder"
"""Value of `data.group`: the images of a folder are a group."""


def group_names(names: Sequence[str], group: str, reading: ReadingReport) -> list[str]:
    """Return the group of each image.

    Args:
        names: Relative paths with "/" as separator.
        group: "folder", or a regular expression that is searched in the path: its first group, or the whole match if it
            has none, is the name of the group. Images that do not match are groups of their own. Empty: every image is
            a group of its own.
        reading: Receives the number of groups, and the images that do not match.

    Returns:
        The name of the group of each image.

    Raises:
        ConfigError: The pattern matches none of the images.
    """
    if not group:
        return list(names)
    if group == FOLDER:
        groups = [name.rpartition("/")[0] for name in names]
        unmatched: list[str] = []
    else:
        groups, unmatched = _match(names, group)
        if unmatched and len(unmatched) == len(names):
            raise ConfigError(f"data.group = {group} matches none of the {len(names)} images, such as {names[0]}")
    joins_none = ", so no images belong together" if len(set(groups)) == len(names) else ""
    reading.add(f"data.group = {group}: {len(set(groups))} groups of {len(names)} images{joins_none}")
    for name in unmatched:
        reading.count("read", "images that data.group does not match, each a group of its own", name)
    return groups


def require_two_groups(groups: Sequence[str], names: Sequence[str], group: str) -> None:
    """Raise ConfigError if all images are in one group.

    Args:
        groups: The group of each image.
        names: The images.
        group: The setting `data.group`, for the message.
    """
    if len(names) > 1 and len(set(groups)) == 1:
        raise ConfigError(
            f"data.group = {group} puts all {len(names)} images into one group, so none can be held out; write a "
            f"pattern that tells groups apart in names such as {names[0]}"
        )


def draw_held_out(groups: Sequence[str], wanted: int, at_most: int, seed: int) -> np.ndarray:
    """Draw whole groups of images, about as many images as wanted.

    In random order, each group is taken that brings the number of images nearer to the wanted one. If none does, the
    smallest group is taken.

    Args:
        groups: The group of each image.
        wanted: Number of images.
        at_most: Largest number of images.
        seed: Seed of the draw.

    Returns:
        Sorted positions of the drawn images; empty if even the smallest group has more than `at_most`.
    """
    number_of: dict[str, int] = {}
    numbers = np.array([number_of.setdefault(group, len(number_of)) for group in groups], dtype=np.int64)
    sizes = np.bincount(numbers)
    order = rng.generator(seed, "held_out").permutation(len(sizes))
    drawn: list[int] = []
    total = 0
    for group in order.tolist():
        if total >= wanted:
            break
        larger = total + int(sizes[group])
        if larger <= at_most and abs(larger - wanted) < wanted - total:
            drawn.append(group)
            total = larger
    if not drawn and wanted > 0:
        smallest = int(order[np.argmin(sizes[order])])
        if sizes[smallest] <= at_most:
            drawn.append(smallest)
    return np.flatnonzero(np.isin(numbers, drawn))


def _match(names: Sequence[str], pattern: str) -> tuple[list[str], list[str]]:
    """Return the group of each image, and the images that do not match."""
    expression = re.compile(pattern)
    groups: list[str] = []
    unmatched: list[str] = []
    for name in names:
        match = expression.search(name)
        key = None
        if match is not None:
            key = match.group(1) if expression.groups else match.group()
        if not key:  # the pattern, or its first group, matches nothing or an empty text
            unmatched.append(name)
            key = f"/{name}"  # no match equals it, because it is longer than what the pattern saw
        groups.append(key)
    return groups, unmatched
