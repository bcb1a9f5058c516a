"""What the loader's benchmark measures: every stage over every image, on JPEGs like photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import loader
from benchmarks.photographs import DISTINCT, photograph, write_photographs

from plrc.data import photometric
from plrc.data.decode import decode, decode_bytes
from plrc.errors import PlrcError


def test_the_figures_are_those_of_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, augmented = list[str](), list[int]()
    monkeypatch.setattr(loader, "decode", lambda path: (decoded.append(path), decode(path)))
    real = photometric.augment
    monkeypatch.setattr(photometric, "augment", lambda i, *rest: (augmented.append(len(i)), real(i, *rest))[1])
    torch.set_num_threads(2)
    try:
        found = loader.run(images=5, height=48, width=64, size=32, batch=2, repeats=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(decoded) == 3 * 5 and len(set(decoded)) == 5  # a warm-up and two repeats
    assert augmented == 3 * [3 * 2, 3 * 2, 3 * 1]  # three views of each image
    rates = {row["stage"]: row["images_per_second"] for row in found.rows}
    assert list(rates) == ["decode", "crops", "cached", "images"]
    assert all(row["milliseconds"] == pytest.approx(1000 / row["images_per_second"]) for row in found.rows)
    assert found.figures == {
        "images_per_second_per_core": rates["images"],
        "crops_per_second_per_core": rates["crops"],
        "cached_crops_per_second_per_core": rates["cached"],
        "decode_per_second_per_core": rates["decode"],
        "crops_of_decode": rates["crops"] / rates["decode"],
        "images_of_decode": rates["images"] / rates["decode"],
    }


@pytest.mark.parametrize("name", ["images", "batch", "repeats"])
def test_zero_sizes_are_refused(name: str) -> None:
    with pytest.raises(PlrcError, match=r"must be >= 1, got .*0"):
        loader.run(**{"images": 1, "height": 32, "width": 32, "size": 32, name: 0})


def test_a_photograph_has_the_size_of_one() -> None:
    data = photograph(0)
    assert decode_bytes(data).shape == (3, 480, 640)
    assert 60_000 < len(data) < 180_000  # COCO's 640 x 480 images: 100 kB at this quality, 176 kB as they come


def test_a_folder_of_photographs_repeats_the_first_ones(tmp_path: Path) -> None:
    write_photographs(tmp_path / "new", DISTINCT + 2, 32, 48)
    files = sorted((tmp_path / "new").iterdir())
    contents = [path.read_bytes() for path in files]
    assert len(files) == DISTINCT + 2 and len(set(contents)) == DISTINCT
    assert contents[DISTINCT:] == contents[:2]
