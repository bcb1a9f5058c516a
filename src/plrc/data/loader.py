"""Load batches of one to three uint8 views with their maps from view to image, in the order of a sampler.

Loader processes decode, crop and resize. Color, points and everything else are computed later on the training device,
from the uniform random numbers that travel in the batch.

Shapes: V views (A query, C reference, B match, as far as they are needed), B images of a micro-batch on one process,
C channels, S pixels per side of a view, h x w the id map of an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from plrc import rng
from plrc.config import Config
from plrc.data.cache import load_cached
from plrc.data.image_errors import ImageError
from plrc.data.photometric import color_draws
from plrc.data.points import contrast_draws, match_draws
from plrc.data.regions import Regions
from plrc.data.sampler import SampleKey, StepSampler
from plrc.data.sources import ImageList
from plrc.data.teacher_cache import NO_FEATURES, TeacherCache, resize_whole
from plrc.data.tiles import Tile, cut_regions, draw_tile
from plrc.data.views import draw_views, render, shorter_side
from plrc.data.workers import load_batches, reading
from plrc.errors import DataError
from plrc.text import printable

MAX_SUBSTITUTES = 100  # number of images that are tried until one can be read


@dataclass(frozen=True)
class Batch:
    """The images of one micro-batch.

    Attributes:
        images: Views, uint8 [V, B, C, S, S].
        maps: Maps from view to image (see `geometry`), float32 [V, B, 4].
        regions: Region ids in the image frame, int16 [B, h, w]; -1 is unlabelled.
        tiles: Maps from tile to image, float32 [B, 4]. With `views.tiles`, the tile is "the image" of everything else.
        color_uniform: Uniform numbers in [0, 1) for `photometric.augment`, float32 [V, B, photometric.color_draws(C)].
        contrast_uniform: Uniform numbers for `points.contrast_points`, float32 [B, points.contrast_draws()].
        match_uniform: Uniform numbers for `points.match_points`, float32 [B, points.match_draws(distill_points)].
        teacher: For a frozen teacher: the whole images, uint8 [B, C, T, T], or its features of them, float16
            [B, D, h, w]. Empty without such a teacher.
        failures: (name, reason) of each image that was replaced by another, because it or its id map could not be read.
    """

    images: Tensor
    maps: Tensor
    regions: Tensor
    tiles: Tensor
    color_uniform: Tensor
    contrast_uniform: Tensor
    match_uniform: Tensor
    teacher: Tensor = field(default_factory=lambda: torch.empty(0))
    failures: tuple[tuple[str, str], ...] = ()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def pin_memory(self) -> Batch:
        pinned = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return Batch(**pinned, failures=self.failures)

    def to(self, device: torch.device) -> Batch:
        if self.images.device == device:
            return self
        pinned = device.type == "cuda"
        moved = {name: tensor.to(device, non_blocking=pinned) for name, tensor in self._tensors().items()}
        return Batch(**moved, failures=self.failures)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for tensor in self._tensors().values():
            tensor.record_stream(stream)


def collate(samples: list[Batch]) -> Batch:
    """Join batches along B."""
    failures: tuple[tuple[str, str], ...] = ()
    for sample in samples:
        failures += sample.failures
    return Batch(
        images=torch.cat([sample.images for sample in samples], dim=1),
        maps=torch.cat([sample.maps for sample in samples], dim=1),
        regions=torch.cat([sample.regions for sample in samples]),
        tiles=torch.cat([sample.tiles for sample in samples]),
        color_uniform=torch.cat([sample.color_uniform for sample in samples], dim=1),
        contrast_uniform=torch.cat([sample.contrast_uniform for sample in samples]),
        match_uniform=torch.cat([sample.match_uniform for sample in samples]),
        teacher=torch.cat([sample.teacher for sample in samples]),
        failures=failures,
    )


class ViewDataset(Dataset[Batch]):
    """A data set whose item (epoch, index) is a `Batch` of one image, which depends on the seed and the item only.

    An image that cannot be read is replaced by another one, which keeps the random numbers of its index.

    Args:
        images: All images.
        subset: Index i of the data set is the image at position subset[i] of `images`.
        config: The configuration of the run.
        teacher_cache: The features of the frozen teacher. None: batches hold the images for it if the configuration
            wants such a teacher.

    Attributes:
        groups: The number of the shard of each index, for `StepSampler`; None if the images are not in shards.
    """

    def __init__(
        self, images: ImageList, subset: np.ndarray, config: Config, teacher_cache: TeacherCache | None = None
    ) -> None:
        self.images = images
        self.subset = subset
        self.config = config
        self.teacher_cache = teacher_cache
        self.draw_match_view = config.objectives.needs_match_view
        self.regions = Regions(config, images)
        self.groups = images.shards.shard_numbers[subset] if images.shards else None
        self.substitute_step = _substitute_step(len(subset), self.groups)

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, key: SampleKey) -> Batch:
        """Load an image or a substitute. Raises DataError after MAX_SUBSTITUTES unreadable images."""
        epoch, index = key
        failures: list[tuple[str, str]] = []
        for attempt in range(min(len(self), MAX_SUBSTITUTES)):
            sample_or_reason = self.load_sample(epoch, index, attempt)
            if isinstance(sample_or_reason, Batch):
                return dataclasses.replace(sample_or_reason, failures=tuple(failures))
            failures.append((self.failed_name(index, attempt), sample_or_reason))
        name, reason = failures[-1]
        raise DataError(
            f"{len(failures)} images in a row cannot be read, the last one {printable(name)}: {reason}; "
            "run plrc scan DIR to check every image"
        )

    def load_sample(self, epoch: int, index: int, attempt: int = 0) -> Batch | str:
        """Load one image.

        Args:
            epoch: Number of the epoch.
            index: Index of the image.
            attempt: 0 loads the image itself, 1 its first substitute, 2 the second, and so on.

        Returns:
            A batch of one image, or the reason why it cannot be read.
        """
        position = self._position(index, attempt)
        try:
            with reading(self.images.names[position]):
                regions = self.regions(position)
                image = self._load_image(position)
        except ImageError as error:
            return error.reason
        tile = draw_tile(image, self.config.views.tiles, self.config.seed, epoch, index)
        teacher = self._teacher_input(position, tile.image)
        if teacher is None:
            return NO_FEATURES
        return dataclasses.replace(self._draw_sample(tile, regions, epoch, index), teacher=teacher)

    def failed_name(self, index: int, attempt: int = 0) -> str:
        """Return the name of an image that cannot be read, or of its shard if all of the shard cannot be read."""
        position = self._position(index, attempt)
        broken = self.images.shards.broken_shard(position) if self.images.shards else ""
        return broken or self.images.names[position]

    def name(self, index: int) -> str:
        """Return the relative name of an image."""
        return self.images.names[self._position(index, 0)]

    def _position(self, index: int, attempt: int) -> int:
        return int(self.subset[(index + attempt * self.substitute_step) % len(self)])

    def _load_image(self, position: int) -> Tensor:
        data = self.config.data
        min_side = shorter_side(self.config.views)
        if min_side and self.config.distills_frozen_teacher:
            min_side = max(min_side, self.config.teacher.size)
        read = partial(self.images.decode, position, data, min_side)
        if not self.config.run.cache:
            return read()
        page = self.images.page(position)
        options = (data.rescale_percentiles, data.max_megapixels, min_side, data.channels, page)
        return load_cached(self.config.run.cache, self.images.path(position), options, read)

    def _teacher_input(self, position: int, image: Tensor) -> Tensor | None:
        """`Batch.teacher` of an image; None if its features could not be computed."""
        if self.teacher_cache is not None:
            features = self.teacher_cache.read(position)
            return None if features is None else features[None]
        if self.config.distills_frozen_teacher:
            return resize_whole(image, self.config.teacher.size)[None]
        return torch.empty(0)

    def _draw_sample(self, tile: Tile, regions: Tensor, epoch: int, index: int) -> Batch:
        config = self.config
        seed = config.seed
        height, width = tile.image.shape[1:]
        crops = rng.generator(seed, "crops", epoch, index)
        views = draw_views(crops, height, width, config.views, self.draw_match_view)
        if not (self.draw_match_view or config.needs_reference_view):
            views = views[:1]
        draws = color_draws(config.data.channels)
        # three views are drawn even if only two exist: the number of draws never changes
        color_uniform = rng.generator(seed, "color", epoch, index).random((3, 1, draws), dtype=np.float32)
        point_rng = rng.generator(seed, "points", epoch, index)
        contrast_uniform = point_rng.random((1, contrast_draws()), dtype=np.float32)
        match_uniform = point_rng.random((1, match_draws(config.objectives.distill_points)), dtype=np.float32)
        return Batch(
            images=torch.stack([render(tile.image, view, config.views.size) for view in views])[:, None],
            maps=torch.tensor([view.map for view in views], dtype=torch.float32)[:, None],
            regions=cut_regions(regions, tile.map, config.regions)[None],
            tiles=torch.tensor([tile.map], dtype=torch.float32),
            color_uniform=torch.from_numpy(color_uniform[: len(views)]),
            contrast_uniform=torch.from_numpy(contrast_uniform),
            match_uniform=torch.from_numpy(match_uniform),
        )


def _substitute_step(num_images: int, groups: np.ndarray | None) -> int:
    """Return the distance in indices from an image to its first substitute, from that to the second, and so on.

    It is large, because neighbors are often damaged together: they lie in the same folder or shard.
    """
    if groups is not None:
        _, sizes = np.unique(groups, return_counts=True)
        largest = int(sizes.max(initial=1))
        if 2 * largest <= num_images:  # a step of this size leaves the shard; with fewer shards there is no such step
            return largest
    if num_images <= MAX_SUBSTITUTES:  # all images are tried
        return 1
    step = round(0.618 * num_images)  # the golden ratio spreads the substitutes evenly
    while math.gcd(step, num_images) != 1:  # without a common divisor, every image is reached
        step += 1
    return step


class DeviceLoader:
    """Iterates over batches on the training device and measures how long it waits for them.

    On a GPU the next batch is copied during the computation on the current one. If iteration stops early, the iterator
    must be closed, so that the loader processes end.

    Args:
        dataset: The images.
        sampler: The keys of each batch.
        workers: Number of loader processes; 0 loads in this process.
        device: The training device.

    Attributes:
        seconds_waited: Seconds spent waiting for batches so far.
    """

    def __init__(self, dataset: ViewDataset, sampler: StepSampler, workers: int, device: torch.device) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.workers = workers
        self.device = device
        self.seconds_waited = 0.0

    def __iter__(self) -> Generator[Batch, None, None]:
        return self._copied_ahead() if self.device.type == "cuda" else self._copied()

    def _host_batches(self) -> Generator[Batch, None, None]:
        """Load batches into the memory of the host, and add up the time spent waiting for them."""
        pin_memory = self.device.type == "cuda"
        with load_batches(self.dataset, self.sampler, collate, self.workers, pin_memory) as batches:
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.seconds_waited += time.perf_counter() - started
                if batch is None:
                    return
                yield batch

    def _copied(self) -> Generator[Batch, None, None]:
        """Copy each batch when its turn comes; on a CPU there is nothing to copy."""
        with contextlib.closing(self._host_batches()) as host_batches:
            for host_batch in host_batches:
                yield host_batch.to(self.device)

    def _copied_ahead(self) -> Generator[Batch, None, None]:
        """Copy the next batch on a separate stream, during the computation on the current one."""
        stream = torch.cuda.Stream(self.device)
        current: Batch | None = None
        with contextlib.closing(self._host_batches()) as host_batches:
            for host_batch in host_batches:
                with torch.cuda.stream(stream):
                    upcoming = host_batch.to(self.device)
                if current is not None:
                    yield current
                torch.cuda.current_stream(self.device).wait_stream(stream)
                upcoming.record_stream(torch.cuda.current_stream(self.device))
                current = upcoming
        if current is not None:
            yield current
