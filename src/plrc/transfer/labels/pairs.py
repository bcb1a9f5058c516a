"""Pairs of an image and its label map, by the names of the files."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from plrc.data import layouts
from plrc.data.reading import ReadingReport
from plrc.errors import DataError
from plrc.text import some
from plrc.transfer.labels.annotations import ImageAnnotation
from plrc.transfer.labels.reader import pair_with_id_maps

_SEPARATORS = "_-. "  # of a name and its ending: x_mask, x-sat, x.label
_LETTER = re.compile("[A-Za-z]")


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
    images_of_stem: defaultdict[str, list[str]] = defaultdict(list)  # stem of a map -> images that it fits
    for image in images:
        for stem in {image, _stem(image)}:  # x.jpg.png and x.png are maps of x.jpg
            images_of_stem[stem].append(image)
    image_of_map: dict[str, str] = {}
    for name in maps:
        if _stem(name) in images_of_stem:
            image_of_map[name] = _only_image(images_of_stem[_stem(name)], folder / name)
    if not image_of_map:
        image_ending, map_ending = _common_endings(images, maps, folder)
        if image_ending or map_ending:
            endings = f"{image_ending or 'nothing'} after images and {map_ending or 'nothing'} after label maps"
            reading.add(f"images and label maps are paired by the names before an ending: {endings}")
        for name in maps:
            base = _stem(name).removesuffix(map_ending)
            if _stem(name).endswith(map_ending) and base + image_ending in images_of_stem:
                image_of_map[name] = _only_image(images_of_stem[base + image_ending], folder / name)
    return {name: image_of_map.get(name, name) for name in maps}


def _only_image(images: list[str], label_map: Path) -> str:
    """The only image that a label map fits; raises DataError if there are several."""
    if len(images) > 1:
        raise DataError(
            f"{label_map} fits the images {some(images)}; name a label map like the whole image, {images[0]}.png, or "
            "rename the images"
        )
    return images[0]


def _common_endings(images: Iterable[str], maps: list[str], folder: Path) -> tuple[str, str]:
    """(ending of the images, ending of the maps) that pairs most files; both are empty if none does.

    Of several such endings, the shortest.
    """
    image_endings: defaultdict[str, list[str]] = defaultdict(list)  # name before the ending -> endings
    for image in images:
        for base, ending in _divisions(_stem(image)):
            image_endings[base].append(ending)
    num_pairs = Counter[tuple[str, str]]()
    for name in maps:
        for base, map_ending in _divisions(_stem(name)):
            num_pairs.update((image_ending, map_ending) for image_ending in image_endings.get(base, ()))
    if not num_pairs:
        return "", ""
    most = max(num_pairs.values())
    best = min((endings for endings in num_pairs if num_pairs[endings] == most), key=_by_length)
    # several kinds of maps for the same images, such as _ids and _color
    kinds = [endings[1] for endings in num_pairs if endings[0] == best[0] and num_pairs[endings] > most / 2]
    if len(kinds) > 1:
        raise DataError(
            f"{folder} has several files for each image, which end in {some(sorted(kinds))}; keep the kind that holds "
            "the classes there and move the others away"
        )
    return best


def _by_length(endings: tuple[str, str]) -> tuple[int, int, tuple[str, str]]:
    image_ending, map_ending = endings
    return len(image_ending), len(map_ending), endings


def _divisions(stem: str) -> Iterator[tuple[str, str]]:
    """Each way to divide a stem into a name and an ending; the latter is empty, or a separator and text with a letter.

    The file name before the ending is not empty.
    """
    yield stem, ""
    first = stem.rfind("/") + 2
    for position in range(first, len(stem)):
        ending = stem[position:]
        if ending[0] in _SEPARATORS and _LETTER.search(ending):
            yield stem[:position], ending


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
