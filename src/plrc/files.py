"""Atomic files, JSON without nan, and locked folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK = "lock"
PARTIAL = re.compile(r"\..+\.\d+")  # names of the temporary files of `write_atomic`
NO_LOCK_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of file systems that do not support locks."""


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: afterwards, and after a crash, it has its old or its new content.

    The content is written to a temporary file in the same folder, flushed to the disk and renamed.

    Args:
        path: The file. Its folder is created if it does not exist.
        write: Called with the open temporary file.

    Raises:
        OSError: The file cannot be written; the old content is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")  # threads may write the same file
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Delete the temporary files that killed processes left below a folder. The caller must hold the folder's lock."""
    for path in folder.rglob(".*"):
        if PARTIAL.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def is_unused(folder: Path, *ignored: str) -> bool:
    """Return whether a folder is missing or empty.

    Args:
        folder: The folder. Temporary files that killed processes left in it do not count.
        ignored: Names of entries that do not count either.
    """
    if not folder.exists():
        return True
    return all(entry.name in ignored or PARTIAL.fullmatch(entry.name) for entry in folder.iterdir())


def damage(path: Path) -> str:
    """Describe what is wrong with a zip archive, such as a file of torch.save; empty if it is intact.

    Raises:
        PermissionError: The file may not be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except PermissionError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files
        return str(error) or type(error).__name__
    if record is None:
        return ""
    return f"the checksum of its record {record} is wrong"


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's content, without holding all of it in memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, with null for numbers that are not finite."""
    write_text(path, json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a file of JSON objects; the list is empty if the file does not exist."""
    return list(iterate_json_lines(path))


def iterate_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the complete lines of a file of JSON objects one after another; there is none if the file does not exist."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                yield parse_json(line)


def without_nan(value: Any) -> Any:
    """Copy nested dicts and lists, with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class FolderLock:
    """An exclusive lock on a folder, held through its file `lock`.

    The system releases the lock when the process ends, however it ends. Forked child processes do not hold it.
    """

    def __init__(self) -> None:
        self._lock: FileLock | None = None
        self._path: Path | None = None
        self._locked_file: os.stat_result | None = None

    def take(self, folder: Path) -> bool:
        """Try to lock a folder, which is created if it does not exist; returns whether the lock is now held.

        Raises:
            OSError: The folder cannot be written, or its file system does not support locks.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        # fallback_to_soft=False: without support for locks, a marker file would outlive a killed process
        lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._lock = lock
        self._path = path
        self._locked_file = path.stat()
        return True

    def check(self) -> None:
        """Raise OSError if the locked folder was removed, or if another folder has taken its place."""
        if self._path is None or self._locked_file is None:
            return
        if not self._path.exists() or not os.path.samestat(self._locked_file, self._path.stat()):
            raise OSError(errno.ENOENT, "the folder was removed or replaced while it was in use")

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None
        self._path = None
        self._locked_file = None


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Hold a `FolderLock` while the block runs.

    Yields:
        Whether the folder may be used: False if another process holds its lock. True on a file system without locks,
        where a warning is logged.
    """
    lock = FolderLock()
    is_free = True
    with _tolerating_no_locks(folder):
        is_free = lock.take(folder)
    try:
        yield is_free
    finally:
        lock.release()


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds a lock file, and hold it while the block runs.

    On a file system without locks, the block runs without the lock, and a warning is logged.

    Args:
        path: The lock file, in a folder that exists.
    """
    lock = FileLock(path, fallback_to_soft=False)
    with _tolerating_no_locks(path.parent):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def has_locks(folder: Path) -> bool:
    """Return whether the file system of a folder supports locks. The folder is created if it does not exist."""
    lock = FolderLock()
    try:
        lock.take(folder)
    except OSError as error:
        if error.errno not in NO_LOCK_ERRORS:
            raise
        return False
    finally:
        lock.release()
    return True


_devices_without_locks: set[int] = set()  # file systems for which this process has logged the warning


@contextlib.contextmanager
def _tolerating_no_locks(folder: Path) -> Iterator[None]:
    """Log a warning in place of the error that the file system of a folder has no locks, once for each file system."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCK_ERRORS:
            raise
        device = folder.stat().st_dev
        if device not in _devices_without_locks:
            _devices_without_locks.add(device)
            logger.warning("the file system of %s has no locks: do not start a second process in this folder", folder)
