"""Prepares a frozen teacher: principal components, and the cache of its features.

Both depend on the teacher and on the images, held-out ones included, but not on the seed: runs with other seeds can
share a cache. The run folder keeps the principal components in `teacher.safetensors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        The teacher; None if the settings want none.

    Raises:
        ConfigError: The settings name no weights, or the network cannot be built.
        WeightsError: The weights are missing, do not fit, or have changed since the start of the run.
    """
    config = plan.config
    if not config.distills_frozen_teacher:
        return None
    backbone, receipt = load_teacher(config)
    check_receipt(plan, receipt)
    teacher = FrozenTeacher(backbone, config.teacher.stride, config.teacher.size, plan.device)
    if config.teacher.init:  # an anchor has the weights of the start, which warns itself
        teacher.warnings = tuple(receipt["warnings"])
    components = config.teacher.components
    if 0 < components < teacher.dim:
        teacher.reduction = _reduction(plan, teacher, components)
    return teacher


def open_cache(plan: Plan, teacher: FrozenTeacher, log: RunLog) -> TeacherCache | None:
    """Open the cache of a teacher's features for the images of a run.

    Args:
        plan: The run.
        teacher: The teacher.
        log: Where the size of the cache is reported.

    Returns:
        The cache, which may lack features; None if it is switched off or would be larger than
        `teacher.cache_gigabytes`, or with `views.tiles`.
    """
    settings = plan.config.teacher
    if plan.config.views.tiles:
        if settings.cache_gigabytes > 0:
            log.info("the teacher's features are computed in every step: views.tiles takes another tile each time")
        return None
    bytes_per_image = record_type(teacher.dim, teacher.side).itemsize
    gigabytes = bytes_per_image * len(plan.images) / 1e9
    if gigabytes > settings.cache_gigabytes:
        if settings.cache_gigabytes > 0:
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
        should_stop: Asked after each batch, in all processes alike.

    Returns:
        Whether the cache is complete; False if the run was asked to stop. It is continued at the next start.
    """
    positions = np.arange(len(plan.images))
    missing = set(cache.missing(positions).tolist())
    distributed.barrier()  # all processes have seen the same records
    if not missing:
        return True
    log.info(f"computing the teacher's features of {len(missing)} images")
    # The groups are the same at every start: features depend, in their last bits, on what they are computed with.
    all_groups = [positions[start : start + BATCH_SIZE].tolist() for start in range(0, len(positions), BATCH_SIZE)]
    groups = [group for group in all_groups if not missing.isdisjoint(group)]
    world_size = distributed.world_size()
    own = groups[distributed.rank() :: world_size]
    rounds = -(-len(groups) // world_size)  # every process must answer should_stop equally often
    done = 0
    log.start_clock()
    with load_batches(_WholeImages(plan.images, plan.config), own, _join, plan.workers) as batches:
        for _ in range(rounds):
            batch = next(batches, None)
            if batch is not None and len(batch.positions):
                features = teacher.features(batch.images.to(plan.device)).cpu()
                if not bool(torch.isfinite(features).all()):
                    name = printable(plan.images.names[batch.positions[0]])
                    raise RunError(
                        f"the frozen teacher gives values that are not finite for {name} or an image near it; "
                        "name other weights with --teacher.init"
                    )
                for position, image_features in zip(batch.positions, features, strict=True):
                    if position in missing:
                        cache.write(position, image_features)
            done += world_size
            finished = min(done, len(groups))
            log.log_time_left(
                finished, len(groups), f"teacher's features: {finished}/{len(groups)} groups of {BATCH_SIZE} images"
            )
            if should_stop():
                return False
    distributed.barrier()
    return True


@dataclass(frozen=True)
class _Images:
    """Whole images for the teacher: their positions in the list of images, and uint8 [n, 3, S, S]."""

    positions: list[int]
    images: Tensor


class _WholeImages(Dataset[_Images]):
    """Position -> the whole image (or a tile of it) at the teacher's size; an image that cannot be read gives none."""

    def __init__(self, images: ImageList, config: Config) -> None:
        self.images = images
        self.config = config

    def __getitem__(self, position: int) -> _Images:
        size = self.config.teacher.size
        tiles = self.config.views.tiles
        try:
            with reading(self.images.names[position]):
                image = self.images.decode(int(position), self.config.data, 0 if tiles else size)
        except ImageError:  # training will meet it too, and reports it
            return _Images([], torch.empty(0, self.config.data.channels, size, size, dtype=torch.uint8))
        tile = draw_tile(image, tiles, self.config.seed, 0, int(position))
        return _Images([int(position)], resize_whole(tile.image, size)[None])


def _join(samples: list[_Images]) -> _Images:
    positions = [position for sample in samples for position in sample.positions]
    return _Images(positions, torch.cat([sample.images for sample in samples]))


def _reduction(plan: Plan, teacher: FrozenTeacher, components: int) -> Reduction:
    """Read the principal components of the run, or compute them from its images."""
    path = plan.out / "teacher.safetensors"
    settings = plan.config.teacher
    belongs_to = {"stride": str(settings.stride), "size": str(settings.size), "components": str(components)}
    if distributed.is_main() and not path.exists():
        basis = principal_components(_second_moment(plan, teacher), components).basis
        content = save({"basis": basis.contiguous()}, belongs_to)
        write_atomic(path, lambda file: file.write(content))
    distributed.barrier()
    with safe_open(path, framework="pt", device=str(plan.device)) as stored:
        if stored.metadata() != belongs_to:
            raise RunError(
                f"{path} holds the principal components of a teacher with other settings; start a new run with "
                "another --out"
            )
        return Reduction(stored.get_tensor("basis"))


def _second_moment(plan: Plan, teacher: FrozenTeacher) -> Tensor:
    """Compute the sum of f f^T over the features f of SAMPLE images: float64 [C, C] on the CPU."""
    order = rng.generator(0, "teacher").permutation(len(plan.images))
    dataset = _WholeImages(plan.images, plan.config)
    moment = torch.zeros(teacher.dim, teacher.dim, dtype=torch.float64)
    images = 0
    for start in range(0, len(order), BATCH_SIZE):
        batch = _join([dataset[int(position)] for position in order[start : start + BATCH_SIZE]])
        if len(batch.positions):
            level = teacher.full_features(batch.images.to(plan.device))
            features = level.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()
            moment += features.mT @ features
        images += len(batch.positions)
        if images >= SAMPLE:
            break
    if images == 0:
        raise RunError("no image can be read for the frozen teacher; plrc scan DIR looks at every image")
    return moment


def _cache_key(plan: Plan, teacher: FrozenTeacher) -> str:
    """A name for everything that the features depend on: weights, settings, principal components and images."""
    manifest = read_manifest(plan.out / "manifest.json")
    sizes = manifest["train"] | manifest["held_out"]
    digest = hashlib.sha256()
    receipt = read_receipt(plan.out / TEACHER_RECEIPT)
    settings = plan.config.teacher
    parts: Sequence[Any] = (
        receipt["backbone"],
        weights_hash(receipt),
        settings.stride,
        settings.size,
        plan.config.data.rescale_percentiles,
        teacher.backbone.pixels,
        plan.images.root,
        [(name, sizes[name]) for name in plan.images.names],
    )
    digest.update(repr(parts).encode())
    if teacher.reduction is not None:
        digest.update(np.ascontiguousarray(teacher.reduction.basis.cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
