"""Images and their label maps are paired by their names; any names and contents end in pairs, counts or a sentence."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.transfer.sources import blank, names, read, save

from plrc.errors import DataError, PlrcError
from plrc.transfer.labels.splits import Splits

QUICK = settings(max_examples=25, deadline=4000, suppress_health_check=[HealthCheck.too_slow])
IDS = [[0, 1, 1, 2]]


def pairs(root: Path, images: list[str], maps: list[str]) -> Path:
    """The same names in the splits train and val."""
    for split in ("train", "val"):
        for name in images:
            blank(root / "images" / split / name, 1, 4)
        for name in maps:
            save(root / "labels" / split / name, IDS)
    return root


def read_or_refusal(source: Path) -> Splits | str:
    try:
        return read(source, "semantic", val="none")
    except PlrcError as error:
        return str(error)


@pytest.mark.parametrize(
    ("images", "maps", "ends"),
    [
        (["a.jpg", "b.png"], ["a.png", "b.tif"], ""),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg.png", "a.png.png", "b.png"], ""),
        (["a.jpg", "b.jpg"], ["a_mask.png", "b_mask.png"], "nothing after images and _mask"),
        (["a_1.jpg", "a_2.jpg"], ["a_1_mask.png", "a_2_mask.png"], "nothing after images and _mask"),
        (["x/a.jpg", "x-a.jpg"], ["x/a-seg.png", "x-a-seg.png"], "nothing after images and -seg"),
        (
            ["a_leftImg8bit.png", "b_leftImg8bit.png"],
            ["a_gtFine_labelIds.png", "b_gtFine_labelIds.png"],
            "_leftImg8bit after images and _gtFine_labelIds",
        ),
        (["1_sat.jpg", "2_sat.jpg"], ["1.png", "2.png"], "_sat after images and nothing"),
    ],
)
def test_names_that_pair(images: list[str], maps: list[str], ends: str, tmp_path: Path) -> None:
    splits = read(pairs(tmp_path, images, maps), "semantic", val="none")
    assert [image.name for image in splits.test.images] == sorted(f"images/val/{name}" for name in images)
    used = [Path(image.id_map).name for image in splits.test.images]
    assert sorted(used) == sorted(Path(name).name for name in maps)
    lines = [line for line in splits.reading.lines() if line.startswith("images and label maps are paired")]
    expected = f"images and label maps are paired by the names before an ending: {ends} after label maps"
    assert lines == ([expected] if ends else [])


def test_an_image_without_an_ending_has_a_label_map(tmp_path: Path) -> None:
    root = pairs(tmp_path, ["a.jpg", "b.jpg"], ["a.png", "b.png"])
    (root / "images" / "val" / "a.jpg").rename(root / "images" / "val" / "a")
    assert names(read(root, "semantic", val="none").test) == ["a", "b"]


def test_what_has_no_partner_is_counted(tmp_path: Path) -> None:
    source = pairs(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["a_mask.png", "b_mask.png", "d_mask.png"])
    splits = read(source, "semantic", val="none")
    assert names(splits.test) == ["a", "b"]
    assert "images without a label map, dropped: 1 (c.jpg)" in splits.reading.lines()
    assert "label maps without an image, dropped: 1 (d_mask.png)" in splits.reading.lines()


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        (["a.jpg", "a.png"], ["a.png"], r"a.png fits the images a.jpg, a.png; name a label map like .*, a.jpg.png, or"),
        (["a.jpg"], ["a.png", "a.tif"], r"a.png and .*a.tif are both label maps of a.jpg; remove one of them"),
        (
            ["a.jpg", "b.jpg"],
            ["a_color.png", "a_ids.png", "b_color.png", "b_ids.png"],
            r"labels/train has several files for each image, which end in _color, _ids; keep the kind that holds the",
        ),
        (["x_1.jpg"], ["x_2.png"], r"images without a label map, dropped: 1 \(x_1.jpg\); label maps without an image"),
    ],
)
def test_names_that_fit_several_partners_or_none(
    images: list[str], maps: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read(pairs(tmp_path, images, maps), "semantic")


NAME = st.tuples(
    st.sampled_from(["a", "b", "a_1", "a-b", "x/a", "a.b"]),
    st.sampled_from(["", "_mask", "_1", " seg", "_sat"]),
    st.sampled_from([".png", ".tif", ".bmp"]),
).map("".join)


@QUICK
@given(st.sets(NAME, min_size=1, max_size=4), st.sets(NAME, min_size=1, max_size=4))
def test_every_name_is_paired_or_counted(images: set[str], maps: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = pairs(Path(folder), sorted(images), sorted(maps))
        splits = read_or_refusal(source)
        if isinstance(splits, str):
            assert re.search("fits the images|are both label maps|several files for each|no usable image", splits)
            return
    dropped = splits.reading.to_dict().get("dropped", {})
    lost_images = dropped.get("images without a label map", {"count": 0})["count"]
    lost_maps = dropped.get("label maps without an image", {"count": 0})["count"]
    assert len(splits.test.images) + lost_images == len(images)
    assert len(splits.test.images) + lost_maps == len(maps)


MODE = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"])
LINE = st.one_of(
    st.text(max_size=8),
    st.tuples(st.sampled_from(["a", "b", "void"]), st.integers(-1, 300)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.tuples(st.sampled_from(["a", "b", "ignore"]), *[st.integers(0, 256)] * 3).map(
        lambda parts: f"{parts[0]}:{parts[1]},{parts[2]},{parts[3]}"
    ),
)


@QUICK
@given(
    MODE,
    st.lists(st.integers(0, 255), min_size=4, max_size=4),
    st.sampled_from(["", "classes.txt", "labelmap.txt", "label_colors.txt", "class_dict.csv"]),
    st.lists(LINE, max_size=4),
)
@example("RGB", [0, 1, 255, 255], "classes.txt", ["a:0,0,0", "b:1,1,1", "ignore:255,255,255"])
def test_every_pixel_is_of_a_class_or_counted(mode: str, values: list[int], list_name: str, lines: list[str]) -> None:
    gray = np.array([values], dtype=np.uint16 if mode == "I;16" else np.uint8)
    id_map = Image.fromarray(gray) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    with tempfile.TemporaryDirectory() as folder:
        source = pairs(Path(folder), ["a.jpg", "b.jpg"], [])
        for split in ("train", "val"):
            (source / "labels" / split).mkdir(parents=True)
            for name in "ab":
                id_map.save(source / "labels" / split / f"{name}.tif")
        if list_name:
            (source / list_name).write_text("\n".join(lines), encoding="utf-8")
        splits = read_or_refusal(source)
        if isinstance(splits, str):
            assert "\n" not in splits and (str(source) in splits or "split train" in splits)
            return
        classes = splits.test.read_classes(splits.test.images[0])
    line = next(line for line in splits.reading.lines() if line.startswith("test: "))
    ignored = re.search(r"ignored ([\d.]+)%", line)
    assert ignored is not None and float(ignored[1]) == 100 * float((classes == 255).mean())
    assert len(np.unique(classes[classes != 255])) >= 2
