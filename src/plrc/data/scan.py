"""Decode every image of a source, report which ones cannot be used and why, and write an index for later runs.

Nothing but the index is written, and the hashes of what the images show, into the user's cache folder.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from plrc.config import DataConfig
from plrc.data.channel_statistics import Moments, channel_moments, statistics_of
from plrc.data.decode import decode_bytes
from plrc.data.hash_files import read_stored_hashes, store_hashes
from plrc.data.image_errors import DecodeError
from plrc.data.image_hash import find_similar, hash_image, unpack_hashes
from plrc.data.image_header import read_header
from plrc.data.index import Index, create_index_file, size_and_change, write_index
from plrc.data.jpeg_damage import find_missing_pixels
from plrc.data.layouts import Listing
from plrc.data.sources import ImageList, detect_layout, find_images, index_settings, list_images, select_images
from plrc.errors import DataError
from plrc.machine import cores
from plrc.pixels import RGB_CHANNELS, PixelStatistics
from plrc.progress import OnProgress, ignore_progress
from plrc.text import aligned, list_failures, printable

_CHUNK = 16  # images per task of a thread
_SHOWN_DUPLICATES = 10
_MOST_COMPARED = 20_000  # images whose hashes are compared with each other, which takes seconds

MinMedianMax = tuple[float, float, float]
"""Smallest value, median, largest value; all 0 if there are no values."""


class ScannedFile(NamedTuple):
    """What is known about one file.

    Attributes:
        name: Relative name.
        size: Bytes.
        changed: Time of the last change of contents or permissions, in ns.
        reason: Why it cannot be used; empty if it can.
        digest: Hash of its contents and of the number of its page; empty if they could not be read.
        height: Pixels after EXIF rotation.
        width: Pixels after EXIF rotation.
        mode: Pixel format in Pillow's terms, such as "RGB".
        format: File format, such as "JPEG".
        moments: Mean and mean square of each channel; None for RGB.
        remarks: What should be known about how it is read.
        hash: What it shows, in hexadecimal digits (`image_hash`); empty if it cannot be used.
    """

    name: str
    size: int
    changed: int
    reason: str
    digest: str = ""
    height: int = 0
    width: int = 0
    mode: str = ""
    format: str = ""
    moments: Moments | None = None
    remarks: tuple[str, ...] = ()
    hash: str = ""


@dataclass(frozen=True)
class ScanReport:
    """The result of `scan`. Sizes, modes and formats are those of the usable images.

    Attributes:
        root: The folder that names are relative to.
        layout: Layout of the source.
        files: Number of files.
        usable: Number of files that can be used.
        excluded: Number of images that `data.exclude` left out.
        unusable: (relative name, reason) of each file that cannot be used.
        width: Pixels.
        height: Pixels.
        megapixels: Millions of pixels.
        modes: Mode -> number of images.
        formats: Format -> number of images.
        duplicates: Groups of files with the same contents.
        similar: Number of images that look almost like another one. Copies are not counted.
        similar_of: Number of images that were compared with each other.
        similar_pairs: The first images that look almost like another one, each with that one.
        notes: What the listing left out, as sentences.
        reading: The same as `ReadingReport.to_dict` returns it.
        index: Path of the index; empty if none was written.
        mean: Mean of each channel of all usable images (`data.mean`); empty for RGB.
        std: Standard deviation of each channel; empty for RGB.
    """

    root: str
    layout: str
    files: int
    usable: int
    excluded: int
    unusable: tuple[tuple[str, str], ...]
    width: MinMedianMax
    height: MinMedianMax
    megapixels: MinMedianMax
    modes: dict[str, int]
    formats: dict[str, int]
    duplicates: tuple[tuple[str, ...], ...]
    similar: int
    similar_of: int
    similar_pairs: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    reading: dict[str, Any]
    index: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return the report as plain text."""
        copies = sum(len(group) - 1 for group in self.duplicates)
        rows = [
            ("source", f"{self.root} ({self.layout})"),
            ("files", f"{self.files}, of which usable {self.usable}, unusable {len(self.unusable)}"),
            ("excluded", str(self.excluded)),
            ("width", _format_range(self.width, ".0f")),
            ("height", _format_range(self.height, ".0f")),
            ("megapixels", _format_range(self.megapixels, ".3g")),
            ("modes", _format_counts(self.modes)),
            ("formats", _format_counts(self.formats)),
            ("duplicates", f"{copies} files repeat the contents of another" if copies else "none"),
            ("similar", f"{self.similar} of {self.similar_of} images look almost like another"),
        ]
        if self.mean:
            rows.append(("data.mean", " ".join(map(str, self.mean))))
            rows.append(("data.std", " ".join(map(str, self.std))))
        rows += [("note", note) for note in self.notes]
        rows += [("unusable", line) for line in list_failures(self.unusable)]
        rows += [("copies", ", ".join(map(printable, group))) for group in self.duplicates[:_SHOWN_DUPLICATES]]
        rows += [("alike", ", ".join(map(printable, pair))) for pair in self.similar_pairs]
        if self.index:
            rows.append(("index", self.index))
        elif self.layout == "shards":
            rows.append(("index", "shards have an index of their own"))
        else:
            rows.append(("index", "not written: neither the source nor the cache folder can be written"))
        return aligned(rows)


