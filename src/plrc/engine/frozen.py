"""Prepares a frozen teacher: its principal components, and the cache of its features.

Both depend on the teacher and on all images of the run (training and held out), but not on the seed, so that runs with
different seeds can share a cache. The principal components are stored in the run folder, in `teacher.safetensors`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from plrc import distributed, rng
from plrc.config import Config
from plrc.data.image_errors import ImageError
from plrc.data.manifest import read_manifest
from plrc.data.sources import ImageList
from plrc.data.teacher_cache import TeacherCache, record_type, resize_whole
from plrc.data.tiles import draw_tile
from plrc.data.workers import load_batches, reading
from plrc.engine.runlog import RunLog
from plrc.engine.setup import Plan
from plrc.engine.teacher_weights import TEACHER_RECEIPT, check_receipt, load_teacher, weights_hash
from plrc.errors import RunError
from plrc.files import write_atomic
from plrc.model import FrozenTeacher
from plrc.model.frozen import Reduction, principal_components
from plrc.model.starts import read_receipt
from plrc.text import printable

SAMPLE = 256
"""Number of images whose features give the principal components."""

BATCH_SIZE = 32
"""Images per forward pass of the teacher when the cache is filled."""


def prepare_teacher(plan: Plan) -> FrozenTeacher | None:
    """Build the frozen teacher of a run; all processes call this.

    Args:
        plan: The run.

    Returns:
        The teacher; None if the settings do not ask for one.

    Raises:
        ConfigError: The settings name no weights, or the network cannot be built.
        WeightsError: The weights are missing, do not fit, or have changed since the start of the run.
        RunError: The stored principal components belong to other settings, or no image can be read.
    """
    config = plan.config
    if not config.distills_frozen_teacher:
        return None
    backbone, receipt = load_teacher(config)
    check_receipt(plan, receipt)
    teacher = FrozenTeacher(backbone, config.teacher.stride, config.teacher.size, plan.device)
    if config.teacher.init:  # otherwise these are the student's start weights, whose warnings are logged anyway
        teacher.warnings = tuple(receipt["warnings"])
    components = config.teacher.components
    if 0 < components < teacher.dim:
        teacher.reduction = _read_or_compute_reduction(plan, teacher, components)
    return teacher


def open_cache(plan: Plan, teacher: FrozenTeacher, log: RunLog) -> TeacherCache | None:
    """Open the cache of a teacher's features for the images of a run.

    Args:
        plan: The run.
        teacher: The teacher.
        log: Where the size of the cache is reported.

    Returns:
        The cache, which may be incomplete. None if features are computed in every step instead: with `views.tiles`,
        with `teacher.cache_gigabytes` 0, or if the cache would be larger than that.
    """
    settings = plan.config.teacher
    if settings.cache_gigabytes == 0:
        return None
    if plan.config.views.tiles:
        log.info("the teacher's features are computed in every step: views.tiles takes another tile each time")
        return None
    bytes_per_image = record_type(teacher.dim, teacher.side).itemsize
    gigabytes = bytes_per_image * len(plan.images) / 1e9
    if gigabytes > settings.cache_gigabytes:
        log.info(
            f"the teacher's features of {len(plan.images)} images need {gigabytes:.1f} GB, more than "
            f"teacher.cache_gigabytes ({settings.cache_gigabytes:g}); they are computed in every step instead"
        )
        return None
    folder = Path(settings.cache) if settings.cache else plan.out / "teacher"
    path = folder / f"{_cache_key(plan, teacher)}.features"
    log.info(f"the teacher's features are kept in {path}: {bytes_per_image} bytes per image, {gigabytes:.3f} GB")
    return TeacherCache(path, len(plan.images), teacher.dim, teacher.side)


def fill_cache(
    plan: Plan, teacher: FrozenTeacher, cache: TeacherCache, log: RunLog, should_stop: Callable[[], bool]
) -> bool:
    """Compute the features that the cache lacks; each process does a share of them.

    Args:
        plan: The run.
        teacher: The teacher.
        cache: Its cache.
        log: Where progress is reported.
        should_stop: Called after each group of images. All processes must call it equally often.

    Returns:
        True if all features were computed (those of unreadable images stay absent); False if the run was asked to
        stop, and the next start computes the rest.
    """
    positions = np.arange(len(plan.images))
    missing = set(cache.missing(positions).tolist())
    distributed.barrier()  # no process writes before all have read, so that they agree on what is missing
    if not missing:
        return True
    log.info(f"computing the teacher's features of {len(missing)} images")
    # An image is always in the same group, because the last bits of its features depend on the rest of the group.
    groups: list[list[int]] = []
    for start in range(0, len(positions), BATCH_SIZE):
        group = positions[start : start + BATCH_SIZE].tolist()
        if any(position in missing for position in group):
            groups.append(group)
    world_size = distributed.world_size()
    own_groups = groups[distributed.rank() :: world_size]
    rounds = math.ceil(len(groups) / world_size)  # in the last round, some processes may have no group
    log.start_clock()
    with load_batches(_WholeImages(plan.images, plan.config), own_groups, _join, plan.workers) as batches:
        for finished_rounds in range(1, rounds + 1):
            batch = next(batches, None)
            if batch is not None and batch.positions:
                features = _finite_features(plan, teacher, batch)
                for position, image_features in zip(batch.positions, features, strict=True):
                    if position in missing:
                        cache.write(position, image_features)
            finished = min(finished_rounds * world_size, len(groups))
            log.log_time_left(
                finished, len(groups), f"teacher's features: {finished}/{len(groups)} groups of {BATCH_SIZE} images"
            )
            if should_stop():
                return False
    distributed.barrier()
    return True


def _finite_features(plan: Plan, teacher: FrozenTeacher, batch: _ImageBatch) -> Tensor:
    """Compute the teacher's features of some images, on the CPU. Raises RunError if they are not finite."""
    features = teacher.features(batch.images.to(plan.device)).cpu()
    if not bool(torch.isfinite(features).all()):
        name = printable(plan.images.names[batch.positions[0]])
        raise RunError(
            f"the frozen teacher gives values that are not finite for {name} or an image near it; "
            "name other weights with --teacher.init"
        )
    return features


