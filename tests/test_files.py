"""Files that are written atomically, and folders that can be used."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from plrc.files import PARTIAL, is_unused, write_atomic


def test_two_threads_may_write_the_same_file(tmp_path: Path) -> None:
    """The file is one of the two, whole, and nothing else is left."""
    path = tmp_path / "index.json"
    both_have_begun = threading.Barrier(2, timeout=60)

    def write(content: bytes) -> None:
        def write_content(file: BinaryIO) -> None:
            file.write(content[:1])
            both_have_begun.wait()
            assert [PARTIAL.fullmatch(name.name) is not None for name in tmp_path.iterdir()].count(True) == 2
            both_have_begun.wait()
            file.write(content[1:])

        write_atomic(path, write_content)

    contents = [b"a" * 5000, b"b" * 9000]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_does_not_make_a_folder_used(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert is_unused(folder)
    folder.mkdir()
    (folder / ".config.toml.4711").touch()
    (folder / "lock").touch()
    assert is_unused(folder, "lock") and not is_unused(folder)
    (folder / ".hidden").touch()
    assert not is_unused(folder, "lock")
