"""Batches from loader processes: how the processes start and end, and how errors leave them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import connection
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from plrc.errors import PlrcError, RunError
from plrc.text import printable

IMPORTS_SCRIPT = 76
"""Exit status of a process that imports the script of the process that started it, and reached a call of plrc."""
UNGUARDED = (
    "each new process imports this script again, and reached its call of plrc as well; put the call below "
    '`if __name__ == "__main__":`, or start no process (run.workers 0, and processes=1 for a comparison)'
)

_DEATH_SECONDS = 30.0  # a process that crashes may close its pipe long before it ends
_SENDING_SECONDS = 5.0  # without data, after which everything was sent
_NOTE_BYTES = 1024  # for the name of the file that a loader process reads

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
        RunError: A loader process crashed, was killed, or reached `end_if_importing_main`.
    """
    notes = _Notes(workers)
    loader: DataLoader[BatchT | PlrcError] = DataLoader(
        _BatchDataset(dataset, collate),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # otherwise the loader draws a seed from the global generator
        pin_memory=pin_memory,
        prefetch_factor=3 if workers else None,
        worker_init_fn=partial(_start_worker, notes),
    )
    try:
        iterator = iter(loader)
    except (ConnectionError, EOFError):  # a loader process ended before it had read what it should do
        raise RunError(UNGUARDED) from None
    try:
        yield _raise_errors(iterator)
    except (EOFError, OSError, RuntimeError):  # what reading from a process that has just died raises
        processes = {process.sentinel: process for process in getattr(iterator, "_workers", ())}
        for sentinel in connection.wait(list(processes), timeout=_DEATH_SECONDS):
            processes[sentinel].join(_DEATH_SECONDS)  # it has closed its files, and gets its exit status a little later
        raise
    finally:
        death = _describe_death(getattr(iterator, "_workers", ()), notes)
        # Left to the garbage collector, PyTorch's queues may close first, and workers that ignore SIGTERM would stay.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            try:
                shutdown()
            except RuntimeError:  # another process has died meanwhile; the first death is what counts
                if not death:
                    raise
        if death:  # PyTorch's error, which names no image, may be raised anywhere in the `with` block
            raise RunError(death) from None


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Note the file that a loader process reads, so that it can be named if its decoder crashes the process.

    Args:
        name: The file, as messages name it.
    """
    note = _ThisProcess.note
    if note is None:
        yield
        return
    note(name)
    try:
        yield
    finally:
        note("")


def describe_killed(cause: str, name: str = "") -> str:
    """Describe the end of a loader process that was killed.

    Args:
        cause: How it ended, such as SIGKILL.
        name: The file that it was reading; may be empty.
    """
    where = f" while it was reading {printable(name)}" if name else ""
    return (
        f"a loader process was killed{where}, usually because memory ran out ({cause}); "
        "resume with --resume and a lower --run.workers"
    )


def end_if_importing_main() -> None:
    """End this process if it was just started by another one and still imports the user's script.

    On systems without fork, each new process imports the script first. Without the guard `if __name__ == "__main__":`
    it would train, too. Call this first in every function that starts processes.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        _read_what_is_sent()
        sys.exit(IMPORTS_SCRIPT)


def _read_what_is_sent() -> None:
    """Read what the parent process still sends to this new process.

    With `spawn` on POSIX, the parent holds both ends of the pipe and would wait forever for the rest to be read, even
    though this process has ended.
    """
    pipe = re.search(r"pipe_handle=(\d+)", " ".join(sys.orig_argv))
    if os.name != "posix" or pipe is None:
        return
    handle = int(pipe[1])
    while select.select([handle], [], [], _SENDING_SECONDS)[0]:
        if not os.read(handle, 1 << 20):
            return  # the parent has ended


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


class _Notes:
    """The file that each loader process reads, in memory that outlives the processes."""

    def __init__(self, workers: int) -> None:
        self._memory = multiprocessing.RawArray("c", max(1, workers) * _NOTE_BYTES)

    def write(self, worker: int, name: str) -> None:
        """Set the file that a loader process reads; empty: none."""
        text = os.fsencode(name)[:_NOTE_BYTES]
        self._memory[worker * _NOTE_BYTES : (worker + 1) * _NOTE_BYTES] = text.ljust(_NOTE_BYTES, b"\0")

    def read(self, worker: int) -> str:
        """Return the file that a loader process reads, or was reading when it ended."""
        text: bytes = self._memory[worker * _NOTE_BYTES : (worker + 1) * _NOTE_BYTES]
        return os.fsdecode(text.rstrip(b"\0"))


class _ThisProcess:
    """The function that writes the note of this loader process; None in other processes."""

    note: ClassVar[Callable[[str], None] | None] = None


def _start_worker(notes: _Notes, worker: int) -> None:
    _ThisProcess.note = partial(notes.write, worker)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _describe_death(processes: Sequence[Any], notes: _Notes) -> str:
    """Describe how the first loader process that did not end as it should has ended; empty if there is none."""
    for worker, process in enumerate(processes):
        status = process.exitcode
        if not status:
            continue
        name = notes.read(worker)
        if status == IMPORTS_SCRIPT:
            return UNGUARDED
        cause = f"status {status}"
        if status < 0:
            cause = signal.Signals(-status).name
        if not name or cause == "SIGKILL":
            return describe_killed(cause, name)
        return (
            f"a loader process crashed ({cause}) while it was reading {printable(name)}: "
            "remove or replace this file, then resume with --resume"
        )
    return ""
