"""Warnings about images that are in two splits in all but name: members of one group, and near-duplicates.

Scores of such images say little about new images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.data.hash_files import hash_files
from plrc.data.image_hash import Hashes, find_similar
from plrc.data.manifest import images_from_manifest, read_manifest
from plrc.data.sources import ImageList
from plrc.errors import DataError
from plrc.text import printable
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.splits import Splits
from plrc.transfer.protocols import LabelledConfig

MOST_SCORED = 2_000
MOST_TRAINED = 10_000
"""More images than these are not hashed; evenly spaced ones stand for them."""

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_SHOWN = 3  # pairs of images
_ROLES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class _Hashed:
    """The images that could be hashed, of `total` images."""

    names: list[str]
    hashes: Hashes
    total: int

    def count(self) -> str:
        """Return how many images were compared."""
        if len(self.names) == self.total:
            return str(self.total)
        return f"{len(self.names)} compared of {self.total}"

    def similar_to(self, other: _Hashed) -> list[tuple[str, str]]:
        """Return the images that look almost like one of the others, each with that one."""
        return find_similar(self.names, self.hashes, other.names, other.hashes)


def leak_warnings(splits: Splits, data: LabelledConfig, inits: Iterable[str]) -> list[str]:
    """Return warnings about images of one group, or near-duplicates, in two of the splits or in a pre-training.

    Args:
        splits: The labelled images.
        data: Where they are from.
        inits: Values of `TransferConfig.init`. Run folders have a manifest.json that names their images; those of
            shards, and files that are no longer there, are not compared.
    """
    images = {"train": splits.train.images, "val": splits.val.images, "test": splits.test.images}
    hashed = {role: _hash_labelled(part, data, role) for role, part in images.items()}
    return [
        *_split_warnings(splits, data, images, hashed),
        *_pretraining_warnings(hashed["test"], data.channels, inits),
    ]


def _split_warnings(
    splits: Splits,
    data: LabelledConfig,
    images: Mapping[str, Sequence[LabelledImage]],
    hashed: Mapping[str, _Hashed],
) -> list[str]:
    """Warnings about two of the splits; both mappings are by role."""
    warnings: list[str] = []
    for scored, trained in (("test", "train"), ("test", "val"), ("val", "train")):
        if splits.groups:
            warnings += _shared_groups(images[scored], images[trained], scored, trained, splits.groups)
        pairs = hashed[scored].similar_to(hashed[trained])
        if not pairs:
            continue
        if not {scored, trained} & set(splits.drawn):
            advice = f"divide the images of {data.source} anew, so that images which belong together are in one split"
        elif splits.groups:
            advice = "write a data.group that puts them into one group"
        else:
            advice = "keep images that belong together in one split with --data.group folder or --data.group PATTERN"
        what = f"a {_ROLES[trained]} image"
        warnings.append(_describe(pairs, hashed[scored], hashed[trained], _ROLES[scored], what, advice))
    return warnings


def _pretraining_warnings(test: _Hashed, channels: int, inits: Iterable[str]) -> list[str]:
    """Warnings about test images that look almost like an image of the pre-training."""
    warnings: list[str] = []
    for init in dict.fromkeys(inits):
        path = Path(init) / _MANIFEST
        if not path.is_file():
            continue
        pretrained = _hash_pretraining(path, channels)
        if pretrained is None or not pretrained.names:
            logger.info("the images of %s are in shards, or not there: not compared with the test images", init)
            continue
        pairs = test.similar_to(pretrained)
        if pairs:
            what = f"an image that {init} was pre-trained on"
            advice = "pre-train without such images (--data.exclude)"
            warnings.append(_describe(pairs, test, pretrained, "test", what, advice))
    return warnings


def _hash_labelled(images: Sequence[LabelledImage], data: LabelledConfig, role: str) -> _Hashed:
    root = Path(data.source)
    if not root.is_dir():  # the data.yaml of a YOLO data set
        root = root.parent
    listed = ImageList(os.path.abspath(root), tuple(image.name for image in images), "list")
    return _hash(listed, MOST_TRAINED if role == "train" else MOST_SCORED, data.channels)


def _hash_pretraining(path: Path, channels: int) -> _Hashed | None:
    """The pre-training images that a manifest names; None for shards, and if it cannot be read."""
    try:
        manifest = read_manifest(path)
    except DataError:  # the run itself reports it
        return None
    if manifest["layout"] == "shards":
        return None
    images, _, _ = images_from_manifest(manifest)
    return _hash(images, MOST_TRAINED, channels)


def _hash(images: ImageList, most: int, channels: int) -> _Hashed:
    positions, hashes = hash_files(images, images.evenly_spaced(most), channels)
    return _Hashed([images.names[i] for i in positions], hashes, len(images))


def _describe(
    pairs: Sequence[tuple[str, str]], scored: _Hashed, other: _Hashed, scored_kind: str, what: str, advice: str
) -> str:
    shown = "; ".join(f"{printable(a)} and {printable(b)}" for a, b in pairs[:_SHOWN])
    return (
        f"{scored_kind} images that look almost like {what}: {len(pairs)} of {scored.count()} "
        f"({len(pairs) / len(scored.names):.1%}; compared with {other.count()}), such as {shown}; their scores say "
        f"little about new images: {advice}"
    )


def _shared_groups(
    first: Sequence[LabelledImage],
    second: Sequence[LabelledImage],
    scored: str,
    trained: str,
    groups: Mapping[str, str],
) -> list[str]:
    trained_groups = {groups[image.name] for image in second}
    shared = [image.name for image in first if groups[image.name] in trained_groups]
    if not shared:
        return []
    sentence = (
        f"{_ROLES[scored]} images of a group that also has {_ROLES[trained]} images: {len(shared)} of {len(first)} "
        f"({len(shared) / len(first):.1%}), such as {printable(shared[0])}; their scores say little about new images: "
        "divide the images anew, by group"
    )
    return [sentence]
