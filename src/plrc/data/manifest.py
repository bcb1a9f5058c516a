"""The manifest of a run: which images it was trained on, so that nobody has to wonder later.

Layer 1: imports config, files and this folder's shards and sources. Asks the file system for sizes; opens no image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plrc.data.shards import reopen
from plrc.data.sources import ImageList
from plrc.errors import PlrcError
from plrc.files import parse_json, write_text

KEYS = ("version", "root", "layout", "counts", "sha256", "notes", "train", "held_out")


def build_manifest(images: ImageList, train: Sequence[int], held_out: Sequence[int]) -> dict[str, Any]:
    """What `write_manifest` writes: KEYS, with `train` and `held_out` as {relative name: bytes} (-1: the file is gone).

    `sha256` covers the names and sizes of both, and nothing else: it changes with the images, not when they are moved.
    """
    sizes = {"train": _sizes(images, train), "held_out": _sizes(images, held_out)}
    return {
        "version": 1,
        "root": images.root,
        "layout": images.layout,
        "counts": {"images": len(images), "excluded": images.excluded, "train": len(train), "held_out": len(held_out)},
        "sha256": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
        "notes": list(images.notes),
        **sizes,
    }


def write_manifest(
    path: str | os.PathLike[str], images: ImageList, train: Sequence[int], held_out: Sequence[int]
) -> None:
    """Write the manifest of a run as JSON; the file appears whole or not at all."""
    text = json.dumps(build_manifest(images, train, held_out), separators=(",\n", ": "))
    write_text(Path(path), text)


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest that `write_manifest` wrote. Raises PlrcError where there is none or it is damaged."""
    try:
        manifest = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlrcError(f"cannot read the manifest {path}: {error.strerror}") from error
    except ValueError as error:
        raise PlrcError(f"the manifest {path} is damaged ({error}); take it from a copy of the run folder") from error
    if not isinstance(manifest, dict) or any(key not in manifest for key in KEYS):
        raise PlrcError(f"{path} is not the manifest of a run; it must hold {', '.join(KEYS)}")
    return manifest


def images_of(manifest: dict[str, Any]) -> tuple[ImageList, np.ndarray, np.ndarray]:
    """(images, train, held out) of a run as its manifest has them; the last two are sorted positions."""
    names = tuple(sorted((*manifest["train"], *manifest["held_out"])))
    held_out = np.array([name in manifest["held_out"] for name in names], dtype=bool)
    shards = reopen(manifest["root"], names) if manifest["layout"] == "shards" else None
    images = ImageList(
        manifest["root"], names, manifest["layout"], manifest["counts"]["excluded"], tuple(manifest["notes"]), shards
    )
    return images, np.flatnonzero(~held_out), np.flatnonzero(held_out)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What tells two manifests apart, in words. A file that is gone is no difference, only an unreadable image."""
    sizes = [(name, before[part], now[part]) for part in ("train", "held_out") for name in before[part] | now[part]]
    if any(name not in old or name not in new for name, old, new in sizes):
        return ["the images are not those of manifest.json"]
    changed = [(name, old[name], new[name]) for name, old, new in sizes if -1 != old[name] != new[name] != -1]
    return [
        f"{name} had {old} bytes in manifest.json, now {new} ({len(changed)} images have changed)"
        for name, old, new in changed[:1]
    ]


def _sizes(images: ImageList, positions: Sequence[int]) -> dict[str, int]:
    return {images.names[i]: images.size(i) for i in positions}
