"""The manifest of a run: which images it was trained on.

Sizes are read from the file system; no image is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plrc.data.reading import ReadingReport
from plrc.data.shards import reopen_shards
from plrc.data.sources import ImageList
from plrc.errors import DataError
from plrc.files import parse_json, write_text

KEYS = ("version", "root", "layout", "counts", "sha256", "notes", "train", "held_out")


def build_manifest(images: ImageList, train: Sequence[int], held_out: Sequence[int]) -> dict[str, Any]:
    """Build the manifest of a run.

    Args:
        images: All images.
        train: Positions of the training images.
        held_out: Positions of the images held out for the health report.

    Returns:
        KEYS and "reading" -> values. `train` and `held_out` are {relative name: bytes}, -1 for a missing file. `sha256`
        covers the names and sizes of both and nothing else: it changes with the images, not when they are moved.
    """
    sizes = {"train": _sizes(images, train), "held_out": _sizes(images, held_out)}
    return {
        "version": 1,
        "root": images.root,
        "layout": images.layout,
        "counts": {"images": len(images), "excluded": images.excluded, "train": len(train), "held_out": len(held_out)},
        "sha256": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
        "notes": list(images.notes),
        "reading": images.reading.to_dict(),
        **sizes,
    }


def write_manifest(
    path: str | os.PathLike[str], images: ImageList, train: Sequence[int], held_out: Sequence[int]
) -> None:
    """Write the manifest of a run as JSON (see `build_manifest`); the file appears whole or not at all."""
    text = json.dumps(build_manifest(images, train, held_out), separators=(",\n", ": "))
    write_text(Path(path), text)


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest that `write_manifest` wrote. Raises DataError if it is missing or damaged."""
    try:
        manifest = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"the manifest {path} is damaged ({error}); take it from a copy of the run folder") from error
    if not isinstance(manifest, dict) or any(key not in manifest for key in KEYS):
        raise DataError(f"{path} is not the manifest of a run; it must hold {', '.join(KEYS)}")
    return manifest


def images_from_manifest(manifest: dict[str, Any]) -> tuple[ImageList, np.ndarray, np.ndarray]:
    """Return the images of a run, and the sorted positions of its training images and its held-out images."""
    names = tuple(sorted((*manifest["train"], *manifest["held_out"])))
    is_held_out = np.array([name in manifest["held_out"] for name in names], dtype=bool)
    reading = ReadingReport()
    reading.add(*manifest["notes"])
    images = ImageList(
        root=manifest["root"],
        names=names,
        layout=manifest["layout"],
        excluded=manifest["counts"]["excluded"],
        reading=reading,
        shards=reopen_shards(manifest["root"], names) if manifest["layout"] == "shards" else None,
    )
    return images, np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def compare_manifests(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe how two manifests differ, in at most one sentence.

    A file that is missing now is not a difference, only an unreadable image.
    """
    changed: list[str] = []
    for part in ("train", "held_out"):
        old = before[part]
        new = now[part]
        if old.keys() != new.keys():
            return ["the images are not those of manifest.json"]
        for name, size in old.items():
            if new[name] != size and -1 not in (size, new[name]):
                changed.append(f"{name} had {size} bytes in manifest.json, now {new[name]}")
    return [f"{changed[0]} ({len(changed)} images have changed)"] if changed else []


def _sizes(images: ImageList, positions: Sequence[int]) -> dict[str, int]:
    return {images.names[i]: images.file_size(i) for i in positions}
