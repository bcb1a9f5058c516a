"""The training, validation and test images of a labelled source, and nested subsets of their labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plrc import rng
from plrc.config import DataConfig
from plrc.data.decode import decode
from plrc.data.groups import draw_held_out, group_names, require_two_groups
from plrc.data.image_files import read_bytes
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError
from plrc.measures.segmentation import IGNORED
from plrc.transfer.labels.annotations import ImageAnnotation, LabelledImage, check_annotation
from plrc.transfer.labels.class_table import ClassTable, describe_pixels
from plrc.transfer.labels.label_maps import MapValues, count_values
from plrc.transfer.labels.layouts import open_labels
from plrc.transfer.labels.reader import LabelReader, SplitAnnotations
from plrc.transfer.labels.turned import settle_turned
from plrc.transfer.protocols import LabelledConfig, Task

_VAL_FRACTION = 0.2  # of the training images, which is held out if there is no validation split


@dataclass(frozen=True)
class LabelledSet:
    """Labelled images of one split.

    Attributes:
        images: In the order of their names.
        classes: Names of the classes, by number.
        table: Semantic: the classes of the values in label maps.
        decoding: The settings with which the images are decoded.
    """

    images: tuple[LabelledImage, ...]
    classes: tuple[str, ...]
    table: ClassTable | None = None
    decoding: DataConfig = field(default_factory=DataConfig)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.decoding.channels

    def read_pixels(self, image: LabelledImage) -> Tensor:
        """Read the pixels of an image, uint8 [channels, H, W]. Raises DecodeError."""
        decoding = self.decoding
        return decode(image.path, decoding.channels, decoding.rescale_percentiles, decoding.max_megapixels)

    def read_classes(self, image: LabelledImage) -> NDArray[np.uint8]:
        """Read the class of each pixel of an image, [H, W]; 255 is ignored."""
        if self.table is None:
            raise ValueError("the labels were not read for the task semantic")
        return self.table.read(image.id_map)


@dataclass(frozen=True)
class Splits:
    """The images of a run. No image of train is in val or test.

    Attributes:
        train: To train on.
        val: To choose settings and to draw curves; may be empty.
        test: To score the result.
        reading: Which split is which, and what was repaired, clipped, dropped or left out.
        groups: Name of an image -> its group; empty without `LabelledConfig.group`.
        drawn: Those of "val" and "test" that were taken out of the training images.
    """

    train: LabelledSet
    val: LabelledSet
    test: LabelledSet
    reading: ReadingReport
    groups: dict[str, str] = field(default_factory=dict)
    drawn: tuple[str, ...] = ()

    def digest(self) -> str:
        """Compute the SHA-256 of the labels: classes, and names, sizes, objects and id maps of the images.

        Pixels of the images are not part of it.
        """
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            digest.update(repr((part.classes, part.table, len(part.images))).encode())
            for image in part.images:
                head = (image.name, image.height, image.width, len(image.classes), image.segments)
                digest.update(repr(head).encode())
                for array in (image.boxes, image.classes, image.ignored, image.areas):
                    digest.update(array.tobytes())
                if image.id_map:
                    digest.update(hashlib.sha256(read_bytes(image.id_map)).digest())
        return digest.hexdigest()


def read_labelled(config: LabelledConfig, task: Task) -> Splits:
    """Read the splits of `config.source`.

    Splits that the configuration does not name are chosen by their names, and an only split is trained on. Without a
    test split, val serves as test; with `test_fraction`, this share of train is taken out of it to test on. If no val
    split is named, and none is present that shares no image with train and test, a fifth of train is taken out of it;
    with "none" val is empty. What is taken out is the same for every seed, and whole groups of `config.group`. Classes
    are those of the training split. `fraction` and `shots` are left to `labelled_subset`.

    Args:
        config: The labelled images.
        task: What the labels are for.

    Raises:
        LayoutError: The source has no labels for the task.
        DataError: Labels that cannot be read, or splits that share images.
        ConfigError: A split that does not exist.
    """
    if config.merge_classes and task == "semantic":
        raise ConfigError("data.merge_classes is for objects; leave it out for the task semantic")
    root = Path(config.source)
    reading = ReadingReport()
    reader = open_labels(config, task, reading)
    names = _choose_splits(config, reader, root)
    train_split = _read(reader, names["train"], "train", reading)
    train = train_split.images
    origins = {role: f"split {name}" for role, name in names.items()}
    test: list[ImageAnnotation] = []
    if names["test"]:
        test = _read(reader, names["test"], "test", reading).images
    val: list[ImageAnnotation] = []
    if names["val"]:
        val = _read(reader, names["val"], "val", reading).images
    groups: dict[str, str] = {}
    if config.group:
        every_name = sorted({image.name for image in train + val + test})
        groups = dict(zip(every_name, group_names(every_name, config.group, reading), strict=True))
    drawn: list[str] = []
    if not names["test"]:
        train, test = _hold_out(train, names["train"], "test", config.test_fraction, groups, config.group)
        origins["test"] = _describe_drawn(
            f"{config.test_fraction:.3g}", names["train"], config.group, len(test), len(train)
        )
        drawn.append("test")
    _require_disjoint(train, test, names["train"], names["test"])
    if config.val not in ("", "none"):
        _require_disjoint(train, val, names["train"], names["val"])
        _require_disjoint(val, test, names["val"], names["test"])

    if config.val == "none":
        origins["val"] = "none"
    elif not config.val and (not val or _shared_names(val, train + test)):
        train, val = _hold_out(train, names["train"], "val", _VAL_FRACTION, groups, config.group)
        origins["val"] = _describe_drawn("a fifth", names["train"], config.group, len(val), len(train))
        drawn.append("val")

    classes = train_split.classes
    table = None
    maps: dict[str, MapValues] = {}
    if task == "semantic":
        maps = count_values(image.id_map for image in train + val + test)
        table = reader.class_table(maps)
        classes = table.names
    settled = settle_turned({"train": train, "val": val, "test": test}, reading)
    number_of = {name: number for number, name in enumerate(classes)}
    if config.merge_classes:
        classes = ("object",)
        number_of = dict.fromkeys(number_of, 0)
    sets = {}
    for role, content in settled.items():
        difficult = config.difficult and role == "train"
        images = [check_annotation(image, number_of, task == "instances", difficult, reading) for image in content]
        sets[role] = LabelledSet(tuple(images), classes, table, config.decoding)
        count = f"{len(images)} images"
        if table is None:
            count += f", {sum(len(image.classes) for image in images)} objects"
        elif images:
            contents = [maps[image.id_map] for image in images]
            count += f"; pixels: {describe_pixels(table, contents, role, names[role] or names['train'])}"
        reading.add(f"{role}: {origins[role]}; {count}")
    for role in ("train", "test"):
        if table is None and not (classes and _has_countable_label(sets[role], task)):
            reasons = "; ".join(reading.lines())
            raise DataError(f"no usable label in {role} ({origins[role]}) of {root}, no object that counts: {reasons}")
    if val and not _has_countable_label(sets["val"], task):
        reading.add("val: none of its labels counts, so its scores are not defined")
    return Splits(sets["train"], sets["val"], sets["test"], reading, groups, tuple(drawn))


def labelled_subset(labelled: LabelledSet, fraction: float, shots: int, seed: int, task: Task) -> LabelledSet:
    """Choose the labelled images of a seed: a share of the images, or a number of images of each class.

    Images are ranked once per seed, so a smaller share, or fewer shots, is part of a larger one. With shots, an image
    counts for every class in it, and all of its labels are used. Groups are parted: nothing is measured on the images
    that are not chosen, and few labels are in practice spread over all videos or scenes.

    Args:
        labelled: The images to choose from.
        fraction: Share of the images; at least 1 image is chosen.
        shots: Images of each class; 0: `fraction` decides.
        seed: Seed of the ranking.
        task: Decides which classes are in an image.
    """
    order = rng.generator(seed, "labels").permutation(len(labelled.images)).tolist()
    chosen = order[: max(1, round(fraction * len(order)))]
    if shots:
        chosen = []
        counts = Counter[int]()
        for i in order:
            wanted = [k for k in _classes_in(labelled, labelled.images[i], task) if counts[k] < shots]
            if wanted:
                chosen.append(i)
                counts.update(wanted)
            if len(counts) == len(labelled.classes) and min(counts.values()) == shots:
                break
    return replace(labelled, images=tuple(labelled.images[i] for i in sorted(chosen)))


def require_labels(labelled: LabelledSet, config: LabelledConfig, task: Task) -> None:
    """Raise ConfigError if no label of the chosen training images counts.

    Args:
        labelled: The images that `labelled_subset` chose.
        config: With the share, or the number of images of each class.
        task: What the labels are for.
    """
    if not _has_countable_label(labelled, task):
        setting = f"data.fraction = {config.fraction:g}" if not config.shots else f"data.shots = {config.shots}"
        raise ConfigError(
            f"{setting} chooses {len(labelled.images)} training images, and none of their labels counts: all are "
            "background, ignored or difficult; use more images, or another seed"
        )


def _choose_splits(config: LabelledConfig, reader: LabelReader, root: Path) -> dict[str, str]:
    """The split for each role; val may be empty."""
    roles = reader.roles
    present = ", ".join(reader.splits) or "none"
    train = config.train or roles.get("train", "")
    if not train and len(reader.splits) == 1:
        train = reader.splits[0]
    if not train:
        raise DataError(
            f"{root} has no split to train on (splits: {present}); name one with --data.train "
            "(plrc transfer probe: --train)"
        )
    test = config.test
    if not test and not config.test_fraction:
        rest = [roles[role] for role in ("test", "val") if role in roles and roles[role] not in (train, config.val)]
        if not rest:
            raise DataError(
                f"{root} has no split to test on (splits: {present}; {train} is trained on); name one with "
                "--data.test (plrc transfer probe: --test), or draw one from the images of a split: "
                f"--data.train {train} --data.test-fraction 0.2 (plrc transfer probe: --train, --test-fraction)"
            )
        test = rest[0]
    val = config.val
    if val == "none":
        val = ""
    elif not val and roles.get("val", "") not in (train, test):
        val = roles.get("val", "")
    return {"train": train, "val": val, "test": test}


def _read(reader: LabelReader, split: str, role: str, reading: ReadingReport) -> SplitAnnotations:
    """The images of a split, or of several joined by "+", in the order of their names, each once."""
    parts = split.split("+")
    if not set(parts) <= set(reader.splits):
        parts = [split]  # VOC's years, such as trainval07+12, are joined by its reader
    images: list[ImageAnnotation] = []
    classes: list[str] = []
    for part in parts:
        content = reader.read(part)
        images += content.images
        classes += content.classes
    if not images:
        reasons = "; ".join(reading.lines())
        raise DataError(f"the split {split}, read for {role}, has no usable image: {reasons}")
    unique: dict[str, ImageAnnotation] = {}
    for image in images:
        if image.name in unique:
            reading.count("dropped", "images that a split lists again", image.name)
            known = unique[image.name].objects
            for item in image.objects:
                reason = "objects of images that a split lists again"
                if any((item.class_name, item.box) == (other.class_name, other.box) for other in known):
                    reason = "objects that are annotated twice"
                reading.count("dropped", reason, item.location)
        else:
            unique[image.name] = image
    return SplitAnnotations([unique[name] for name in sorted(unique)], tuple(dict.fromkeys(classes)))


def _shared_names(first: list[ImageAnnotation], second: list[ImageAnnotation]) -> list[str]:
    return sorted({image.name for image in first} & {image.name for image in second})


def _require_disjoint(
    first: list[ImageAnnotation], second: list[ImageAnnotation], first_split: str, second_split: str
) -> None:
    shared = _shared_names(first, second)
    if shared:
        raise DataError(
            f"the splits {first_split} and {second_split} share {len(shared)} images, such as {shared[0]}; "
            "remove them from one of the two"
        )


def _hold_out(
    images: list[ImageAnnotation], split: str, role: str, fraction: float, group_of: Mapping[str, str], setting: str
) -> tuple[list[ImageAnnotation], list[ImageAnnotation]]:
    """The images that are kept and those held out, by a draw that depends on their number and groups alone."""
    advice = "or write --data.val none" if role == "val" else "or name a split with --data.test"
    if len(images) < 2:
        raise DataError(f"the split {split} has 1 image, too few to hold out any for {role}; add images, {advice}")
    names = [image.name for image in images]
    groups = [group_of.get(name, name) for name in names]
    if len(set(groups)) == 1 and len(set(group_of.values())) > 1:
        raise DataError(
            f"the {len(images)} images of the split {split} that are left for train are one group of data.group = "
            f"{setting}, so none can be held out for {role}; add images of another group, {advice}"
        )
    require_two_groups(groups, names, setting)
    wanted = max(1, int(len(images) * fraction))
    held_out = set(draw_held_out(groups, wanted, max(wanted, len(images) // 2), seed=0).tolist())
    rest = [image for i, image in enumerate(images) if i not in held_out]
    return rest, [image for i, image in enumerate(images) if i in held_out]


def _describe_drawn(share: str, split: str, group: str, drawn: int, rest: int) -> str:
    """What was drawn: the wanted share, or with groups the one that whole groups allow."""
    origin = f"whole groups, {drawn} of the {drawn + rest} images of {split}" if group else f"{share} of {split}"
    return f"{origin}, left out of train, the same for every seed"


def _has_countable_label(labelled: LabelledSet, task: Task) -> bool:
    """Whether an image has a class to train on or to score; reads images up to the first that has one."""
    return any(_classes_in(labelled, image, task) for image in labelled.images)


def _classes_in(labelled: LabelledSet, image: LabelledImage, task: Task) -> set[int]:
    """The classes in an image that count."""
    if task == "semantic":
        return set(np.unique(labelled.read_classes(image)).tolist()) - {IGNORED}
    return set(image.classes[~image.ignored].tolist())
