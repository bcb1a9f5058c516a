"""Hashes of what images show: near-duplicates have similar ones, other scenes have not; each file is hashed once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plrc.config import DataConfig
from plrc.data import hash_files as module
from plrc.data.decode import decode_bytes
from plrc.data.hash_files import hash_files
from plrc.data.image_hash import MIN_SIDE, SIMILAR_BITS, find_similar, hash_image, is_plain, nearest
from plrc.data.index import cache_file
from plrc.data.scan import scan
from plrc.data.sources import ImageList


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scene(seed: int, side: int = 128) -> Image.Image:
    """A picture of large soft patches of color."""
    patches = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side * 3 // 2, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def hash_of(data: bytes, min_side: int = 0) -> np.ndarray:
    return hash_image(decode_bytes(data, min_side=min_side))


def differing(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.unpackbits(first ^ second).sum())


@pytest.mark.parametrize("seed", range(3))
def test_a_hash_survives_compression_and_scaling(seed: int) -> None:
    image = scene(seed, side=480)
    original = hash_of(encoded(image, "PNG"))
    others = [
        hash_of(encoded(image, "JPEG", quality=40)),
        hash_of(encoded(image, "JPEG", quality=75), MIN_SIDE),  # decoded at a smaller size
        hash_of(encoded(image.resize((240, 160)), "WEBP")),
        hash_of(encoded(image.resize((1000, 700)), "JPEG")),
        hash_of(encoded(image.point(lambda value: min(255, value * 1.1)), "PNG")),
    ]
    assert max(differing(original, other) for other in others) <= SIMILAR_BITS


def test_other_scenes_have_other_hashes() -> None:
    hashes = np.stack([hash_of(encoded(scene(seed), "PNG")) for seed in range(60)])
    distances = [differing(first, second) for i, first in enumerate(hashes) for second in hashes[:i]]
    assert min(distances) > 2 * SIMILAR_BITS
    assert find_similar([str(i) for i in range(60)], hashes) == []


def test_nearest_equals_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plrc.data.image_hash._BLOCK", 64)  # a few rows at a time
    numbers = np.random.default_rng(0)
    first = numbers.integers(0, 256, (23, 32), dtype=np.uint8)
    second = numbers.integers(0, 256, (17, 32), dtype=np.uint8)
    table = np.array([[differing(a, b) for b in second] for a in first])
    positions, bits = nearest(first, second)
    assert (bits == table.min(axis=1)).all() and (table[range(23), positions] == bits).all()
    within = np.array([[999 if i == j else differing(a, b) for j, b in enumerate(first)] for i, a in enumerate(first)])
    positions, bits = nearest(first)
    assert (bits == within.min(axis=1)).all() and (within[range(23), positions] == bits).all()


def test_plain_images_are_not_compared() -> None:
    black = hash_image(torch.zeros(3, 40, 60, dtype=torch.uint8))
    ramp = hash_image(torch.arange(240, dtype=torch.uint8).repeat(3, 40, 1))
    hashes = np.stack([black, black, ramp, ramp])
    assert is_plain(hashes).all() and find_similar(["a", "b", "c", "d"], hashes) == []


def test_images_of_other_channels_have_a_hash() -> None:
    pixels = torch.from_numpy(np.array(scene(0))).permute(2, 0, 1)
    gray = pixels.float().mean(dim=0).to(torch.uint8)
    assert differing(hash_image(gray.repeat(5, 1, 1)), hash_image(gray[None])) == 0
    assert differing(hash_image(gray[None]), hash_image(gray.repeat(3, 1, 1))) == 0


def test_a_file_is_hashed_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    monkeypatch.setattr(module, "hash_image", lambda pixels: hashed.append(1) or hash_image(pixels))  # type: ignore[func-returns-value]
    root = tmp_path / "images"
    root.mkdir()
    for i in range(4):
        scene(i).save(root / f"{i}.png")
    (root / "3.png").write_bytes(b"damaged")
    images = ImageList(str(root), tuple(f"{i}.png" for i in range(5)), "list")  # 4.png does not exist
    positions, hashes = hash_files(images, range(5), 3)
    assert positions == [0, 1, 2] and len(hashed) == 3
    again = hash_files(images, [2, 0], 3)
    assert again[0] == [2, 0] and (again[1] == hashes[[2, 0]]).all() and len(hashed) == 3
    scene(7, side=100).save(root / "1.png")
    assert differing(hash_files(images, [1], 3)[1][0], hashes[1]) > SIMILAR_BITS and len(hashed) == 4
    cache_file("hashes-3", str(root)).write_text('{"0.png": [1, 2, "zz"]}')
    assert len(hash_files(images, [0], 3)[0]) == 1 and len(hashed) == 5


def test_a_file_has_a_hash_for_each_number_of_channels(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    bands = np.concatenate([np.asarray(scene(0)), np.asarray(scene(1))[:, :, :1]], axis=2)
    Image.fromarray(bands).save(root / "0.png")  # RGB blends with white by the fourth channel
    images = ImageList(str(root), ("0.png",), "list")
    for channels in (3, 4, 3):
        expected = hash_image(decode_bytes((root / "0.png").read_bytes(), channels=channels))
        assert differing(hash_files(images, [0], channels)[1][0], expected) == 0
    four, three = (hash_files(images, [0], channels)[1][0] for channels in (4, 3))
    assert differing(four, three) > 0


def test_scan_counts_images_that_look_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for i in range(6):
        scene(i).save(root / f"{i}.png")
    scene(0).save(root / "again.jpg", quality=60)
    (root / "copy.png").write_bytes((root / "2.png").read_bytes())
    report = scan(DataConfig(source=str(root)))
    assert (report.similar, report.similar_of) == (2, 7)
    assert report.similar_pairs == (("0.png", "again.jpg"),)
    assert "similar     2 of 7 images look almost like another\n" in report.table()
    assert "alike       0.png, again.jpg\n" in report.table()
    monkeypatch.setattr(ImageList, "decode", None)  # what the scan has hashed is not decoded again
    assert len(hash_files(ImageList(str(root), ("0.png", "again.jpg"), "list"), [0, 1], 3)[0]) == 2
