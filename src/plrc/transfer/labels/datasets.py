"""Labelled images: a source -> train, val and test; nested subsets of the labels; items for training and scoring.

Layer 5: imports config, rng, data and this folder. Sets hold arrays and paths; pixels are read item by item.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from plrc import rng
from plrc.data.decode import DecodeError, decode, read_bytes
from plrc.data.masks import decode_masks
from plrc.data.photometric import MEAN
from plrc.errors import PlrcError
from plrc.measures.segmentation import IGNORED
from plrc.transfer.labels.annotations import Labelled, Notes, Picture, checked
from plrc.transfer.labels.label_maps import look_up, read_ids
from plrc.transfer.labels.readers import Pictures, Reader, open_source
from plrc.transfer.protocols import InputConfig, LabelledConfig, Task

__all__ = [
    "DetectionImages", "Labelled", "LabelledSet", "SemanticImages", "Splits", "choose", "read_labelled",
]  # fmt: skip

VAL_SHARE = 5  # a fifth of the training images where there is no split for it
_PADDING = [round(255 * mean) for mean in MEAN]  # 0 after normalization


@dataclass(frozen=True)
class LabelledSet:
    """Images in the order of their names, and the classes that their labels count."""

    images: tuple[Labelled, ...]
    classes: tuple[str, ...]
    label_map: NDArray[np.uint8] | None = None
    """Semantic: [256], id in the file -> class, 255 where it is ignored."""


@dataclass(frozen=True)
class Splits:
    """The sets of a run; no image of train is in val or test."""

    train: LabelledSet
    val: LabelledSet
    test: LabelledSet
    notes: tuple[str, ...]
    """Which split came from where; what was dropped or mended, counted by reason, with the first places."""

    def digest(self) -> str:
        """SHA-256 of the labels: classes; names, sizes, objects and id maps of the images. Not of their pixels."""
        found = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            table = b"" if part.label_map is None else part.label_map.tobytes()
            found.update(repr((part.classes, table, len(part.images))).encode())
            for one in part.images:
                found.update(repr((one.name, one.height, one.width, len(one.classes), one.segments)).encode())
                for array in (one.boxes, one.classes, one.ignored, one.areas):
                    found.update(array.tobytes())
                if one.labels:
                    found.update(hashlib.sha256(read_bytes(one.labels)).digest())
        return found.hexdigest()


def read_labelled(config: LabelledConfig, task: Task) -> Splits:
    """Find and read the splits of `config.source`; `fraction` and `shots` are left to `choose`.

    Splits that the configuration names are taken; others are found. Without a test split, val serves as test. Where no
    val split is named, and none is found that shares no image with train and test, it is a fifth of train, taken out of
    it, the same one for every seed; with "none" it is empty. Classes are those of the training split. Raises PlrcError
    for what cannot be read, and for splits that were named or found and share images.
    """
    if config.merge_classes and task == "semantic":
        raise PlrcError("data.merge_classes is for objects; leave it out for the task semantic")
    root, notes = Path(config.source), Notes()
    reader = open_source(root, config.layout, task, notes)
    names = _names(config, reader, root)
    train, classes = _read(reader, names["train"], "train", notes)
    test, _ = _read(reader, names["test"], "test", notes)
    named = config.val not in ("", "none")
    val = _read(reader, names["val"], "val", notes)[0] if names["val"] else []
    _refuse_shared(train, test, names["train"], names["test"])
    if named:
        _refuse_shared(train, val, names["train"], names["val"])
        _refuse_shared(val, test, names["val"], names["test"])
    origin = f"split {names['val']}" if config.val != "none" else "none"
    if not config.val and (not val or _shared(val, train + test)):
        train, val = _carve(train, names["train"])
        origin = f"a fifth of {names['train']}, left out of train, the same for every seed"
    table = reader.table(train + val + test) if task == "semantic" else {}
    semantic_classes, label_map = look_up(table)
    shown = ("object",) if config.merge_classes else semantic_classes or classes
    index = {name: 0 if config.merge_classes else i for i, name in enumerate(classes)}
    origins = {"train": f"split {names['train']}", "val": origin, "test": f"split {names['test']}"}
    sets = {}
    for role, pictures in {"train": train, "val": val, "test": test}.items():
        difficult = config.difficult and role == "train"
        images = tuple(checked(one, index, task == "instances", difficult, notes) for one in pictures)
        sets[role] = LabelledSet(images, shown, label_map if task == "semantic" else None)
        objects = f", {sum(len(one.classes) for one in images)} objects" if task != "semantic" else ""
        notes.say(f"{role}: {origins[role]}; {len(images)} images{objects}")
    if not shown or (task != "semantic" and not any(len(one.classes) for one in sets["train"].images)):
        raise PlrcError(f"no usable label in the split {names['train']} of {root}: {'; '.join(notes.all())}")
    return Splits(sets["train"], sets["val"], sets["test"], notes.all())


def _names(config: LabelledConfig, reader: Reader, root: Path) -> dict[str, str]:
    """The split for each role; val may be empty."""
    roles = reader.roles
    found = ", ".join(roles.values()) or "none"
    train = config.train or roles.get("train")
    if not train:
        raise PlrcError(f"{root} has no split to train on (found: {found}); name one with data.train")
    left = [roles[role] for role in ("test", "val") if role in roles and roles[role] not in (train, config.val)]
    test = config.test or next(iter(left), "")
    if not test:
        raise PlrcError(f"{root} has no split left to test on (found: {found}); name one with data.test")
    val = "" if config.val == "none" else config.val or roles.get("val", "")
    return {"train": train, "val": val if config.val or val not in (train, test) else "", "test": test}


def _read(reader: Reader, split: str, role: str, notes: Notes) -> tuple[Pictures, tuple[str, ...]]:
    found, classes = reader.read(split)
    if not found:
        raise PlrcError(f"the split {split}, read for {role}, has no image that can be used: {'; '.join(notes.all())}")
    unique: dict[str, Picture] = {}
    for one in found:
        if unique.setdefault(one.name, one) is not one:
            notes.count("images that a split lists again, dropped", one.name)
    return [unique[name] for name in sorted(unique)], classes


def _shared(first: Pictures, second: Pictures) -> list[str]:
    return sorted({one.name for one in first} & {one.name for one in second})


def _refuse_shared(train: Pictures, other: Pictures, train_name: str, name: str) -> None:
    if shared := _shared(train, other):
        raise PlrcError(
            f"the splits {train_name} and {name} share {len(shared)} images, such as {shared[0]}; part them"
        )


def _carve(pictures: Pictures, name: str) -> tuple[Pictures, Pictures]:
    """Four fifths and one fifth, by a draw that depends on their number alone."""
    if len(pictures) < 2:
        raise PlrcError(f"the split {name} has 1 image, none to spare for validation; name a split with data.val")
    order = rng.generator(0, "held_out").permutation(len(pictures))
    held = set(order[: max(1, len(pictures) // VAL_SHARE)].tolist())
    return (
        [one for i, one in enumerate(pictures) if i not in held],
        [one for i, one in enumerate(pictures) if i in held],
    )


def choose(labelled: LabelledSet, fraction: float, shots: int, seed: int, task: Task) -> LabelledSet:
    """The labelled subset of a seed: a share of the images, or `shots` images of each class (0: the share decides).

    Images are ranked once for a seed, so a smaller share, or fewer shots, is part of a larger one. At least 1 image.
    With shots, an image counts for every class in it, and all of its labels are used.
    """
    order = rng.generator(seed, "labels").permutation(len(labelled.images)).tolist()
    chosen = order[: max(1, round(fraction * len(order)))]
    if shots:
        chosen, counts = [], Counter[int]()
        for i in order:
            wanted = [k for k in _present(labelled, labelled.images[i], task) if counts[k] < shots]
            if wanted:
                chosen.append(i)
                counts.update(wanted)
            if len(counts) == len(labelled.classes) and min(counts.values()) == shots:
                break
    return replace(labelled, images=tuple(labelled.images[i] for i in sorted(chosen)))


def _present(labelled: LabelledSet, image: Labelled, task: Task) -> set[int]:
    """The classes in an image that count."""
    if task == "semantic":
        return set(np.unique(_label_map(labelled, image)).tolist()) - {IGNORED}
    return set(image.classes[~image.ignored].tolist())


class DetectionImages(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Images with boxes, and with `masks` their masks, at full size: resizing is the detector's.

    train: items by (epoch, index), objects without the ignored ones, mirrored in a share `input.flip_prob` of the draws,
    which follow from (seed, epoch, index). Else: items by index, unchanged, with all objects.
    """

    def __init__(self, labelled: LabelledSet, input: InputConfig, train: bool, masks: bool, seed: int) -> None:  # noqa: A002
        self.labelled, self.input, self.train, self.masks, self.seed = labelled, input, train, masks, seed

    def __len__(self) -> int:
        return len(self.labelled.images)

    def __getitem__(self, key: Any) -> tuple[Tensor, dict[str, Any]]:
        """uint8 [3, H, W] and "boxes" float32 [n, 4], "labels" int64 [n] from 1, "masks" uint8 [n, H, W], "image"."""
        epoch, index = key if self.train else (0, key)
        one = self.labelled.images[index]
        kept = ~one.ignored if self.train else np.ones_like(one.ignored)
        image, boxes = _pixels(one), torch.from_numpy(one.boxes[kept])
        target: dict[str, Any] = {"labels": torch.from_numpy(one.classes[kept] + 1), "image": index}
        if self.masks:
            segments = tuple(segment for segment, keep in zip(one.segments, kept, strict=True) if keep)
            target["masks"] = torch.from_numpy(decode_masks(segments, one.height, one.width))
        if self.train and _mirrored(self.input, self.seed, epoch, index):
            image = image.flip(-1)
            boxes = torch.stack([one.width - boxes[:, 2], boxes[:, 1], one.width - boxes[:, 0], boxes[:, 3]], dim=1)
            target |= {"masks": target["masks"].flip(-1)} if self.masks else {}
        return image, {"boxes": boxes, **target}


