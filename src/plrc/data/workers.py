"""Loader processes: how they start, how they end, and how errors travel out of them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")


@contextlib.contextmanager
def loading(loader: DataLoader[T]) -> Iterator[Iterator[T]]:
    """The batches of a loader whose workers leave signals to the main process; they end with the block at the latest.

    Left to the garbage collector, PyTorch's queues may close first, and workers that are deaf to SIGTERM would stay.
    """
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        getattr(iterator, "_shutdown_workers", lambda: None)()


def leave_signals_to_the_main_process(worker: int) -> None:
    """A terminal or a scheduler signals the whole process group; a loader that died of it would take the run along."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
