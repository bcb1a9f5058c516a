"""Images on disk -> batches of three uint8 views with their maps, in an order that (seed, step) alone decides.

Layer 1: imports config, files, rng and this folder. Workers decode, crop and resize; color, points and
everything else happen later on the training device, from the uniform numbers that travel in the batch.

Shapes: V views (2 or 3: A query, C reference, B match), B images of one part of a step on one process, S pixels a side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from plrc import rng
from plrc.config import Config
from plrc.data.cache import cached
from plrc.data.decode import DecodeError
from plrc.data.photometric import DRAWS
from plrc.data.points import contrast_draws, match_draws
from plrc.data.region_files import RegionError
from plrc.data.regions import Regions
from plrc.data.sampler import Key, StepSampler
from plrc.data.sources import ImageList
from plrc.data.views import draw_views, render, shorter_side
from plrc.data.workers import load_batches
from plrc.errors import PlrcError
from plrc.text import printable

SUBSTITUTES = 100  # how many images are tried in place of one that cannot be read


@dataclass(frozen=True)
class Batch:
    """One part of a step. `failures` names images that could not be read, or whose id map could not, and that were
    replaced by another."""

    images: Tensor  # uint8 [V, B, 3, S, S]
    maps: Tensor  # float32 [V, B, 4], see geometry
    regions: Tensor  # int16 [B, h, w], image frame; -1 is unlabelled
    color: Tensor  # float32 [V, B, photometric.DRAWS], uniform in [0, 1)
    contrast: Tensor  # float32 [B, points.contrast_draws()], uniform
    match: Tensor  # float32 [B, points.match_draws(n)], uniform
    failures: tuple[tuple[str, str], ...] = ()

    def _mapped(self, function: str, *args: object, **kwargs: object) -> Batch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {k: getattr(v, function)(*args, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> Batch:
        return self._mapped("pin_memory")

    def to(self, device: torch.device) -> Batch:
        return self if self.images.device == device else self._mapped("to", device, non_blocking=True)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        self._mapped("record_stream", stream)


def collate(samples: list[Batch]) -> Batch:
    """Join one-image batches along B."""

    def joined(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(s, name) for s in samples], dim=dim)

    return Batch(
        joined("images", 1),
        joined("maps", 1),
        joined("regions", 0),
        joined("color", 1),
        joined("contrast", 0),
        joined("match", 0),
        tuple(failure for s in samples for failure in s.failures),
    )


class ViewDataset(Dataset[Batch]):
    """(epoch, index) -> a Batch of one image. `subset` maps the index to a position in the image list."""

    def __init__(self, images: ImageList, subset: np.ndarray, config: Config) -> None:
        self.images = images
        self.subset = subset
        self.config = config
        self.match = config.objectives.match_view
        self.regions = Regions(config, images)
        self.groups = images.shards.samples[subset, 0] if images.shards else None
        self.stride = _stride(len(subset), self.groups)

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, key: Key) -> Batch:
        epoch, index = key
        failures: list[tuple[str, str]] = []
        for offset in range(min(len(self), SUBSTITUTES)):
            found = self.attempt(epoch, index, offset)
            if isinstance(found, Batch):
                return dataclasses.replace(found, failures=tuple(failures))
            failures.append((self.culprit(index, offset), found))
        raise PlrcError(
            f"{len(failures)} images in a row cannot be read, the last one "
            f"{printable(failures[-1][0])}: {failures[-1][1]}; "
            "plrc scan DIR looks at every image"
        )

    def name(self, index: int, offset: int = 0) -> str:
        """The relative name of an image, or of its `offset`-th substitute."""
        return self.images.names[self._position(index, offset)]

    def _position(self, index: int, offset: int) -> int:
        """Among many images, substitutes lie far apart: a damaged folder, of neighbours, must not end a run."""
        return int(self.subset[(index + offset * self.stride) % len(self)])

    def culprit(self, index: int, offset: int = 0) -> str:
        """What to name when an image cannot be read: itself, or its shard where that is the cause."""
        broken = self.images.shards.broken_shard(self._position(index, offset)) if self.images.shards else ""
        return broken or self.name(index, offset)

    def attempt(self, epoch: int, index: int, offset: int = 0) -> Batch | str:
        """One image, or its `offset`-th substitute with the random numbers of `index`; or why it cannot be read."""
        position = self._position(index, offset)
        try:
            regions = self.regions(position)
            image = self._image(position)
        except (RegionError, DecodeError) as error:
            return error.reason
        return self._sample(image, regions, epoch, index)

    def _image(self, position: int) -> Tensor:
        data, least = self.config.data, shorter_side(self.config.views)
        read = partial(self.images.decode, position, data, least)
        if not self.config.run.cache:
            return read()
        options = (data.rescale_percentiles, data.max_megapixels, least)
        return cached(self.config.run.cache, self.images.path(position), options, read)

    def _sample(self, image: Tensor, regions: Tensor, epoch: int, index: int) -> Batch:
        config, seed = self.config, self.config.seed
        height, width = image.shape[1:]
        crops = rng.generator(seed, "crops", epoch, index)
        views = draw_views(crops, height, width, config.views, self.match)
        color = rng.generator(seed, "colour", epoch, index).random((3, 1, DRAWS), dtype=np.float32)[: len(views)]
        uniform = rng.generator(seed, "points", epoch, index)
        contrast = uniform.random((1, contrast_draws()), dtype=np.float32)
        match = uniform.random((1, match_draws(config.objectives.distill_points)), dtype=np.float32)
        return Batch(
            torch.stack([render(image, view, config.views.size) for view in views])[:, None],
            torch.tensor([view.map for view in views], dtype=torch.float32)[:, None],
            regions[None],
            torch.from_numpy(color),
            torch.from_numpy(contrast),
            torch.from_numpy(match),
        )


def _stride(images: int, groups: np.ndarray | None) -> int:
    """From one substitute to the next. With shards (`groups`) into the next one, since a whole shard may be missing;
    else 1 where all images are tried, or the number from their golden section upwards whose multiples meet all."""
    if groups is not None:
        return int(np.unique(groups, return_counts=True)[1].max(initial=1))
    if images <= SUBSTITUTES:
        return 1
    return next(step for step in range(round(0.618 * images), images) if math.gcd(step, images) == 1)


class DeviceLoader:
    """Iterates over batches on the training device, one ahead of the computation, and measures the wait for data.

    Close the iterator where it is left early: that ends the loader processes.
    """

    def __init__(self, dataset: ViewDataset, sampler: StepSampler, workers: int, device: torch.device) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.workers = workers
        self.device = device
        self.waited = 0.0  # seconds spent waiting for the workers, in all

    def __iter__(self) -> Generator[Batch, None, None]:
        return self._ahead() if self.device.type == "cuda" else self._timed()

    def _timed(self) -> Generator[Batch, None, None]:
        pin_memory = self.device.type == "cuda"
        with load_batches(self.dataset, self.sampler, collate, self.workers, pin_memory) as batches:
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - started
                if batch is None:
                    return
                yield batch

    def _ahead(self) -> Generator[Batch, None, None]:
        """Copy the next batch on a stream of its own while the current one is computed on."""
        stream = torch.cuda.Stream(self.device)
        current: Batch | None = None
        with contextlib.closing(self._timed()) as host_batches:
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
