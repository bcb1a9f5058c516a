"""Pairs of an image and its label map, by the names of the files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from plrc.data import layouts
from plrc.data.reading import ReadingReport
from plrc.errors import DataError
from plrc.text import some
from plrc.transfer.labels.annotations import ImageAnnotation
from plrc.transfer.labels.reader import pair_with_id_maps

_TAIL = re.compile(r"[_\-. ][^/]*[A-Za-z][^/]*$")  # what may follow the common part of two names: _mask, -sat, .label


def pair_folders(root: Path, images: Path, maps: Path, reading: ReadingReport, channels: int) -> list[ImageAnnotation]:
    """Pair the images below a folder with the label maps below another.

    The map of a/x.jpg is a/x.png or a/x.jpg.png. If no map is named so, all maps may have a common ending, and all
    images another: a/x_mask.png, or x_sat.jpg and x_mask.png.

    Args:
        root: The source; images are named relative to it.
        images: The folder of images.
        maps: The folder of label maps.
        reading: Counts what has no partner and is dropped, and receives endings.
        channels: Channels that the images must have (`data.channels`).

    Raises:
        DataError: A folder without images, or names that fit several partners.
    """
    image_listing = layouts.list_folder(str(images))
    map_listing = layouts.list_folder(str(maps))
    reading.extend(image_listing.reading)
    reading.extend(map_listing.reading)
    image_of_key = {name: images / name for name in sorted(image_listing.names)}
    map_of_key: dict[str, Path] = {}
    for name, key in _keys_of_maps(image_of_key, sorted(map_listing.names), maps, reading).items():
        if key in map_of_key:
            raise DataError(f"{map_of_key[key]} and {maps / name} are both label maps of {key}; remove one of them")
        map_of_key[key] = maps / name
    return pair_with_id_maps(root, image_of_key, map_of_key, reading, channels)


def _keys_of_maps(images: Iterable[str], maps: list[str], folder: Path, reading: ReadingReport) -> dict[str, str]:
    """Map -> its image; a map without an image is its own key."""
    owners: dict[str, list[str]] = {}
    for image in images:
        owners.setdefault(image, []).append(image)  # x.jpg.png is the map of x.jpg
        owners.setdefault(_stem(image), []).append(image)
    keys = {name: _only_owner(owners[_stem(name)], folder / name) for name in maps if _stem(name) in owners}
    if keys:
        return {name: keys.get(name, name) for name in maps}
    image_end, map_end = _common_endings(images, maps, folder)
    if map_end or image_end:
        ends = f"{image_end or 'nothing'} after images and {map_end or 'nothing'} after label maps"
        reading.add(f"images and label maps are paired by the names before an ending: {ends}")
        for name in maps:
            stem = _stem(name)
            base = stem.removesuffix(map_end) + image_end
            if stem.endswith(map_end) and base in owners:
                keys[name] = _only_owner(owners[base], folder / name)
    return {name: keys.get(name, name) for name in maps}


def _only_owner(images: list[str], id_map: Path) -> str:
    if len(images) > 1:
        raise DataError(
            f"{id_map} fits the images {some(images)}; name a label map like the whole image, {images[0]}.png, or "
            "rename the images"
        )
    return images[0]


def _common_endings(images: Iterable[str], maps: list[str], folder: Path) -> tuple[str, str]:
    """(ending of the images, ending of the maps) that pairs most files; empty if none does."""
    tails: dict[str, list[str]] = {}
    for image in images:
        for base, tail in _splits(_stem(image)):
            tails.setdefault(base, []).append(tail)
    pairs = Counter[tuple[str, str]]()
    for name in maps:
        for base, tail in _splits(_stem(name)):
            pairs.update((image_tail, tail) for image_tail in tails.get(base, ()))
    if not pairs:
        return "", ""
    most = max(pairs.values())
    best = min((pair for pair in pairs if pairs[pair] == most), key=lambda pair: (len(pair[0]), len(pair[1]), pair))
    kinds = [tail for (image_tail, tail), count in pairs.items() if image_tail == best[0] and 2 * count > most]
    if len(kinds) > 1:
        raise DataError(
            f"{folder} has several files for each image, which end in {some(sorted(kinds))}; keep the kind that holds "
            "the classes there and move the others away"
        )
    return best


def _splits(stem: str) -> Iterator[tuple[str, str]]:
    """(name, ending) in each way; the ending starts with a separator and has a letter, or is empty."""
    yield stem, ""
    for match in re.finditer(r"[_\-. ]", stem):
        if match.start() > stem.rfind("/") + 1 and _TAIL.match(stem, match.start()):
            yield stem[: match.start()], stem[match.start() :]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
