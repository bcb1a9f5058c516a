"""`plrc transfer probe`: labelled images of any layout -> label maps of one size -> the measures of `probe.py`.

Layer 5: imports model and below, and this folder. No detector is trained: minutes on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plrc.config import Config
from plrc.data.decode import decode
from plrc.data.masks import decode_masks
from plrc.data.photometric import MEAN
from plrc.data.regions import Regions
from plrc.data.sources import ImageList
from plrc.engine.checkpoint import checkpoints, load_checkpoint
from plrc.engine.learner import Learner
from plrc.errors import ConfigError, LayoutError
from plrc.files import write_json
from plrc.measures.grouping import grouping_auc
from plrc.measures.linear_probe import evaluate_probe, fit_probe
from plrc.measures.segmentation import IGNORED
from plrc.rng import generator
from plrc.transfer.initial import initial_backbone
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.splits import LabelledSet, Splits, labelled_subset, read_labelled
from plrc.transfer.probe import extract_features
from plrc.transfer.protocols import LabelledConfig, Task

LEVELS = (8, 16, 32)
"""Strides that are probed; layer4 (32) is read at stride 16, as pre-training and dilated networks do."""


@dataclass(frozen=True)
class DenseResult:
    """Of each level: mIoU and pixel accuracy in percent, and the grouping AUC (nan where no objects are labelled)."""

    init: str
    backbone: str
    classes: tuple[str, ...]
    train_images: int
    test_images: int
    miou: dict[int, float]
    accuracy: dict[int, float]
    grouping: dict[int, float]
    notes: tuple[str, ...]
    init_report: str

    def table(self, notes: bool = True) -> str:
        rows = [f"{s:>6}  {self.miou[s]:6.1f}  {self.accuracy[s]:8.1f}  {self.grouping[s]:12.3f}" for s in self.miou]
        head = f"frozen {self.backbone}, {self.init}: {self.train_images} images to fit, {self.test_images} to score"
        return "\n".join([*(self.notes if notes else ()), head, "stride    mIoU  accuracy  grouping AUC", *rows])

    def save(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))


def dense_probe(
    data: LabelledConfig,
    inits: Sequence[str],
    backbone: str,
    size: int,
    images: int,
    seed: int,
    levels: Sequence[int] = LEVELS,
) -> list[DenseResult]:
    """Probe the backbones that `inits` name on at most `images` images of each split, their longer side `size` pixels.

    All are of the kind of the first; images and labels are read once. `levels`: the strides to probe. Classes of pixels
    come from masks, or from boxes (0 is then the background; smaller objects lie on larger ones).
    """
    if size < 64 or images < 1:
        raise ConfigError("write --size 64 or more and --images 1 or more")
    nets = []
    for init in inits:
        nets.append(initial_backbone(init, backbone, partial=False, layer4_stride=1, seed=seed))
        backbone = nets[-1][1].backbone
    splits, task = _read(data)
    train = _at_most(labelled_subset(splits.train, data.fraction, data.shots, seed, task), images, seed)
    test = _at_most(splits.test, images, seed)
    names = splits.train.classes if task == "semantic" else ("background", *splits.train.classes)
    if len(names) > IGNORED:
        raise ConfigError(f"{len(names)} classes are more than the probe takes ({IGNORED}); merge some of them")
    fitted, scored = _maps(train, size), _maps(test, size)
    objects = task != "semantic" and bool((scored[2] > 0).any())
    results: list[DenseResult] = []
    for init, (net, initial) in zip(inits, nets, strict=True):
        miou, accuracy, grouping = {}, {}, {}
        for stride in sorted(set(levels) & set(net.channels)):
            fit = fit_probe(extract_features(net, fitted[0], stride), fitted[1], len(names), seed=seed)
            features = extract_features(net, scored[0], stride)
            found = evaluate_probe(fit, features, scored[1])
            miou[stride], accuracy[stride] = 100 * found.miou, 100 * found.accuracy
            grouping[stride] = grouping_auc(features, scored[2], seed=seed) if objects else np.nan
        results.append(
            DenseResult(
                init, backbone, names, len(train.images), len(test.images), miou, accuracy, grouping,
                (*splits.notes, *initial.lines()), initial.table(),
            )
        )  # fmt: skip
    return results


def grouping_curve(data: LabelledConfig, config: Config, size: int, images: int, seed: int) -> list[dict[str, float]]:
    """Grouping AUC of a pre-training run at each of its checkpoints, on at most `images` test images with objects.

    One entry a checkpoint: `step`; `student` and `teacher`, the AUC of the level that was trained; `regions`, that of
    the regions which `config` gives to these images (a point's affinity is 1 in its own region and 0 in others).
    """
    splits, _ = _read(data)
    test = _at_most(splits.test, images, seed)
    pixels, _, objects = _maps(test, size)
    regions = _region_features(test, objects, config)
    given = grouping_auc(regions, objects, seed=seed) if regions is not None else np.nan
    learner = Learner(config, torch.device("cpu"))
    curve = []
    for path in checkpoints(Path(config.run.out)):
        stored, point = load_checkpoint(path), {"regions": given}
        for name, network in (("student", learner.student), ("teacher", learner.teacher)):
            network.load_state_dict(stored[name])
            point[name] = grouping_auc(
                extract_features(network.backbone, pixels, config.model.stride), objects, seed=seed
            )
        curve.append({"step": float(stored["step"])} | point)
    return curve


def _region_features(labelled: LabelledSet, objects: Tensor, config: Config) -> Tensor | None:
    """One-hot features [n, K, size, size] of the region that a pixel lies in, zero where it has none."""
    if config.regions.source == "maps":
        return None
    own = config.regions.source == "coco"
    names = tuple(os.path.abspath(item.path) for item in labelled.images)
    settings = config.with_values({"regions.source": "grid", "regions.maps": ""}) if own else config
    regions = Regions(settings, ImageList("/", names, "list"))
    maps = torch.full(objects.shape, -1, dtype=torch.long)
    for i, item in enumerate(labelled.images):
        height, width = _fitted(item.height, item.width, objects.shape[-1])
        masks = objects[i, :height, :width].clamp(min=0) - 1
        found = regions.with_noise(masks, names[i]) if own else regions(i)
        near = F.interpolate(found[None, None].float(), (height, width), mode="nearest-exact")
        maps[i, :height, :width] = near[0, 0].long()
    return F.one_hot(maps + 1)[..., 1:].permute(0, 3, 1, 2).float()


def _fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Sides of an image whose longer one becomes `size`."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _read(data: LabelledConfig) -> tuple[Splits, Task]:
    """Masks of objects where there are any, else boxes, else maps of classes."""
    tasks: tuple[Task, ...] = ("instances", "detection")
    for task in tasks:
        with contextlib.suppress(LayoutError):
            return read_labelled(data, task), task
    return read_labelled(data, "semantic"), "semantic"


def _at_most(labelled: LabelledSet, images: int, seed: int) -> LabelledSet:
    if len(labelled.images) <= images:
        return labelled
    chosen = generator(seed, "probe", index=1).permutation(len(labelled.images))[:images]
    return dataclasses.replace(labelled, images=tuple(labelled.images[i] for i in sorted(chosen)))


def _maps(labelled: LabelledSet, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(images uint8 [n, 3, size, size], classes uint8 [n, size, size], objects int32 [n, size, size]).

    Images keep their shape, at the upper left; the rest is ImageNet's mean color and ignored (objects: -1).
    """
    color = (255 * torch.tensor(MEAN)).to(torch.uint8)[:, None, None]
    images = color.expand(3, size, size).repeat(len(labelled.images), 1, 1, 1)
    classes = torch.full((len(labelled.images), size, size), IGNORED, dtype=torch.uint8)
    objects = torch.full((len(labelled.images), size, size), -1, dtype=torch.int32)
    for i, item in enumerate(labelled.images):
        pixels = decode(item.path).float()
        height, width = _fitted(pixels.shape[1], pixels.shape[2], size)
        small = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
        images[i, :, :height, :width] = small.round().clamp(0, 255).to(torch.uint8)
        for target, painted in zip((classes, objects), _paint(item, labelled), strict=True):
            near = F.interpolate(torch.from_numpy(painted)[None, None].float(), (height, width), mode="nearest-exact")
            target[i, :height, :width] = near[0, 0].to(target.dtype)
    return images, classes, objects


def _paint(item: LabelledImage, labelled: LabelledSet) -> tuple[np.ndarray, np.ndarray]:
    """(class of each pixel, object of each pixel), [H, W]; the largest objects first, so that none is hidden."""
    if labelled.class_of_id is not None:
        found = labelled.read_classes(item)
        return found, np.full(found.shape, -1)
    classes = np.zeros((item.height, item.width), dtype=np.int32)
    objects = np.zeros((item.height, item.width), dtype=np.int32)
    masks = decode_masks(item.segments, item.height, item.width).astype(bool)
    for i in np.argsort(-item.areas):
        if len(masks):
            where = masks[i]
        else:
            x0, y0, x1, y1 = item.boxes[i].round().astype(int)
            where = np.zeros(classes.shape, dtype=bool)
            where[y0:y1, x0:x1] = True
        classes[where] = IGNORED if item.ignored[i] else item.classes[i] + 1
        objects[where] = -1 if item.ignored[i] else i + 1
    return classes, objects
