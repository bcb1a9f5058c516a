"""`plrc regions`: pictures, measures and id maps from the command line; every error is a sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plrc.cli import main

Capture = pytest.CaptureFixture[str]


def output_of(capsys: Capture, *arguments: object) -> str:
    """What a successful call prints; nothing else may be printed."""
    capsys.readouterr()
    assert main(["regions", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("prewiev", "there is no task 'prewiev'; did you mean plrc regions preview?"),
        ("preview --data x", "plrc regions preview needs --out PATH; see"),
        ("preview --out a.png", "data.source is empty; name a folder"),
        ("preview --data absent --out a.png", "absent does not exist"),
        ("preview --out a.png --images 0", "--images must be >= 1, got 0"),
        ("preview --out a.png --regions.sorce slic", "unknown option --regions.sorce; did you mean --regions.source?"),
        ("preview --out a.png --regions.source tiles", "--regions.source: invalid choice: 'tiles' (choose from "),
        ("quality --data x", "plrc regions quality needs --truth STR; see"),
        (
            "quality --truth x --regions.source coco",
            "regions.source coco needs regions.maps: the COCO file with the masks",
        ),
        ("precompute --out maps --workers -1", "--workers must be >= 0, got -1"),
        ("precompute --out maps --data.held-out 3", "unknown option --data.held-out"),
        ("precompute --out maps --regions.reassign 2", "regions.reassign must be between 0 and 1, got 2.0"),
    ],
)
def test_an_error_is_one_sentence(
    arguments: str, sentence: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["regions", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"plrc: .+\n", err)
    assert sentence in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["preview", "quality", "precompute"])
def test_each_task_explains_itself(task: str, capsys: Capture) -> None:
    out = output_of(capsys, task, "--help")
    assert "cells per side (paper: 4" in out
    assert re.search(r"--data( STR)?, --data.source STR|--data STR", out)  # Python 3.13 writes the type once
    assert "held" not in out


def test_a_sheet_of_some_images(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("sheet.png", "sheet.jpg"):
        out = output_of(capsys, "preview", "--data", scenes, "--regions.source", "slic", "--out", tmp_path / name)
        assert out == f"12 images drawn: {tmp_path / name}\n"
        with Image.open(tmp_path / name) as sheet:
            assert sheet.size == (4 * 264 + 8, 3 * 278 + 8)
    assert main(["regions", "preview", "--data", str(scenes), "--out", str(tmp_path / "a.gif")]) == 2
    assert "let it end in .png or .jpg, or name a folder" in capsys.readouterr().err


def test_a_picture_of_each_image(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    """Beside the images, whose names it never takes; an image that cannot be read is named."""
    photos = tmp_path / "photos"
    shutil.copytree(scenes, photos / "a")
    (photos / "a" / "000000.jpg").write_bytes(b"broken")
    arguments = ["--data", photos, "--out", photos, "--images", "6", "--regions.source", "boxes"]
    first, second = output_of(capsys, "preview", *arguments).splitlines()
    assert first == f"5 images drawn: {photos}"
    assert second.startswith("left out a/000000.jpg: not an image")
    drawn = sorted(path.name for path in photos.rglob("*.png"))
    assert drawn == [f"{index:06d}.regions.png" for index in (8, 16, 24, 32, 40)]
    for path in (photos / "a").glob("*.jpg"):
        path.write_bytes(b"broken")
    assert main(["regions", "preview", "--data", str(photos / "a" / "*.jpg"), "--out", str(tmp_path / "a.png")]) == 2
    assert "none of the 12 images can be drawn; the first, 000000.jpg: not an image" in capsys.readouterr().err


def test_the_measures(scenes: Path, capsys: Capture) -> None:
    truth = scenes.parent / "annotations.json"
    arguments = ["--data", scenes, "--truth", truth, "--images", "8"]
    perfect = output_of(capsys, "quality", *arguments, "--regions.source", "coco", "--regions.maps", truth)
    lines = [line.split(maxsplit=2) for line in perfect.splitlines()]
    assert " ".join(lines[0]) == "images 8, and 0 without objects, which do not count"
    assert "mean best IoU  1.000" in perfect
    assert "same object    1.000 of the pairs of one region" in perfect
    grid = output_of(capsys, "quality", *arguments, "--regions.grid", "2")
    assert re.search(r"^regions +4\.0 per image$", grid, re.MULTILINE)
    assert float(re.findall(r"mean best IoU +(\S+)", grid)[0]) < 0.5


def test_maps_in_advance_and_again(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--data", scenes, "--out", tmp_path, "--workers", "1", "--regions.source", "voronoi", "--seed", "3"]
    assert "0 id maps were there, 48 to do" in output_of(capsys, "precompute", *arguments)
    assert "48 id maps were there, 0 to do" in output_of(capsys, "precompute", *arguments)
    assert main(["regions", "precompute", *map(str, arguments[:-1]), "4"]) == 2
    assert "(seed: stored 3, now 4); name another --out" in capsys.readouterr().err
    with Image.open(tmp_path / "000000.png") as image:
        ids = np.asarray(image)
    assert ids.dtype == np.uint16
    assert set(np.unique(ids).tolist()) == set(range(1, 17))
