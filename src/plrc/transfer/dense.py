"""Linear probes and grouping of frozen features, on labelled images of any layout. No detector is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.config import Config
from plrc.data.regions import Regions
from plrc.data.sources import ImageList
from plrc.engine.checkpoint import checkpoints, load_checkpoint
from plrc.errors import ConfigError, DataError
from plrc.measures.grouping import grouping_auc
from plrc.measures.linear_probe import LinearProbe, evaluate_probe, fit_probe
from plrc.measures.segmentation import IGNORED
from plrc.model import build_backbone
from plrc.model.backbone import Backbone
from plrc.progress import OnProgress, ignore_progress
from plrc.rng import generator
from plrc.transfer.data_checks import log_data_warnings
from plrc.transfer.initial import OWN_WEIGHTS, InitialWeights, initial_backbone
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.datasets import usual_pixels
from plrc.transfer.labels.rasterize import rasterize, scaled_size
from plrc.transfer.labels.reader import NoLabelsForTask
from plrc.transfer.labels.splits import LabelledSet, Splits, labelled_subset, read_labelled, require_labels
from plrc.transfer.probe import extract_features, extract_levels
from plrc.transfer.protocols import LabelledConfig, Task

LEVELS = (8, 16, 32)
"""Strides that are probed. Level 32 (layer4) is computed at stride 16, as in dilated networks."""

RANDOM = "random"
"""The initial weights that differ from seed to seed."""


@dataclass(frozen=True)
class DenseResult:
    """Scores of a frozen backbone.

    Attributes:
        init: The initial weights, as given.
        seed: The seed.
        backbone: Name of the backbone.
        classes: Names of the classes of pixels.
        train_images: Number of images that the probes are fitted on.
        test_images: Number of images that are scored.
        miou: Stride -> mean IoU of the probe, in percent.
        accuracy: Stride -> pixel accuracy of the probe, in percent.
        grouping: Stride -> grouping AUC; nan if no objects are labelled, or too few of the drawn pixels lie on them.
        notes: What to know about the labels and the weights.
        reading: What was read of the labels, as `ReadingReport.to_dict` returns it.
        warnings: Overlaps between splits, and sizes of objects (`data_checks`).
        init_report: The table of the tensors that were loaded.
    """

    init: str
    seed: int
    backbone: str
    classes: tuple[str, ...]
    train_images: int
    test_images: int
    miou: dict[int, float]
    accuracy: dict[int, float]
    grouping: dict[int, float]
    notes: tuple[str, ...]
    reading: dict[str, Any]
    warnings: tuple[str, ...]
    init_report: str

    def table(self, notes: bool = True) -> str:
        """Format the scores as a table, after the notes if `notes`."""
        lines = list(self.notes) if notes else []
        lines.append(
            f"frozen {self.backbone}, {self.init}: {self.train_images} images to fit, {self.test_images} to score"
        )
        lines.append("stride    mIoU  accuracy  grouping AUC")
        for stride, miou in self.miou.items():
            lines.append(f"{stride:>6}  {miou:6.1f}  {self.accuracy[stride]:8.1f}  {self.grouping[stride]:12.3f}")
        return "\n".join(lines)


def dense_probe(
    data: LabelledConfig,
    inits: Sequence[str],
    backbone: str,
    size: int,
    images: int,
    seed: int,
    levels: Sequence[int] = LEVELS,
    on_progress: OnProgress = ignore_progress,
) -> list[DenseResult]:
    """Probe backbones with a single seed; see `probe_seeds`."""
    return probe_seeds(data, inits, backbone, size, images, [seed], levels, on_progress)


def probe_seeds(
    data: LabelledConfig,
    inits: Sequence[str],
    backbone: str,
    size: int,
    images: int,
    seeds: Sequence[int],
    levels: Sequence[int] = LEVELS,
    on_progress: OnProgress = ignore_progress,
) -> list[DenseResult]:
    """Probe backbones with several initial weights and seeds.

    The labelled images are read once. Features of given weights are computed once and shared by the seeds; random
    weights differ from seed to seed. Classes of pixels come from masks, or from boxes if there are no masks, or from id
    maps. With objects, class 0 is the background and smaller objects lie on top of larger ones.

    Args:
        data: The labelled images.
        inits: Initial weights: "random", "pretrained", a run folder or a file.
        backbone: Name of the backbone; empty: that of the weights. All weights are of the same backbone.
        size: Longer side of the images, in pixels.
        images: Largest number of images to read of each split.
        seeds: Seeds of the choice of images, of random weights, and of the pixels that the probes are fitted on.
        levels: Strides to probe.
        on_progress: Called after each probe.

    Returns:
        A result for each of `inits` and each seed, all seeds of the first weights first.

    Raises:
        ConfigError: Sizes or seeds that cannot be used, or too many classes.
        DataError: Labels that cannot be used.
        WeightsError: Weights that cannot be read or do not fit.
    """
    if size < 64 or images < 1:
        raise ConfigError(f"size must be >= 64 and images >= 1, got {size} and {images}: write --size and --images")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different numbers, at least one, got {list(seeds)}: write --seeds 0 1 2")
    splits, task = read_most_detailed(data)
    warnings = log_data_warnings(splits, data, inits)
    usual = usual_pixels(splits.train, data.pixels)

    def network_with(init: str, seed: int) -> tuple[Backbone, InitialWeights]:
        return initial_backbone(
            init, backbone, partial=False, layer4_stride=1, seed=seed, pixels=data.pixels, usual=usual
        )

    networks: dict[str, tuple[Backbone, InitialWeights]] = {}
    # files first: they name the backbone that "random" and "pretrained" then use
    for init in sorted(inits, key=lambda init: (init == RANDOM, init in OWN_WEIGHTS)):
        networks[init] = network_with(init, seeds[0])
        backbone = networks[init][1].backbone
    first = networks[inits[0]][0]
    notes = list(splits.reading.lines())
    if first.fitting_side(size) != size:
        size = first.fitting_side(size)
        notes.append(f"images are {size} pixels long, which fits {backbone}")
    strides = _strides_to_probe(first, levels)
    classes = splits.train.classes
    if task != "semantic":
        classes = ("background", *classes)
    if len(classes) > IGNORED:
        raise ConfigError(f"{len(classes)} classes are more than the probe supports ({IGNORED}); merge some of them")
    train: dict[int, LabelledSet] = {}
    test: dict[int, LabelledSet] = {}
    for seed in seeds:
        subset = labelled_subset(splits.train, data.fraction, data.shots, seed)
        require_labels(subset, data)
        train[seed] = _at_most(subset, images, seed)
        test[seed] = _at_most(splits.test, images, seed)
    fitted = _SeedLabels(train, size)
    scored = _SeedLabels(test, size)
    results: list[DenseResult] = []
    for init in inits:
        network, initial = networks[init]
        groups = [list(seeds)]  # seeds that share a network
        if init == RANDOM:
            groups = [[seed] for seed in seeds]
        for group in groups:
            if group[0] != seeds[0]:
                network, initial = network_with(init, group[0])
            scores = _probe_network(network, strides, group, fitted, scored, len(classes))
            for seed in group:
                own_notes = [*notes, *initial.lines()]
                if task != "semantic" and any(map(math.isnan, scores[seed]["grouping"].values())):
                    own_notes.append(f"no grouping AUC with seed {seed}: too few of the drawn pixels lie on objects")
                result = DenseResult(
                    init=init,
                    seed=seed,
                    backbone=backbone,
                    classes=classes,
                    train_images=len(train[seed].images),
                    test_images=len(test[seed].images),
                    **scores[seed],
                    notes=tuple(own_notes),
                    reading=splits.reading.to_dict(),
                    warnings=tuple(warnings),
                    init_report=initial.table(),
                )
                results.append(result)
                mious = ", ".join(f"{miou:.1f}" for miou in result.miou.values())
                on_progress(len(results), len(inits) * len(seeds), f"{init}, seed {seed}: mIoU {mious}")
    return results


def _strides_to_probe(network: Backbone, levels: Sequence[int]) -> list[int]:
    strides = sorted(set(levels) & set(network.channels))
    if not strides and tuple(levels) == LEVELS:
        strides = list(network.channels)  # a vision transformer with a patch of 14, for example
    if not strides:
        raise ConfigError(
            f"{network.name} has levels of the strides {sorted(network.channels)}, none of {list(levels)}"
        )
    return strides


class _SeedLabels:
    """The labelled images of several seeds, each read once.

    Attributes:
        labels: The images that any seed has.
        positions: Seed -> positions of its images in `labels`.
    """

    def __init__(self, sets: Mapping[int, LabelledSet], size: int) -> None:
        all_images: dict[str, LabelledImage] = {}
        for labelled in sets.values():
            all_images |= {item.name: item for item in labelled.images}
        numbers = {name: number for number, name in enumerate(all_images)}
        self.positions: dict[int, Tensor] = {}
        for seed, labelled in sets.items():
            self.positions[seed] = torch.tensor([numbers[item.name] for item in labelled.images])
        any_set = next(iter(sets.values()))
        self.labels = rasterize(dataclasses.replace(any_set, images=tuple(all_images.values())), size)

    def features(self, network: Backbone, strides: Sequence[int], seeds: Sequence[int]) -> dict[int, Tensor]:
        """Compute stride -> features of the images of these seeds; rows of other images are 0."""
        wanted = torch.unique(torch.cat([self.positions[seed] for seed in seeds]))
        levels = extract_levels(network, self.labels.images[wanted], strides)
        if len(wanted) == len(self.labels.images):
            return levels
        for stride, computed in levels.items():
            levels[stride] = computed.new_zeros(len(self.labels.images), *computed.shape[1:])
            levels[stride][wanted] = computed
        return levels

    def of_seed(self, seed: int, values: Tensor) -> Tensor:
        """Return the rows of the images of a seed."""
        positions = self.positions[seed]
        if torch.equal(positions, torch.arange(len(values))):
            return values  # all images: not copied
        return values[positions]


def _probe_network(
    network: Backbone,
    strides: Sequence[int],
    seeds: Sequence[int],
    fitted: _SeedLabels,
    scored: _SeedLabels,
    classes: int,
) -> dict[int, dict[str, dict[int, float]]]:
    """Fit and score the probes of each seed and stride on the same features; returns seed -> fields of DenseResult."""
    probes: dict[tuple[int, int], LinearProbe] = {}
    for stride, features in fitted.features(network, strides, seeds).items():
        for seed in seeds:
            own = fitted.of_seed(seed, features)
            labels = fitted.of_seed(seed, fitted.labels.classes)
            probes[stride, seed] = fit_probe(own, labels, classes, seed=seed)
    scores: dict[int, dict[str, dict[int, float]]] = {}
    for seed in seeds:
        scores[seed] = {"miou": {}, "accuracy": {}, "grouping": {}}
    for stride, features in scored.features(network, strides, seeds).items():
        for seed in seeds:
            own = scored.of_seed(seed, features)
            result = evaluate_probe(probes[stride, seed], own, scored.of_seed(seed, scored.labels.classes))
            objects = scored.of_seed(seed, scored.labels.objects)
            scores[seed]["miou"][stride] = 100 * result.miou
            scores[seed]["accuracy"][stride] = 100 * result.accuracy
            scores[seed]["grouping"][stride] = math.nan
            if (objects > 0).any():
                with contextlib.suppress(DataError):  # too few of the drawn pixels lie on objects
                    scores[seed]["grouping"][stride] = grouping_auc(own, objects, seed=seed)
    return scores


def grouping_curve(data: LabelledConfig, config: Config, size: int, images: int, seed: int) -> list[dict[str, float]]:
    """Compute the grouping AUC of a pre-training run at each of its checkpoints.

    Args:
        data: Labelled images; the test split is used.
        config: Configuration of the run.
        size: Longer side of the images, in pixels.
        images: Largest number of images.
        seed: Seed of the choice of images and points.

    Returns:
        One entry per checkpoint: "step"; "student" and "teacher", the AUC of the coarsest level trained; "regions",
        that of the regions which `config` gives to these images (the affinity of a point is 1 in its own region and 0
        in others), nan for region maps.
    """
    splits, _ = read_most_detailed(data)
    test = _at_most(splits.test, images, seed)
    labels = rasterize(test, size)
    regions = _region_features(test, labels.objects, config)
    regions_auc = math.nan
    if regions is not None:
        regions_auc = grouping_auc(regions, labels.objects, seed=seed)
    backbone = build_backbone(config.model.backbone, config.model.layer4_stride, config.data.channels)
    curve = []
    for path in checkpoints(Path(config.run.out)):
        stored = load_checkpoint(path)
        entry = {"step": float(stored["step"]), "regions": regions_auc}
        for name in ("student", "teacher"):
            tensors = {key: value for key, value in stored[name].items() if key.startswith("backbone.")}
            backbone.load_state_dict({key.removeprefix("backbone."): value for key, value in tensors.items()})
            features = extract_features(backbone, labels.images, config.model.largest_stride)
            entry[name] = grouping_auc(features, labels.objects, seed=seed)
        curve.append(entry)
    return curve


def _region_features(labelled: LabelledSet, objects: Tensor, config: Config) -> Tensor | None:
    """One-hot features [n, K, size, size] of the region of each pixel, zero for pixels without one; None for maps."""
    if config.regions.source == "maps":
        return None
    from_masks = config.regions.source == "coco"
    names = tuple(os.path.abspath(item.path) for item in labelled.images)
    settings = config.with_values({"regions.source": "grid", "regions.maps": ""}) if from_masks else config
    regions = Regions(settings, ImageList("/", names, "list"))
    maps = torch.full(objects.shape, -1, dtype=torch.long)
    for i, item in enumerate(labelled.images):
        height, width = scaled_size(item.height, item.width, objects.shape[-1])
        masks = objects[i, :height, :width].clamp(min=0) - 1
        ids = regions.with_noise(masks, names[i]) if from_masks else regions(i)
        scaled = F.interpolate(ids[None, None].float(), (height, width), mode="nearest-exact")
        maps[i, :height, :width] = scaled[0, 0].long()
    return F.one_hot(maps + 1)[..., 1:].permute(0, 3, 1, 2).float()


def read_most_detailed(data: LabelledConfig) -> tuple[Splits, Task]:
    """Read masks of objects; boxes if the source has no masks; id maps if it has no boxes."""
    tasks: tuple[Task, ...] = ("instances", "detection", "semantic")
    problems: list[str] = []
    for task in tasks:
        splits = _read_for(task, data, problems)
        if splits is not None:
            return splits, task
    raise DataError("; ".join(dict.fromkeys(problems)))


def _read_for(task: Task, data: LabelledConfig, problems: list[str]) -> Splits | None:
    try:
        return read_labelled(data, task)
    except NoLabelsForTask as error:
        problems.append(error.problem)
        return None


def _at_most(labelled: LabelledSet, images: int, seed: int) -> LabelledSet:
    if len(labelled.images) <= images:
        return labelled
    chosen = generator(seed, "probe", index=1).permutation(len(labelled.images))[:images]
    return dataclasses.replace(labelled, images=tuple(labelled.images[i] for i in sorted(chosen)))