def scan(config: DataConfig, workers: int = 0, on_progress: OnProgress = ignore_progress) -> ScanReport:
    """Decode every image of a source, and write the index that `find_images` uses from then on.

    Args:
        config: Settings of the source.
        workers: Number of threads (the decoders release the GIL); 0: one per core.
        on_progress: Called with the number of scanned images and of all images.

    Raises:
        DataError: The source has no images; see `find_images`.
    """
    layout = detect_layout(config)
    if layout == "shards":
        images = find_images(config)
        return _build_report(images, _scan_images(images, config, workers, on_progress), index="")

    select_images(config, layout, list_images(config, layout))  # an unusable source raises before anything is written
    index_path = create_index_file(config.source)  # changes the mtime of its folder, so the images are listed after it
    try:
        listing = list_images(config, layout)
        images = select_images(config, layout, listing)
        files = _scan_images(images, config, workers, on_progress)
    except BaseException:  # KeyboardInterrupt, too
        if index_path is not None and index_path.stat().st_size == 0:
            index_path.unlink()
        raise
    hashes = {file.name: (file.size, file.changed, file.hash) for file in files if file.hash}
    store_hashes(images.root, config.channels, hashes, read_stored_hashes(images.root, config.channels))
    written_index = ""
    if index_path is not None and write_index(index_path, _build_index(config, layout, listing, files)):
        written_index = str(index_path)
    return _build_report(images, files, written_index)


def _scan_images(images: ImageList, config: DataConfig, workers: int, on_progress: OnProgress) -> list[ScannedFile]:
    def scan_chunk(start: int) -> list[ScannedFile]:
        stop = min(start + _CHUNK, len(images))
        return [_scan_image(images, i, config) for i in range(start, stop)]

    files: list[ScannedFile] = []
    with ThreadPoolExecutor(workers or cores()) as pool:
        for scanned in pool.map(scan_chunk, range(0, len(images), _CHUNK)):
            files += scanned
            on_progress(len(files), len(images))
    return files


