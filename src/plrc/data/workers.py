"""Batches from loader processes: how the processes start and end, and how errors leave them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from plrc.errors import PlrcError, RunError

IMPORTS_SCRIPT = 76
"""Exit status of a process that started only to load images, and reached a call that trains."""
UNGUARDED = (
    "each loader process imports this script again, and reached its call of plrc as well; put the call below "
    '`if __name__ == "__main__":`, or set run.workers 0'
)

SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT")


@contextlib.contextmanager
def load_batches(
    dataset: Dataset[SampleT],
    batches: Iterable[list[Any]],
    collate: Callable[[list[SampleT]], BatchT],
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Iterator[BatchT]]:
    """Load batches in loader processes, which end with the `with` block at the latest.

    The loader processes ignore SIGTERM and SIGINT: a terminal or a scheduler signals the whole process group, and the
    main process decides when they end. Nothing is drawn from the global random state.

    Args:
        dataset: Gives one sample for a key.
        batches: The keys of each batch.
        collate: Makes a batch of its samples.
        workers: Number of loader processes; 0 loads in this process.
        pin_memory: Whether batches are copied into page-locked memory, for faster copies to a GPU.

    Returns:
        A context manager that gives an iterator over the batches.

    Raises:
        PlrcError: The iterator raises what the dataset raised in a loader process.
        RunError: A loader process reached `end_if_importing_main`.
    """
    loader: DataLoader[BatchT | PlrcError] = DataLoader(
        _BatchDataset(dataset, collate),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # otherwise the loader draws a seed from the global generator
        pin_memory=pin_memory,
        prefetch_factor=3 if workers else None,
        worker_init_fn=_ignore_signals,
    )
    try:
        iterator = iter(loader)
    except BrokenPipeError:  # a loader process ended before it had read what it should do
        raise RunError(UNGUARDED) from None
    try:
        yield _raise_errors(iterator)
    except RuntimeError:
        processes = getattr(iterator, "_workers", ())
        if any(process.exitcode == IMPORTS_SCRIPT for process in processes):
            raise RunError(UNGUARDED) from None
        raise
    finally:
        # Left to the garbage collector, PyTorch's queues may close first, and workers that ignore SIGTERM would stay.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def end_if_importing_main() -> None:
    """End this process if it was just started by another one and still imports the user's script.

    On systems without fork, each new process imports the script first. Without the guard `if __name__ == "__main__":`
    it would train, too. Call this first in every function that starts processes.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(IMPORTS_SCRIPT)


class _BatchDataset(Dataset[BatchT | PlrcError], Generic[SampleT, BatchT]):
    """The keys of a batch -> the batch. Errors are returned, not raised: DataLoader would turn them into a traceback
    string."""

    def __init__(self, dataset: Dataset[SampleT], collate: Callable[[list[SampleT]], BatchT]) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, keys: list[Any]) -> BatchT | PlrcError:
        try:
            return self.collate([self.dataset[key] for key in keys])
        except PlrcError as error:
            return error


def _raise_errors(batches: Iterator[BatchT | PlrcError]) -> Iterator[BatchT]:
    for batch in batches:
        if isinstance(batch, PlrcError):
            raise batch
        yield batch


def _unchanged(batch: BatchT | PlrcError) -> BatchT | PlrcError:
    return batch


def _ignore_signals(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
