"""The training, validation and test images of a labelled source, and nested subsets of their labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plrc import rng
from plrc.config import DataConfig
from plrc.data.decode import decode
from plrc.data.image_files import read_bytes
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError
from plrc.measures.segmentation import IGNORED
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.class_table import ClassTable, describe_pixels
from plrc.transfer.labels.division import Division, divide_images
from plrc.transfer.labels.label_maps import count_values
from plrc.transfer.labels.layouts import open_labels
from plrc.transfer.labels.object_check import ObjectCheck, without_objects
from plrc.transfer.labels.reader import LabelReader
from plrc.transfer.labels.turned import settle_turned
from plrc.transfer.protocols import LabelledConfig, Task


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

    def classes_in(self, image: LabelledImage) -> set[int]:
        """Return the classes in an image that count: to train on, or to score."""
        if self.table is not None:
            return set(np.unique(self.read_classes(image)).tolist()) - {IGNORED}
        return set(image.classes[~image.ignored].tolist())

    def has_label_that_counts(self) -> bool:
        """Return whether there is a class to train on or to score; reads images up to the first that has one."""
        return bool(self.classes) and any(self.classes_in(image) for image in self.images)


@dataclass(frozen=True)
class Splits:
    """The images of a run. No image of train is in val or test.

    Attributes:
        train: To train on.
        val: To choose settings and to draw curves; may be empty.
        test: To score the result.
        reading: Which split is which, and what was repaired, clipped, dropped or left out.
        groups: Name of an image -> its group; empty without `LabelledConfig.group`.
        drawn: The roles ("val", "test") whose images were taken out of the training images.
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

    Splits that the configuration does not name are chosen by their names, and an only split is trained on. Splits for
    test and val are chosen only if they have labels. Without a test split, val serves as test; with
    `test_fraction`, this share of train is taken out of it to test on. If no val split is named, and none is present
    that shares no image with train and test, a fifth of train is taken out of it; with "none" val is empty. What is
    taken out is the same for every seed, and whole groups of `config.group`. Classes are those of the training split.
    `fraction` and `shots` are left to `labelled_subset`.

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
    reading = ReadingReport()
    reader = open_labels(config, task, reading)
    division = divide_images(config, reader, reading)
    if task == "semantic":
        sets = _sets_of_label_maps(config, reader, division, reading)
    else:
        sets = _sets_of_objects(config, task, division, reading)
        for role in ("train", "test"):
            if not sets[role].has_label_that_counts():
                raise DataError(
                    f"no usable label in {role} ({division.origins[role]}) of {Path(config.source)}, no object that "
                    f"counts: {'; '.join(reading.lines())}"
                )
    if sets["val"].images and not sets["val"].has_label_that_counts():
        reading.add("val: none of its labels counts, so its scores are not defined")
    return Splits(sets["train"], sets["val"], sets["test"], reading, division.groups, tuple(division.drawn))


def labelled_subset(labelled: LabelledSet, fraction: float, shots: int, seed: int) -> LabelledSet:
    """Choose the labelled images of a seed: a share of the images, or a number of images of each class.

    Images are ranked once per seed, so a smaller share, or fewer shots, is part of a larger one. With shots, an image
    counts for every class in it, and all of its labels are used. The images of a group may be divided: nothing is
    measured on the images that are not chosen, and few labels are in practice spread over all videos or scenes.

    Args:
        labelled: The images to choose from.
        fraction: Share of the images; at least 1 image is chosen.
        shots: Images of each class; 0: `fraction` decides.
        seed: Seed of the ranking.
    """
    ranking = rng.generator(seed, "labels").permutation(len(labelled.images)).tolist()
    chosen = ranking[: max(1, round(fraction * len(ranking)))]
    if shots:
        chosen = _choose_shots(labelled, ranking, shots)
    return replace(labelled, images=tuple(labelled.images[i] for i in sorted(chosen)))


def require_labels(labelled: LabelledSet, config: LabelledConfig) -> None:
    """Raise ConfigError if no label of the chosen training images counts.

    Args:
        labelled: The images that `labelled_subset` chose.
        config: With the share, or the number of images of each class.
    """
    if not labelled.has_label_that_counts():
        setting = f"data.fraction = {config.fraction:g}" if not config.shots else f"data.shots = {config.shots}"
        raise ConfigError(
            f"{setting} chooses {len(labelled.images)} training images, and none of their labels counts: all are "
            "background, ignored or difficult; use more images, or another seed"
        )


def _choose_shots(labelled: LabelledSet, ranking: list[int], shots: int) -> list[int]:
    """The first images of a ranking that show a class of which there are fewer than `shots` images so far."""
    chosen: list[int] = []
    images_of_class = Counter[int]()
    incomplete = set(range(len(labelled.classes)))
    for i in ranking:
        missing = labelled.classes_in(labelled.images[i]) & incomplete
        if missing:
            chosen.append(i)
            images_of_class.update(missing)
            incomplete -= {number for number in missing if images_of_class[number] == shots}
        if not incomplete:
            break
    return chosen


def _sets_of_label_maps(
    config: LabelledConfig, reader: LabelReader, division: Division, reading: ReadingReport
) -> dict[str, LabelledSet]:
    """Role -> its images, with the classes of all label maps together."""
    maps = count_values(image.id_map for image in division.all_images())
    table = reader.class_table(maps)
    sets: dict[str, LabelledSet] = {}
    for role, stated_images in division.images.items():
        images = tuple(without_objects(image) for image in stated_images)
        sets[role] = LabelledSet(images, table.names, table, config.decoding)
        description = f"{role}: {division.origins[role]}; {len(images)} images"
        if images:
            contents = [maps[image.id_map] for image in images]
            description += f"; pixels: {describe_pixels(table, contents, role, division.splits[role])}"
        reading.add(description)
    return sets


def _sets_of_objects(
    config: LabelledConfig, task: Task, division: Division, reading: ReadingReport
) -> dict[str, LabelledSet]:
    """Role -> its images with their checked objects."""
    classes = division.classes
    number_of_class = {name: number for number, name in enumerate(classes)}
    if config.merge_classes:
        classes = ("object",)
        number_of_class = dict.fromkeys(number_of_class, 0)
    settle_turned(division.all_images(), reading)
    sets: dict[str, LabelledSet] = {}
    for role, stated_images in division.images.items():
        check = ObjectCheck(
            number_of_class,
            masks=task == "instances",
            train_on_difficult=config.difficult and role == "train",
            reading=reading,
        )
        images = tuple(check.check(image) for image in stated_images)
        sets[role] = LabelledSet(images, classes, decoding=config.decoding)
        objects = sum(len(image.classes) for image in images)
        reading.add(f"{role}: {division.origins[role]}; {len(images)} images, {objects} objects")
    return sets
