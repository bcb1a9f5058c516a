"""The listing benchmark makes the names it says, and its second start walks through no folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks import listing

from plrc.config import DataConfig
from plrc.data import layouts
from plrc.data.decode import decode
from plrc.data.sources import find_images


def test_the_second_start_uses_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    walk = layouts.list_folder

    def counted(source: str, arrays: bool = False) -> layouts.Listing:
        listed = walk(source, arrays)
        walks.append(len(listed.names))
        return listed

    monkeypatch.setattr(layouts, "list_folder", counted)
    found = listing.run(files=2100, batch=4, workers=0)
    assert walks == [2100]  # the first start alone
    assert [(row["start"], row["part"]) for row in found.rows[:4]] == [
        ("first", "walk"),
        ("first", "write index"),
        ("second", "plan"),
        ("second", "first batch"),
    ]
    seconds = [row["seconds"] for row in found.rows]
    assert found.figures == {"first_seconds": sum(seconds[:2]), "second_seconds": sum(seconds[2:4])}
    assert found.settings == {"files": 2100, "batch": 4, "workers": 0}


def test_the_first_batch_is_a_batch_of_the_plan(tmp_path: Path) -> None:
    listing._make(tmp_path / "images", 30)
    plan = listing._plan(listing._config(tmp_path, 5, 0))
    assert len(plan.images) == 30
    batch = listing._first_batch(plan)
    assert batch.images.shape[1] == 5 and not batch.failures


def test_the_files_are_images_in_nested_folders(tmp_path: Path) -> None:
    listing._make(tmp_path / "images", 2100)
    images = find_images(DataConfig(source=str(tmp_path / "images")))
    assert len(images) == 2100 and not images.notes
    folders = [os.path.dirname(name) for name in images.names]
    assert sorted(set(folders)) == ["00/0000", "01/0001", "02/0002"]
    assert [folders.count(folder) for folder in sorted(set(folders))] == [1000, 1000, 100]
    assert decode(images.path(0)).shape == decode(images.path(2099)).shape == (3, 64, 64)