def _scan_image(images: ImageList, i: int, config: DataConfig) -> ScannedFile:
    name = images.names[i]
    size, changed = size_and_change(images.path(i))
    digest = ""
    try:
        data = images.read(i, config.max_megapixels)
        digest = f"{hashlib.blake2b(data, digest_size=16).hexdigest()} {images.page(i)}"
        header = read_header(io.BytesIO(data), config.channels, images.page(i))
        remarks = header.remarks(config.pages, config.channels)
        image = decode_bytes(
            data,
            percentiles=config.rescale_percentiles,
            max_megapixels=config.max_megapixels,
            channels=config.channels,
            page=images.page(i),
            remarks=remarks,
        )
    except DecodeError as error:
        return ScannedFile(name, size, changed, error.reason, digest)
    if header.format in ("JPEG", "MPO"):
        damage = find_missing_pixels(data, image)
        if damage:
            return ScannedFile(name, size, changed, damage, digest)
    moments = channel_moments(image) if config.channels != RGB_CHANNELS else None
    return ScannedFile(
        name=name,
        size=size,
        changed=changed,
        reason="",
        digest=digest,
        height=image.shape[1],
        width=image.shape[2],
        mode=header.mode,
        format=header.format,
        moments=moments,
        remarks=tuple(remarks),
        hash=hash_image(image).tobytes().hex(),
    )


def _build_index(config: DataConfig, layout: str, listing: Listing, files: list[ScannedFile]) -> Index:
    settings = index_settings(config)
    bad = {file.name: (file.size, file.changed, file.reason) for file in files if file.reason}
    if layout == "folder":
        return Index(layout, listing.folders, listing.names, listing.reading, bad, settings)
    return Index(layout, bad=bad, settings=settings)


def _build_report(images: ImageList, files: list[ScannedFile], index: str) -> ScanReport:
    good = [file for file in files if not file.reason]
    for file in good:
        for remark in file.remarks:
            images.reading.count("read", remark, file.name)
    moments = [file.moments for file in good if file.moments is not None]
    notes = images.notes
    pixels: PixelStatistics | None = None
    if moments:
        try:
            pixels = statistics_of(moments)
        except DataError as error:  # a channel has a single value
            notes = (*notes, str(error))
    compared = _spread_over({file.digest: file for file in good}.values())
    similar = find_similar([file.name for file in compared], unpack_hashes(file.hash for file in compared))
    return ScanReport(
        root=images.root,
        layout=images.layout,
        files=len(files),
        usable=len(good),
        excluded=images.excluded,
        unusable=tuple((file.name, file.reason) for file in files if file.reason),
        width=_min_median_max([file.width for file in good]),
        height=_min_median_max([file.height for file in good]),
        megapixels=_min_median_max([file.width * file.height / 1e6 for file in good]),
        modes=dict(Counter(file.mode for file in good).most_common()),
        formats=dict(Counter(file.format for file in good).most_common()),
        duplicates=_find_duplicates(files),
        similar=len(similar),
        similar_of=len(compared),
        similar_pairs=_unordered_pairs(similar)[:_SHOWN_DUPLICATES],
        notes=notes,
        reading=images.reading.to_dict(),
        index=index,
        mean=pixels.mean if pixels is not None else (),
        std=pixels.std if pixels is not None else (),
    )


def _unordered_pairs(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Each pair once: two images are often the most similar ones of each other."""
    unique: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        unique.setdefault(frozenset(pair), pair)
    return tuple(unique.values())


def _find_duplicates(files: list[ScannedFile]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        if file.digest:
            groups[file.digest].append(file.name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _spread_over(files: Collection[ScannedFile]) -> list[ScannedFile]:
    """All of the files, or _MOST_COMPARED evenly spaced ones."""
    every = list(files)
    count = min(len(every), _MOST_COMPARED)
    return [every[i * len(every) // count] for i in range(count)]


def _min_median_max(values: list[float] | list[int]) -> MinMedianMax:
    array = np.array(values, dtype=np.float64)
    if array.size == 0:
        return (0.0, 0.0, 0.0)
    return (float(array.min()), float(np.median(array)), float(array.max()))


def _format_range(values: MinMedianMax, spec: str) -> str:
    smallest, median, largest = values
    return f"{smallest:{spec}} to {largest:{spec}}, median {median:{spec}}"


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
