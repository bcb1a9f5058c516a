"""Where a result comes from: the commit of the checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from plrc.machine import commit


def test_commit_of_a_checkout_says_whether_files_differ(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert commit(tmp_path) == ""
    git("init")
    assert commit(tmp_path) == ""  # nothing committed yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "v1")  # a tag's name is not a commit
    head = git("rev-parse", "HEAD").strip()
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"
