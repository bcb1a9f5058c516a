"""Files that appear whole or not at all, and folders that are one process's own. Layer 0: imports nothing of ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

LOCK = "lock"
PARTIAL = re.compile(r"\..+\.\d+")  # the names that `write_atomic` writes under

_locks: set[TextIO] = set()  # held by this process


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write to a neighbour file, flush it to the disk, then rename: the path holds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Delete what killed processes left of `write_atomic` below a folder. Only for whoever holds its lock."""
    for path in folder.rglob(".*"):
        if PARTIAL.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def damage(path: Path) -> str:
    """What is wrong with a zip archive, such as a torch file: cut short, a checksum that does not fit; else empty.

    Raises PermissionError, which is no damage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except PermissionError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files
        return str(error) or type(error).__name__
    return f"the checksum of its record {record} is wrong" if record else ""


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for text, in UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """`write_atomic` for JSON, which has no nan: see `without_nan`."""
    write_text(path, json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError where it is none, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def without_nan(value: Any) -> Any:
    """A copy of nested dicts and lists with None, JSON's null, for every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class FolderLock:
    """What makes a folder one process's own: an exclusive lock on its file `lock`.

    The end of the process, however it comes, gives it back; processes that it has forked do not keep it.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.file: TextIO | None = None

    def take(self, folder: Path) -> bool:
        """Whether the folder, which is made where there is none, is ours now. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOCK
        file = open(self.path, "w")  # noqa: SIM115 - open is locked
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if isinstance(error, BlockingIOError):
                return False
            raise
        self.file = file
        _locks.add(file)
        return True

    def check(self) -> None:
        """Raises OSError where the folder that was taken is gone, or another one has its name."""
        if self.file is None or self.path is None:
            return
        if not self.path.exists() or not os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
            raise OSError(errno.ENOENT, "the folder was removed or replaced while it was in use")

    def release(self) -> None:
        if self.file is not None:
            _locks.discard(self.file)
            self.file.close()
            self.file = None


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours until the block ends (`FolderLock`)."""
    lock = FolderLock()
    try:
        yield lock.take(folder)
    finally:
        lock.release()


def _forget_locks() -> None:
    for file in _locks:
        file.close()
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)