class SemanticImages(Dataset[tuple[Tensor, Tensor]]):
    """Images with a class for every pixel.

    train: items by (epoch, index): scaled by a draw from `input.train_size`, a random crop of `input.crop`, padded at
    the right and the bottom where the image is smaller (ImageNet's mean color; label 255), mirrored in a share
    `input.flip_prob`. Else: items by index; the image scaled by `input.test_size`, the labels as they are.
    """

    def __init__(self, labelled: LabelledSet, input: InputConfig, train: bool, seed: int) -> None:  # noqa: A002
        self.labelled, self.input, self.train, self.seed = labelled, input, train, seed

    def __len__(self) -> int:
        return len(self.labelled.images)

    def __getitem__(self, key: Any) -> tuple[Tensor, Tensor]:
        """uint8 [3, h, w] and uint8 labels [h, w] (train) or [H, W] (else)."""
        epoch, index = key if self.train else (0, key)
        one = self.labelled.images[index]
        image, labels = _pixels(one), torch.from_numpy(_label_map(self.labelled, one))
        if not self.train:
            return _scaled(image, self.input.test_size), labels
        draws = rng.generator(self.seed, "crops", epoch, index)
        scale = draws.uniform(*self.input.train_size)
        image = _scaled(image, scale)
        labels = F.interpolate(labels[None, None], image.shape[1:], mode="nearest-exact")[0, 0]
        (height, width), (y, x) = self.input.crop, draws.random(2)
        image, labels = _cropped(image, labels, int(height) or image.shape[1], int(width) or image.shape[2], y, x)
        if _mirrored(self.input, self.seed, epoch, index):
            image, labels = image.flip(-1), labels.flip(-1)
        return image, labels


