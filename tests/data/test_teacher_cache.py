"""The cache of a frozen teacher's features: what comes back, what is damaged, what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from plrc.data.teacher_cache import LEVELS, TeacherCache, record_type, resize_whole
from plrc.errors import DataError


def features(seed: int, dim: int = 6, side: int = 4) -> torch.Tensor:
    return F.normalize(torch.randn(dim, side, side, generator=torch.Generator().manual_seed(seed)), dim=0)


def test_features_come_back_within_half_a_level_of_their_channel(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "new" / "a.features", 3, 6, 4)
    assert cache.missing(np.arange(3)).tolist() == [0, 1, 2]
    assert cache.read(1) is None
    cache.write(1, features(1))
    again = TeacherCache(tmp_path / "new" / "a.features", 3, 6, 4)
    assert again.missing(np.arange(3)).tolist() == [0, 2]
    read = again.read(1)
    assert read is not None and read.dtype == torch.float16
    half_level = features(1).abs().amax(dim=(1, 2), keepdim=True) / LEVELS / 2
    rounding_to_half_precision = 2**-11
    assert ((read.float() - features(1)).abs() <= half_level + rounding_to_half_precision).all()


def test_a_channel_of_zeros_comes_back(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "a.features", 1, 6, 4)
    given = features(1)
    given[2] = 0
    cache.write(0, given)
    read = cache.read(0)
    assert read is not None and (read[2] == 0).all() and torch.isfinite(read).all()
    assert cache.missing(np.arange(1)).tolist() == []


@pytest.mark.parametrize("offset", [0, 50, 96, 110])
def test_a_flipped_bit_anywhere_makes_a_record_missing(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "a.features"
    cache = TeacherCache(path, 2, 6, 4)
    for position in range(2):
        cache.write(position, features(position))
    data = bytearray(path.read_bytes())
    data[record_type(6, 4).itemsize + offset] ^= 16
    path.write_bytes(bytes(data))
    assert TeacherCache(path, 2, 6, 4).missing(np.arange(2)).tolist() == [1]


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    TeacherCache(tmp_path / "a.features", 2, 6, 4)
    with pytest.raises(DataError, match=r"is not the cache of these images; delete it"):
        TeacherCache(tmp_path / "a.features", 3, 6, 4)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the cache .*; name another teacher.cache"):
        TeacherCache(tmp_path / "file" / "a.features", 2, 6, 4)


def test_a_whole_image_is_resized_to_a_square() -> None:
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[:, :, 40:] = 200
    resized = resize_whole(image, 8)
    assert resized.shape == (3, 8, 8) and resized.dtype == torch.uint8
    assert (resized[:, :, :3] == 0).all() and (resized[:, :, 5:] == 200).all()
