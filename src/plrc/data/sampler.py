"""Which images make up each step: a function of the seed and the step, so that resuming needs only the position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plrc import rng
from plrc.data.groups import draw_held_out

SHUFFLE_WINDOW = 64
"""Shards whose images are shuffled together."""

SampleKey = tuple[int, int]
"""(epoch, index of the image)."""


@dataclass(frozen=True)
class StepSampler:
    """Iterates over the keys of each micro-batch of each step, for one process.

    Each epoch is a new permutation of the images. The images left over at its end, fewer than a batch, are dropped.

    Attributes:
        num_images: Number of images.
        batch_size: Images per step, over all micro-batches and processes.
        gradient_accumulation_steps: Micro-batches per step.
        seed: Seed of the permutations.
        start: First step.
        stop: Step after the last one.
        rank: Number of this process.
        world_size: Number of processes.
        groups: The shard of each image, ascending, if the images lie in shards; see `epoch_order`.
    """

    num_images: int
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
        return self.num_images // self.batch_size

    def __len__(self) -> int:
        return (self.stop - self.start) * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        micro_batch = self.batch_size // self.gradient_accumulation_steps
        local = micro_batch // self.world_size
        order = np.empty(0, dtype=np.int64)
        order_epoch = -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = epoch_order(self.num_images, self.seed, epoch, self.groups)
                order_epoch = epoch
            for offset in range(0, self.batch_size, micro_batch):
                first = position * self.batch_size + offset + self.rank * local
                yield [(epoch, int(index)) for index in order[first : first + local]]


def epoch_order(num_images: int, seed: int, epoch: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Draw the order of the images in an epoch.

    Args:
        num_images: Number of images.
        seed: Seed of the run.
        epoch: Number of the epoch.
        groups: The shard of each image, ascending. The images of SHUFFLE_WINDOW shards, drawn anew for each epoch, are
            then shuffled together, so that reads stay within few shards. None: all images are shuffled together.

    Returns:
        A permutation of 0 ... num_images - 1.
    """
    draw = rng.generator(seed, "order", epoch)
    if groups is None:
        return draw.permutation(num_images)
    shards = np.split(np.arange(num_images), np.flatnonzero(np.diff(groups)) + 1)
    drawn = [shards[i] for i in draw.permutation(len(shards))]
    windows = [np.concatenate(drawn[i : i + SHUFFLE_WINDOW]) for i in range(0, len(drawn), SHUFFLE_WINDOW)]
    return np.concatenate([draw.permutation(window) for window in windows])


def split_held_out(groups: Sequence[str], held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the images that are held out for the health report; a group is held out as a whole or not at all.

    Args:
        groups: The group of each image (`groups.group_names`).
        held_out: How many to hold out; never more than a tenth of the images.
        seed: Seed of the run.

    Returns:
        Sorted positions of the training images and of the held-out images.
    """
    most = len(groups) // 10
    drawn = draw_held_out(groups, min(held_out, most), most, seed)
    return np.setdiff1d(np.arange(len(groups)), drawn), drawn
