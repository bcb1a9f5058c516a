"""Decoded images kept in files: the same numbers, no second decoding, and nothing stale or damaged is ever used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from plrc.config import Config
from plrc.data.cache import load_cached
from plrc.data.decode import decode
from plrc.data.loader import Batch, ViewDataset
from plrc.data.sources import find_images
from plrc.engine.setup import prepare
from plrc.errors import ConfigError
from plrc.scenes import write_scenes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", {"train": 3})
    return tmp_path / "scenes" / "train" / "images"


def dataset(config: Config, folder: Path) -> ViewDataset:
    images = find_images(config.with_values({"data.source": str(folder)}).data)
    return ViewDataset(images, np.arange(len(images.names)), config)


def test_batches_are_the_same_with_and_without(tiny: Callable[..., Config], folder: Path, tmp_path: Path) -> None:
    plain = dataset(tiny(), folder)
    kept = dataset(tiny().with_values({"run.cache": str(tmp_path / "cache")}), folder)
    for epoch in range(3):
        for index in range(3):
            for a, b in zip(vars(plain[epoch, index]).values(), vars(kept[epoch, index]).values(), strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3


def test_nothing_is_decoded_twice(tiny: Callable[..., Config], folder: Path, tmp_path: Path) -> None:
    images = dataset(tiny().with_values({"run.cache": str(tmp_path / "cache")}), folder)
    first = images[0, 0]
    path = Path(images.images.path(0))
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))  # no image any more, of the same size and time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = images[0, 0]
    assert isinstance(again, Batch)
    assert not again.failures
    assert torch.equal(first.images, again.images)


def test_a_changed_file_and_a_damaged_copy_are_read_again(folder: Path, tmp_path: Path) -> None:
    path, cache = next(folder.glob("*.jpg")), tmp_path / "cache"

    def read() -> torch.Tensor:
        return load_cached(str(cache), str(path), (), lambda: decode(path))

    expected = read()
    (copy,) = cache.rglob("*.npy")
    whole = copy.read_bytes()
    for damaged in (whole[:-100], whole[:20], b""):
        copy.write_bytes(damaged)
        assert torch.equal(read(), expected)
        assert copy.read_bytes() == whole
    read().zero_()
    assert torch.equal(read(), expected)
    other = next(p for p in folder.glob("*.jpg") if p != path)
    path.write_bytes(other.read_bytes())
    assert torch.equal(read(), decode(other))


def test_a_folder_that_cannot_be_written_is_one_sentence_at_the_start_and_no_end_of_a_run(
    folder: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    path = next(folder.glob("*.jpg"))
    (tmp_path / "file").write_text("in the way")
    cache = str(tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match=r"cannot write to run\.cache .*file/cache \(Not a directory\); name another"):
        prepare(tiny(run__cache=cache))
    assert not (tmp_path / "run").exists()
    assert torch.equal(load_cached(cache, str(path), (), lambda: decode(path)), decode(path))