def _pixels(one: Labelled) -> Tensor:
    try:
        image = decode(one.path)
    except DecodeError as error:
        raise PlrcError(f"{error}; mend or remove this file and start again") from error
    if tuple(image.shape[1:]) != (one.height, one.width):
        raise PlrcError(f"{one.path} has changed since its labels were read; start again")
    return image


def _label_map(labelled: LabelledSet, one: Labelled) -> NDArray[np.uint8]:
    if labelled.label_map is None:
        raise PlrcError("the labels were not read for the task semantic")
    return labelled.label_map[read_ids(one.labels)]


def _mirrored(config: InputConfig, seed: int, epoch: int, index: int) -> bool:
    return bool(rng.generator(seed, "mirror", epoch, index).random() < config.flip_prob)


def _scaled(image: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _cropped(image: Tensor, labels: Tensor, height: int, width: int, y: float, x: float) -> tuple[Tensor, Tensor]:
    """A window of this size at the shares y and x of the room that there is; padded where there is none."""
    top = round(y * max(0, image.shape[1] - height))
    left = round(x * max(0, image.shape[2] - width))
    image, labels = (t[..., top : top + height, left : left + width] for t in (image, labels))
    canvas = torch.tensor(_PADDING, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
    ignored = torch.full((height, width), IGNORED, dtype=torch.uint8)
    canvas[:, : image.shape[1], : image.shape[2]] = image
    ignored[: labels.shape[0], : labels.shape[1]] = labels
    return canvas, ignored
