"""scan: counts, reasons, statistics, duplicates and the report."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plrc.config import DataConfig
from plrc.data.scan import ScanReport, scan
from plrc.data.sources import find_images
from plrc.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Seven usable files (two the same) and every kind of bad one."""
    rng = np.random.default_rng(0)

    def image(height: int, width: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    (tmp_path / "sub").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    image(30, 40).save(tmp_path / "a.jpg")
    image(30, 50).save(tmp_path / "turned.jpg", exif=exif)
    image(10, 20).save(tmp_path / "sub" / "png.jpg", "PNG")
    image(30, 40).convert("L").save(tmp_path / "gray.png")
    alpha = image(30, 40)
    alpha.putalpha(99)
    alpha.save(tmp_path / "alpha.webp")
    Image.fromarray(rng.integers(0, 4000, (60, 80), dtype=np.uint16)).save(tmp_path / "deep.tif")
    (tmp_path / "sub" / "copy.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>")
    image(200, 300).save(tmp_path / "large.png")
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    return tmp_path


def looked(folder: Path, workers: int = 2) -> ScanReport:
    return scan(DataConfig(source=str(folder), max_megapixels=0.05), workers)


def test_counts_reasons_and_statistics(mixed: Path) -> None:
    report = looked(mixed)
    assert (report.files, report.usable, report.excluded) == (11, 7, 0)
    assert dict(report.unusable) == {
        "cut.jpg": "the file is truncated",
        "empty.jpg": "the file is empty",
        "large.png": "300 x 200 = 0.06 megapixels is more than data.max_megapixels = 0.05",
        "text.jpg": "not an image that can be read (starts with b'<html>')",
    }
    assert report.width == (20, 40, 80)
    assert report.height == (10, 30, 60)
    assert report.megapixels == (0.0002, 0.0012, 0.0048)
    assert report.modes == {"RGB": 4, "RGBA": 1, "I;16": 1, "L": 1}
    assert report.formats == {"JPEG": 3, "PNG": 2, "WEBP": 1, "TIFF": 1}
    assert report.duplicates == (("a.jpg", "sub/copy.jpg"),)
    assert [note.split(":")[0] for note in report.notes] == [
        "images of more than 8 bits per channel, rescaled to 8 bits (data.rescale_percentiles), read",
        "folders named like an image, left out",
        "dangling links, left out",
    ]


def save_jpeg(**options: object) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "damaged"),
    [
        ({}, ["ended.jpg", "lost.jpg"]),
        ({"restart_marker_rows": 1}, ["ended.jpg"]),
    ],  # the latter is read on at the next mark
)
def test_a_jpeg_with_missing_data_inside_is_damaged(
    tmp_path: Path, options: dict[str, int], damaged: list[str]
) -> None:
    whole = save_jpeg(**options)
    half = len(whole) // 2
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "ended.jpg").write_bytes(whole[:half] + b"\xff\xd9")  # decoders take it for whole
    (tmp_path / "lost.jpg").write_bytes(whole[:half] + whole[half + 2000 :])
    (tmp_path / "behind.jpg").write_bytes(whole + bytes(3000))  # data behind the picture do no harm
    report = scan(DataConfig(source=str(tmp_path)), 1)
    reasons = dict(report.unusable)
    assert sorted(reasons) == damaged
    assert set(reasons.values()) == {"damaged JPEG data (pixels are missing)"}
    assert len(find_images(DataConfig(source=str(tmp_path)))) == 4 - len(damaged)  # the index leaves them out


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}])
def test_gray_pictures_are_not_taken_for_damaged(tmp_path: Path, mode: str, options: dict[str, int]) -> None:
    half = np.full((64, 90, 3), 128, dtype=np.uint8)
    half[:32] = np.random.default_rng(2).integers(0, 256, (32, 90, 3))
    if mode == "L":
        options = {key: value for key, value in options.items() if key != "subsampling"}
    Image.fromarray(half).convert(mode).save(tmp_path / "half.jpg", **options)
    Image.new(mode, (90, 64), {"RGB": (128, 128, 128), "L": 128, "CMYK": (0, 0, 0, 127)}[mode]).save(
        tmp_path / "all.jpg", **options
    )
    report = scan(DataConfig(source=str(tmp_path)), 1)
    assert (report.usable, report.unusable) == (2, ())


def test_the_number_of_threads_changes_nothing_and_a_second_scan_looks_again(mixed: Path) -> None:
    first = looked(mixed, workers=1)
    assert looked(mixed, workers=3) == first
    os.replace(mixed / "deep.tif", mixed / "text.jpg")
    assert looked(mixed).files == 10
    assert "text.jpg" not in dict(looked(mixed).unusable)


def test_report_as_text_and_as_json(mixed: Path) -> None:
    report = looked(mixed)
    text = report.table()
    for part in (
        str(mixed),
        "11, of which usable 7, unusable 4",
        "20 to 80, median 40",
        "cut.jpg: the file is truncated",
    ):
        assert part in text
    assert "a.jpg, sub/copy.jpg" in text
    assert json.loads(json.dumps(report.to_dict()))["unusable"][0] == ["cut.jpg", "the file is truncated"]


def test_progress_reaches_the_end(mixed: Path) -> None:
    calls: list[tuple[int, int]] = []
    for i in range(30):
        (mixed / f"copy{i}.jpg").write_bytes((mixed / "a.jpg").read_bytes())
    scan(DataConfig(source=str(mixed)), 2, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert len(calls) > 1
    assert calls[-1] == (41, 41)


def test_a_source_without_usable_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image in"):
        looked(tmp_path)
    assert os.listdir(tmp_path) == []
    (tmp_path / "a.jpg").touch()
    report = looked(tmp_path)
    assert (report.usable, report.width, report.modes) == (0, (0, 0, 0), {})
    assert "0 to 0" in report.table()


def test_bccd() -> None:
    root = os.environ.get("PLRC_DATA")
    if not root:
        pytest.skip("PLRC_DATA is not set: no real data")
    report = scan(DataConfig(source=str(Path(root) / "bccd" / "JPEGImages" / "*_0000*.jpg")), 2)
    assert report.usable == report.files == 10
    assert report.width == (640, 640, 640)
    assert report.height == (480, 480, 480)
    assert report.formats == {"JPEG": 10}
