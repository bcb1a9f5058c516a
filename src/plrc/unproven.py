"""A place for a file that is checked before it is moved to its name, for one process at a time."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from plrc.errors import ExportError
from plrc.files import NO_LOCK_ERRORS, FolderLock

LOCK_SECONDS = 600.0  # how long an export waits for another one to the same file
POLL_SECONDS = 0.1


@contextlib.contextmanager
def unproven_folder(file: Path) -> Iterator[Path]:
    """Wait until no other process exports to a file; gives an empty folder in which it is written until it is proven.

    Nothing is left of this folder afterwards, nor of one that a killed process left.

    Args:
        file: The file to be written. The folder lies next to it, so that what is written there can be moved.

    Returns:
        A context manager that gives the folder.

    Raises:
        ExportError: Another process has been writing the file for LOCK_SECONDS.
        OSError: The folder cannot be written.
    """
    folder = file.with_name(f".unproven.{file.name}")
    files = folder / "files"
    lock = FolderLock()
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while not _take(lock, folder):
            if time.monotonic() > deadline:
                raise ExportError(
                    f"another process has been writing {file} for {LOCK_SECONDS:.0f} s; repeat this later"
                )
            time.sleep(POLL_SECONDS)
    except OSError as error:
        if error.errno not in NO_LOCK_ERRORS:
            raise
    try:
        shutil.rmtree(files, ignore_errors=True)  # of a killed process
        files.mkdir(parents=True)
        yield files
    finally:
        shutil.rmtree(files, ignore_errors=True)
        # It holds only its lock now, which is still held: a waiting process creates the folder again.
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _take(lock: FolderLock, folder: Path) -> bool:
    try:
        return lock.take(folder)
    except FileNotFoundError:  # its holder has just removed the folder
        return False