@dataclass(frozen=True)
class _ImageBatch:
    """Some images at the teacher's size.

    Attributes:
        positions: Their positions in the list of images.
        images: uint8 [B, channels, S, S].
    """

    positions: list[int]
    images: Tensor


class _WholeImages(Dataset[_ImageBatch]):
    """A data set whose item is the image at a position, as a batch of one, or of none if it cannot be read.

    With `views.tiles` the item is a tile of the image.
    """

    def __init__(self, images: ImageList, config: Config) -> None:
        self.images = images
        self.config = config

    def __getitem__(self, position: int) -> _ImageBatch:
        size = self.config.teacher.size
        tile_side = self.config.views.tiles
        min_side = 0 if tile_side else size  # tiles are cut at full resolution
        try:
            with reading(self.images.names[position]):
                image = self.images.decode(position, self.config.data, min_side)
        except ImageError:  # it is reported in training, which meets it too
            return _ImageBatch([], torch.empty(0, self.config.data.channels, size, size, dtype=torch.uint8))
        tile = draw_tile(image, tile_side, self.config.seed, epoch=0, index=position)
        return _ImageBatch([position], resize_whole(tile.image, size)[None])


def _join(batches: list[_ImageBatch]) -> _ImageBatch:
    positions: list[int] = []
    for batch in batches:
        positions += batch.positions
    return _ImageBatch(positions, torch.cat([batch.images for batch in batches]))


def _read_or_compute_reduction(plan: Plan, teacher: FrozenTeacher, components: int) -> Reduction:
    """Read the principal components of the run; the main process computes them first if they are not stored yet."""
    path = plan.out / "teacher.safetensors"
    settings = plan.config.teacher
    metadata = {"stride": str(settings.stride), "size": str(settings.size), "components": str(components)}
    if distributed.is_main() and not path.exists():
        basis = principal_components(_second_moment(plan, teacher), components).basis
        content = save({"basis": basis.contiguous()}, metadata)
        write_atomic(path, lambda file: file.write(content))
    distributed.barrier()
    with safe_open(path, framework="pt", device=str(plan.device)) as stored:
        if stored.metadata() != metadata:
            raise RunError(
                f"{path} holds the principal components of a teacher with other settings; start a new run with "
                "another --out"
            )
        return Reduction(stored.get_tensor("basis"))


def _second_moment(plan: Plan, teacher: FrozenTeacher) -> Tensor:
    """Compute the sum of f f^T over the features f of at least SAMPLE images (if there are that many).

    Returns float64 [C, C] on the CPU.
    """
    order = rng.generator(0, "teacher").permutation(len(plan.images)).tolist()  # the same for every seed of the run
    dataset = _WholeImages(plan.images, plan.config)
    moment = torch.zeros(teacher.dim, teacher.dim, dtype=torch.float64)
    num_images = 0
    for start in range(0, len(order), BATCH_SIZE):
        batch = _join([dataset[position] for position in order[start : start + BATCH_SIZE]])
        if batch.positions:
            level = teacher.full_features(batch.images.to(plan.device))
            features = level.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()  # [B h w, C]
            moment += features.mT @ features
        num_images += len(batch.positions)
        if num_images >= SAMPLE:
            break
    if num_images == 0:
        raise RunError("no image can be read for the frozen teacher; plrc scan DIR looks at every image")
    return moment


def _cache_key(plan: Plan, teacher: FrozenTeacher) -> str:
    """Return a hash of everything that the features depend on: weights, settings, principal components and images."""
    manifest = read_manifest(plan.out / "manifest.json")
    file_sizes = manifest["train"] | manifest["held_out"]
    receipt = read_receipt(plan.out / TEACHER_RECEIPT)
    settings = plan.config.teacher
    content = (
        receipt["backbone"],
        weights_hash(receipt),
        settings.stride,
        settings.size,
        plan.config.data.rescale_percentiles,
        teacher.backbone.pixels,
        plan.images.root,
        [(name, file_sizes[name]) for name in plan.images.names],
    )
    digest = hashlib.sha256(repr(content).encode())
    if teacher.reduction is not None:
        digest.update(np.ascontiguousarray(teacher.reduction.basis.cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
