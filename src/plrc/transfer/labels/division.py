"""Divide the images of a labelled source into those to train on, to validate on and to test on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plrc.data.groups import draw_held_out, group_names, require_two_groups
from plrc.data.reading import ReadingReport
from plrc.errors import DataError
from plrc.transfer.labels.annotations import ImageAnnotation
from plrc.transfer.labels.reader import LabelReader, SplitAnnotations
from plrc.transfer.protocols import LabelledConfig

_VAL_FRACTION = 0.2  # share of the training images that is drawn for val


@dataclass
class Division:
    """The images of a source by role: "train", "val" and "test".

    Attributes:
        images: Role -> images, whose objects are not checked yet; val may be empty.
        splits: Role -> the split that its images are from.
        origins: Role -> where its images are from, as messages describe it.
        classes: Names of the classes of the training split.
        groups: Name of an image -> its group; empty without `LabelledConfig.group`.
        drawn: The roles whose images were drawn from the training split.
    """

    images: dict[str, list[ImageAnnotation]]
    splits: dict[str, str]
    origins: dict[str, str]
    classes: tuple[str, ...]
    groups: dict[str, str] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)

    def all_images(self) -> list[ImageAnnotation]:
        """Return the images of all roles."""
        return self.images["train"] + self.images["val"] + self.images["test"]

    def shared_names(self, first: str, second: str) -> list[str]:
        """Return the sorted names of the images that two roles have in common."""
        return sorted(_names(self.images[first]) & _names(self.images[second]))


def divide_images(config: LabelledConfig, reader: LabelReader, reading: ReadingReport) -> Division:
    """Read the splits of a source, and draw images for test and val if it has no splits for them.

    Args:
        config: The labelled images; `read_labelled` describes how the splits are chosen.
        reader: The opened source.
        reading: Counts what is dropped and left out.

    Raises:
        DataError: Splits that are missing, unusable, or share images; or images that cannot be divided.
        ConfigError: A split that does not exist.
    """
    division = _read_splits(config, reader, reading)
    if config.group:
        names = sorted(_names(division.all_images()))
        division.groups = dict(zip(names, group_names(names, config.group, reading), strict=True))

    if not division.images["test"]:
        _draw_from_train(division, "test", config.test_fraction, config.group)
    _require_disjoint(division, "train", "test")

    if config.val == "none":
        division.origins["val"] = "none"
    elif config.val:
        _require_disjoint(division, "train", "val")
        _require_disjoint(division, "val", "test")
    elif not _is_usable_for_val(division):
        _draw_from_train(division, "val", _VAL_FRACTION, config.group)
    return division


def _read_splits(config: LabelledConfig, reader: LabelReader, reading: ReadingReport) -> Division:
    """The images of the chosen splits; no images for a role without a split."""
    splits = _choose_splits(config, reader, reading)
    contents = {"train": SplitAnnotations([]), "val": SplitAnnotations([]), "test": SplitAnnotations([])}
    for role in ("train", "test", "val"):
        if splits[role]:
            contents[role] = _read_split(reader, splits[role], role, reading)
    return Division(
        images={role: content.images for role, content in contents.items()},
        splits=splits,
        origins={role: f"split {split}" for role, split in splits.items()},
        classes=contents["train"].classes,
    )


def _choose_splits(config: LabelledConfig, reader: LabelReader, reading: ReadingReport) -> dict[str, str]:
    """Role -> split; without a split, test and val are empty."""
    root = Path(config.source)
    present = ", ".join(reader.splits) or "none"
    train = config.train or reader.roles.get("train", "")
    if not train and len(reader.splits) == 1:
        train = reader.splits[0]
    if not train:
        raise DataError(
            f"{root} has no split to train on (splits: {present}); name one with --data.train "
            "(plrc transfer probe: --train)"
        )

    test = config.test
    if not test and not config.test_fraction:
        candidates = _unused_splits(reader, ("test", "val"), (train, config.val))
        test = _first_with_labels(candidates, reader, reading)
        if not test:
            unlabelled = "".join(f"; {split} has no labels" for split in candidates)
            raise DataError(
                f"{root} has no split to test on (splits: {present}; {train} is trained on{unlabelled}); name one with "
                "--data.test (plrc transfer probe: --test), or draw one from the images of a split: "
                f"--data.train {train} --data.test-fraction 0.2 (plrc transfer probe: --train, --test-fraction)"
            )

    val = config.val
    if not val:
        val = _first_with_labels(_unused_splits(reader, ("val",), (train, test)), reader, reading)
    elif val == "none":
        val = ""
    return {"train": train, "val": val, "test": test}


def _unused_splits(reader: LabelReader, roles: Sequence[str], used: Sequence[str]) -> list[str]:
    """The splits for these roles that are not used for another one."""
    splits = [reader.roles[role] for role in roles if role in reader.roles]
    return [split for split in splits if split not in used]


def _first_with_labels(candidates: Sequence[str], reader: LabelReader, reading: ReadingReport) -> str:
    """The first split that has labels; empty if none has. Those before it are counted."""
    for split in candidates:
        if reader.has_labels(split):
            return split
        reading.count("left out", "splits without labels", split)
    return ""


def _read_split(reader: LabelReader, split: str, role: str, reading: ReadingReport) -> SplitAnnotations:
    """The images of a split, or of several joined by "+", in the order of their names, each once."""
    parts = split.split("+")
    if not set(parts) <= set(reader.splits):
        parts = [split]  # VOC's years, such as trainval07+12, are joined by its reader
    images: dict[str, ImageAnnotation] = {}
    classes: list[str] = []
    for part in parts:
        content = reader.read(part)
        classes += content.classes
        for image in content.images:
            if image.name in images:
                _count_repeated(image, images[image.name], reading)
            else:
                images[image.name] = image
    if not images:
        reasons = "; ".join(reading.lines())
        raise DataError(f"the split {split}, read for {role}, has no usable image: {reasons}")
    return SplitAnnotations([images[name] for name in sorted(images)], tuple(dict.fromkeys(classes)))


def _count_repeated(image: ImageAnnotation, first: ImageAnnotation, reading: ReadingReport) -> None:
    """Count an image that was read before, and its objects, which are not used."""
    reading.count("dropped", "images that a split lists again", image.name)
    known = [(item.class_name, item.box) for item in first.objects]
    for item in image.objects:
        if (item.class_name, item.box) in known:
            reading.count("dropped", "objects that are annotated twice", item.location)
        else:
            reading.count("dropped", "objects of images that a split lists again", item.location)
            first.dropped += 1


def _names(images: Iterable[ImageAnnotation]) -> set[str]:
    return {image.name for image in images}


def _is_usable_for_val(division: Division) -> bool:
    """Whether there is a val split, and no image of it is trained or tested on."""
    shared = division.shared_names("val", "train") + division.shared_names("val", "test")
    return bool(division.images["val"]) and not shared


def _require_disjoint(division: Division, first: str, second: str) -> None:
    """Raise DataError if two roles share images."""
    shared = division.shared_names(first, second)
    if shared:
        raise DataError(
            f"the splits {division.splits[first]} and {division.splits[second]} share {len(shared)} images, such as "
            f"{shared[0]}; remove them from one of the two"
        )


def _draw_from_train(division: Division, role: str, fraction: float, group: str) -> None:
    """Move a share of the training images to another role; whole groups, if there is a setting `data.group`.

    The draw depends on nothing but the number of images and their groups.
    """
    images = division.images["train"]
    split = division.splits["train"]
    advice = "or write --data.val none" if role == "val" else "or name a split with --data.test"
    if len(images) < 2:
        raise DataError(f"the split {split} has 1 image, too few to hold out any for {role}; add images, {advice}")
    names = [image.name for image in images]
    groups = [division.groups.get(name, name) for name in names]
    source_has_groups = len(set(division.groups.values())) > 1
    if source_has_groups and len(set(groups)) == 1:
        raise DataError(
            f"the {len(images)} images of the split {split} that are left for train are one group of data.group = "
            f"{group}, so none can be held out for {role}; add images of another group, {advice}"
        )
    require_two_groups(groups, names, group)

    wanted = max(1, int(len(images) * fraction))
    at_most = max(wanted, len(images) // 2)
    drawn = set(draw_held_out(groups, wanted, at_most, seed=0).tolist())
    division.images["train"] = [image for i, image in enumerate(images) if i not in drawn]
    division.images[role] = [images[i] for i in sorted(drawn)]
    division.splits[role] = split
    division.drawn.append(role)

    share = "a fifth" if role == "val" else f"{fraction:.3g}"
    if group:
        share = f"whole groups, {len(drawn)} of the {len(images)} images"
    division.origins[role] = f"{share} of {split}, left out of train, the same for every seed"
