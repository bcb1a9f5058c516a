"""Pascal VOC's .xml files as exporters write them: without lists of splits, with other endings, names and numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.transfer.sources import blank, names, read, voc_image, voc_list

from plrc.errors import ConfigError, DataError, LayoutError
from plrc.transfer.dense import dense_probe
from plrc.transfer.protocols import LabelledConfig

DOG = "<object><name>dog</name><bndbox><xmin>1.5</xmin><ymin>0</ymin><xmax>9.25</xmax><ymax>10</ymax></bndbox></object>"


def put_xml(path: Path, text: str = DOG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{text}</annotation>")


def pairs(root: Path, image: str, xml: str, count: int = 5) -> Path:
    """Images and annotations at these paths, in which {} is a number."""
    for i in range(count):
        blank(root / image.format(i))
        put_xml(root / xml.format(i))
    return root


@pytest.mark.parametrize(
    ("image", "xml"),
    [
        ("{}.jpg", "{}.xml"),
        ("{}.JPG", "{}.XML"),
        ("images/{}.png", "annotations/{}.xml"),
        ("Images/{}.png", "Annotations/xmls/{}.xml"),
        ("JPEGImages/{}.jpeg", "Annotations/{}.xml"),
        ("img/{}.png", "annots/{}.xml"),
    ],
)
def test_a_folder_without_splits_needs_a_share_to_test_on(tmp_path: Path, image: str, xml: str) -> None:
    pairs(tmp_path, image, xml)
    with pytest.raises(DataError, match=r"no split to test on \(splits: all; .*--data.test-fraction 0.2"):
        read(tmp_path)
    splits = read(tmp_path, test_fraction=0.4)
    assert [len(part.images) for part in (splits.train, splits.val, splits.test)] == [2, 1, 2]
    assert splits.test.images[0].boxes.tolist() == [[1.5, 0, 9.25, 10]]  # edges, counted from 0
    assert splits.reading.lines() == (
        f"{tmp_path} has no lists in ImageSets/Main: corners of boxes are read as edges counted from 0",
        "train: split all; 2 images, 2 objects",
        "val: a fifth of all, left out of train, the same for every seed; 1 images, 1 objects",
        "test: 0.4 of all, left out of train, the same for every seed; 2 images, 2 objects",
    )


@pytest.mark.parametrize("form", ["{}/NAME.END", "{}/images/NAME.END", "images/{}/NAME.END"])
def test_folders_are_splits(tmp_path: Path, form: str) -> None:
    for split in ("train", "valid", "test"):
        image = form.format(split).replace("NAME", f"{split}{{}}")
        xml = image.replace("images", "annotations")
        pairs(tmp_path, image.replace("END", "jpg"), xml.replace("END", "xml"), 2)
    splits = read(tmp_path)
    for part, split in ((splits.train, "train"), (splits.val, "valid"), (splits.test, "test")):
        assert names(part) == [f"{split}0", f"{split}1"]
    with pytest.raises(ConfigError, match="has no folder trian; write one of: test, train, valid"):
        read(tmp_path, train="trian")


def test_the_drawn_test_images_keep_groups_together(tmp_path: Path) -> None:
    for folder in ("a", "b", "c", "d"):
        pairs(tmp_path / "images" / folder, "{}.png", "{}.xml", 3)
    splits = read(tmp_path, train="a+b+c+d", test_fraction=0.25, group="folder", val="none")
    assert len({Path(image.name).parent for image in splits.test.images}) == 1 and len(splits.test.images) == 3
    assert "test: whole groups, 3 of the 12 images of a+b+c+d, left out of train" in splits.reading.lines()[-1]


def test_groups_that_are_too_few_for_val_need_an_answer(tmp_path: Path) -> None:
    for folder in ("p", "q"):
        pairs(tmp_path / "images" / folder, "{}.png", "{}.xml", 6)
    config: dict[str, Any] = {"train": "p+q", "test_fraction": 0.1, "group": "folder"}
    with pytest.raises(DataError, match=r"the 6 images of the split p\+q that are left .*, or write --data.val none"):
        read(tmp_path, **config)
    lines = read(tmp_path, val="none", **config).reading.lines()
    assert any(line.startswith("test: whole groups, 6 of the 12 images of p+q, left out of train") for line in lines)


@pytest.mark.parametrize("form", ["{}/NAME.END", "{}/images/NAME.END"])
def test_the_names_of_splits_may_be_in_upper_case(tmp_path: Path, form: str) -> None:
    for split in ("Train", "VAL", "Test"):
        image = form.format(split).replace("NAME", f"{split}{{}}")
        pairs(tmp_path, image.replace("END", "jpg"), image.replace("END", "xml"), 1)
    splits = read(tmp_path)
    assert [names(part) for part in (splits.train, splits.val, splits.test)] == [["Train0"], ["VAL0"], ["Test0"]]


def test_a_file_without_an_image_is_no_split(tmp_path: Path) -> None:
    pairs(tmp_path, "photos/{}.jpg", "photos/{}.xml")
    (tmp_path / "project.xml").write_text("<project/>")
    put_xml(tmp_path / "old" / "gone.xml")
    splits = read(tmp_path, test_fraction=0.4, val="none")
    assert (len(splits.train.images), len(splits.test.images)) == (3, 2)
    lost = "annotation files without an image, left out: 2 (old/gone.xml, project.xml)"
    assert lost in splits.reading.lines()


@pytest.mark.parametrize(
    ("corners", "first_pixel"),
    [
        ([(1, 1, 30, 20), (3, 4, 9, 9)], 1),
        ([(1, 4, 30, 9), (3, 1, 9, 20), (0, 4, 9, 9)], 1),
        ([(1, 1, 29, 19), (3, 4, 9, 9)], 0),
        ([(1, 1, 30, 20), (0, 0, 9, 9)], 0),
        ([(3, 4, 9, 9)], 0),
    ],
)
def test_whole_sides_without_lists_show_from_where_corners_count(
    tmp_path: Path, corners: list[tuple[int, int, int, int]], first_pixel: int
) -> None:
    for name in ("a", "b"):
        voc_image(tmp_path, name, *[("dog", *box) for box in corners])
    splits = read(tmp_path, test_fraction=0.5, val="none")
    x0, y0, x1, y1 = corners[0]
    assert splits.train.images[0].boxes.tolist()[0] == [x0 - first_pixel, y0 - first_pixel, x1, y1]
    meaning = ("edges counted from 0", "pixels counted from 1")[first_pixel]
    line = f"{tmp_path} has no lists in ImageSets/Main: corners of boxes are read as {meaning}"
    assert splits.reading.lines()[0] == line


@pytest.mark.parametrize("source", ["", "VOCdevkit"])
@pytest.mark.parametrize("others", [[], ["VOC2007"]])
def test_a_folder_of_any_name_in_vocdevkit(tmp_path: Path, source: str, others: list[str]) -> None:
    for folder in ("mydata", *others):
        for split in ("train", "val", "test", "unused"):
            voc_image(tmp_path / "VOCdevkit" / folder, f"{split}_{folder}", ("dog", 1, 1, 10, 10))
            if split != "unused":
                voc_list(tmp_path / "VOCdevkit" / folder, split, f"{split}_{folder}")
    splits = read(tmp_path / source, train="train+val" if others else "", val="none")
    expected = [f"{split}_{folder}" for split in ("train", "val") for folder in (*others, "mydata")]
    assert sorted(names(splits.train)) == sorted(expected if others else ["train_mydata"])
    assert sorted(names(splits.test)) == sorted(f"test_{folder}" for folder in ("mydata", *others))
    assert splits.train.images[0].boxes.tolist() == [[0, 0, 10, 10]]


def test_losses_without_lists_are_counted(tmp_path: Path) -> None:
    pairs(tmp_path, "images/{}.png", "annotations/{}.xml", 6)
    put_xml(tmp_path / "annotations" / "gone.xml")
    blank(tmp_path / "images" / "bare.png")
    blank(tmp_path / "images" / "5.jpg")
    blank(tmp_path / "previews" / "0.png")
    put_xml(tmp_path / "annotations" / "renamed.xml", "<filename>C:\\photos\\IMG 7</filename>" + DOG)
    blank(tmp_path / "images" / "IMG 7.png")
    lines = read(tmp_path, test_fraction=0.4, val="none").reading.lines()
    assert set(lines[1:]) >= {
        "annotation files that several images share, read: 1 (annotations/5.xml)",
        "annotation files without an image, left out: 1 (annotations/gone.xml)",
        "images without an annotation file, left out: 1 (images/bare.png)",
        "images in folders without annotation files, left out: 1 (previews/0.png)",
    }
    background = read(tmp_path, test_fraction=0.4, val="none", unlabelled="background")
    assert sum(len(part.images) for part in (background.train, background.test)) == 9
    assert "images without an annotation file, as background, read: 1 (images/bare.png)" in background.reading.lines()


def test_lists_with_endings_and_folders_and_files_with_odd_numbers(tmp_path: Path) -> None:
    root = tmp_path / "VOC2007"
    for name in ("a", "b", "c", "d"):
        voc_image(root, name, ("dog", 1.5, 2.25, 9.5, 10))
    voc_image(root, "d", ("dog", 1, 1, 9.5, 10))
    shutil.move(root / "JPEGImages" / "a.jpg", root / "JPEGImages" / "a.JPG")
    shutil.move(root / "Annotations" / "a.xml", root / "Annotations" / "a.XML")
    put_xml(root / "Annotations" / "b.xml", "<size><width>30.0</width><height>20.0</height></size>" + DOG)
    put_xml(root / "Annotations" / "c.xml", DOG.replace(">10<", ">inf<"))
    voc_list(root, "train", "a.JPG", "JPEGImages/b.jpg", "D:\\set\\c.jpg")
    voc_list(root, "test", "d")
    splits = read(tmp_path, val="none")
    assert names(splits.train) == ["a", "b", "c"]
    assert [image.boxes.tolist() for image in splits.train.images] == [[[0.5, 1.25, 9.5, 10]], [[0.5, 0, 9.25, 10]], []]
    assert "objects without a box of four numbers, dropped: 1 (c.xml object 1)" in splits.reading.lines()


def test_tasks_that_xml_files_have_no_labels_for(tmp_path: Path) -> None:
    pairs(tmp_path, "{}.jpg", "{}.xml")
    for task in ("instances", "semantic"):
        with pytest.raises(LayoutError, match="boxes without masks or label maps; choose the task detection"):
            read(tmp_path, task)  # type: ignore[arg-type]


def test_the_probe_advises_no_task(tmp_path: Path) -> None:
    pairs(tmp_path / "files", "{}.jpg", "{}.xml")
    voc_image(tmp_path / "lists", "a", ("dog", 1, 1, 9, 9))
    voc_list(tmp_path / "lists", "train", "a")
    for name in ("files", "lists"):
        with pytest.raises(DataError, match="no split to test on") as error:
            dense_probe(LabelledConfig(source=str(tmp_path / name)), ["random"], "resnet18", 64, 10, 0)
        assert "choose the task" not in str(error.value)


def test_a_name_in_a_list_may_start_with_a_hash(tmp_path: Path) -> None:
    root = tmp_path / "VOC2007"
    for name in ("#1", "a", "b"):
        voc_image(root, name, ("dog", 1, 1, 10, 10))
    voc_list(root, "train", "# a comment", "#1", "a")
    voc_list(root, "test", "b")
    assert names(read(tmp_path, val="none").train) == ["#1", "a"]


@pytest.mark.parametrize(
    ("corners", "box"),
    [((0, 2, 10, 12), [0, 2, 10, 12]), ((1, 2, 10, 12), [0, 1, 10, 12]), ((3, 2, 8, 9), [2, 1, 8, 9])],
)
def test_lists_with_corners_at_zero_count_from_zero(tmp_path: Path, corners: tuple[int, ...], box: list[int]) -> None:
    for number, split in enumerate(("train", "val", "test")):
        voc_image(tmp_path, f"{split}_0", ("cat", *corners))
        voc_image(tmp_path, f"{split}_1", ("cat", *((3, 4, 9, 9) if number else corners)))
        voc_list(tmp_path, split, f"{split}_0", f"{split}_1")
    splits = read(tmp_path)
    assert splits.train.images[0].boxes.tolist() == [box]
    assert splits.test.images[0].boxes.tolist() == [box]
    said = f"{tmp_path} has boxes with corners at 0: corners are read as edges counted from 0"
    assert (said in splits.reading.lines()) == (corners[0] == 0)


def test_a_single_corner_at_zero_among_many_at_one_is_an_error_of_its_own(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        voc_image(tmp_path, f"{split}_0", ("cat", 1, 1, 10, 12), ("dog", 1, 5, 9, 9))
        voc_list(tmp_path, split, f"{split}_0")
    voc_image(tmp_path, "train_1", ("cat", 0, 2, 10, 12))
    voc_list(tmp_path, "train", "train_0", "train_1")
    splits = read(tmp_path)
    assert [image.boxes.tolist()[0] for image in splits.train.images] == [[0, 0, 10, 12], [0, 1, 10, 12]]
    assert "boxes partly outside of the image, clipped: 1 (train_1.xml object 1)" in splits.reading.lines()


def test_an_image_has_one_annotation_file(tmp_path: Path) -> None:
    cat = DOG.replace("dog", "cat")
    for split in ("train", "test"):
        pairs(tmp_path / split, "images/{}.jpg", "annotations/{}.xml", 2)
        put_xml(tmp_path / split / "xmls" / "0.xml", cat)
        put_xml(tmp_path / split / "annotations" / "00 old.xml", "<filename>1.jpg</filename>" + cat)
    splits = read(tmp_path, val="none")
    assert splits.train.classes == ("dog",) and names(splits.train) == ["0", "1"]
    lists = tmp_path / "VOC2007"
    for name in ("a", "b"):
        voc_image(lists, name, ("dog", 1, 1, 9, 9))
    put_xml(lists / "Annotations" / "a.XML", cat)
    voc_list(lists, "train", "a")
    voc_list(lists, "test", "b")
    listed = read(lists, val="none")
    assert listed.train.classes == ("dog",)
    assert "further annotation files of an image, left out: 1 (a.XML)" in listed.reading.lines()
    further = "test/annotations/00 old.xml, test/xmls/0.xml, train/annotations/00 old.xml, ..."
    assert f"further annotation files of an image, left out: 4 ({further})" in splits.reading.lines()
