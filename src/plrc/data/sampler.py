"""Which images make up each step: a function of (seed, step) alone, so that a resume needs only its position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plrc import rng

WINDOW = 64  # shards whose images are shuffled together

Key = tuple[int, int]  # (epoch, index of the image)


@dataclass(frozen=True)
class StepSampler:
    """The keys of every part of every step from `start` to `stop` (in steps), for one process.

    Each epoch is a fresh permutation; its tail below one global batch is dropped (another one each epoch). `groups`:
    the shard of each image, where there are shards; see `epoch_order`.
    """

    images: int
    batch_size: int
    gradient_accumulation_steps: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world_size: int = 1
    groups: np.ndarray | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    def __len__(self) -> int:
        return (self.stop - self.start) * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[Key]]:
        part = self.batch_size // self.gradient_accumulation_steps
        local = part // self.world_size
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = epoch_order(self.images, self.seed, epoch, self.groups)
                order_epoch = epoch
            for offset in range(0, self.batch_size, part):
                first = position * self.batch_size + offset + self.rank * local
                yield [(epoch, int(index)) for index in order[first : first + local]]


def epoch_order(images: int, seed: int, epoch: int, groups: np.ndarray | None = None) -> np.ndarray:
    """A permutation of the images. With `groups` (ascending): of WINDOW shards at a time, which are drawn anew each
    epoch, so that reads stay within few shards."""
    draw = rng.generator(seed, "order", epoch)
    if groups is None:
        return draw.permutation(images)
    shards = np.split(np.arange(images), np.flatnonzero(np.diff(groups)) + 1)
    drawn = [shards[i] for i in draw.permutation(len(shards))]
    return np.concatenate(
        [draw.permutation(np.concatenate(drawn[i : i + WINDOW])) for i in range(0, len(drawn), WINDOW)]
    )


def split_held_out(images: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, held out): sorted positions; at most a tenth of the images is held out for the health report."""
    order = rng.generator(seed, "held_out").permutation(images)
    count = min(held_out, images // 10)
    return np.sort(order[count:]), np.sort(order[:count])
