"""YOLO: the ways in which data.yaml, lists and folders name images, and what label files may contain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.transfer.sources import blank, names, read

from plrc.data.masks import decode_masks
from plrc.errors import ConfigError, DataError, LayoutError, PlrcError

BOX = "1 0.5 0.5 0.2 0.4"  # of 20 x 30 pixels: [12, 6, 18, 14]
NAMES = "names: [cat, dog]\n"
NO_LABEL = "lines that are not the number of a class and a box or polygon"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def yolo_source(root: Path, *lines: str, yaml: str | None = None, form: str = "images/{}") -> Path:
    """Four training images a0 to a3 and two of val, b0 and b1; a0 has the lines, the others a box."""
    for split, prefix, count in (("train", "a", 4), ("val", "b", 2)):
        images = form.format(split)
        for i in range(count):
            blank(root / images / f"{prefix}{i}.jpg")
            content = "\n".join(lines) if lines and (prefix, i) == ("a", 0) else BOX
            put(root / images.replace("images", "labels") / f"{prefix}{i}.txt", content + "\n")
    if yaml is not None:
        put(root / "data.yaml", yaml)
    return root


def all_lines(source: Path, **config: Any) -> tuple[str, ...]:
    return read(source, val="none", **config).reading.lines()


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
@pytest.mark.parametrize(
    "yaml",
    [
        "train: {train}\nval: {val}\n",
        "path: .\ntrain: {train}\nval: {val}\n",
        "path: ../elsewhere\ntrain: {train}\nval: {val}\n",
        "path: {root}\ntrain: {train}\nval: {val}\n",
        "path: /home/nobody/sets/birds\ntrain: {train}\nval: {val}\n",
        "path: 'C:\\sets\\birds'\ntrain: {train}\nval: {val}\n",
        "train: ../{train}\nval: ../{val}\n",
        "train: /home/nobody/sets/{train}\nval: 'D:\\sets\\{val}'\n",
        "train: [{train}]\nval: [./{val}/]\n",
        "train: {root}/{train}\nval: {root}/{val}\n",
        "train: train.txt\nval: val.txt\n",
    ],
)
def test_every_way_to_write_the_paths(tmp_path: Path, form: str, yaml: str) -> None:
    root = tmp_path / "birds"
    train, val = form.format("train"), form.format("val")
    yolo_source(root, yaml=yaml.format(root=root, train=train, val=val) + NAMES, form=form)
    put(root / "train.txt", "".join(f"./{train}/a{i}.jpg\n" for i in range(4)))
    put(root / "val.txt", f"/home/nobody/{val}/b0.jpg\n{root}/{val}/b1.jpg\n")
    splits = read(root)
    assert (sorted(names(splits.train) + names(splits.val)), names(splits.test)) == (
        ["a0", "a1", "a2", "a3"],
        ["b0", "b1"],
    )
    assert splits.train.classes == ("cat", "dog")
    image = splits.test.images[0]
    assert image.name == f"{val}/b0.jpg"
    np.testing.assert_allclose(image.boxes, [[12, 6, 18, 14]], rtol=1e-6)
    assert image.classes.tolist() == [1]


def test_paths_that_lie_elsewhere_are_reported(tmp_path: Path) -> None:
    yolo_source(tmp_path, yaml="train: /home/nobody/images/train\nval: images/val\ntest: images/gone\n" + NAMES)
    lines = all_lines(tmp_path)
    assert "data.yaml names /home/nobody/images/train: images/train is read" in lines
    assert "data.yaml: test names images/gone, which does not exist; it is left out" in lines


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("names: {0: cat, 1: dog}\n", ("cat", "dog")),
        ("names: {'1': dog, '0': cat}\nnc: 2\n", ("cat", "dog")),
        ("names: [no, 1e3]\n", ("no", "1e3")),
        ("names: words.txt\n", ("cat", "dog")),
        ("nc: 2\n", ("class 1",)),
    ],
)
def test_every_way_to_name_the_classes(tmp_path: Path, stated: str, expected: tuple[str, ...]) -> None:
    put(tmp_path / "words.txt", "cat\ndog\n")
    yolo_source(tmp_path, yaml="train: images/train\nval: images/val\n" + stated)
    splits = read(tmp_path)
    assert splits.train.classes == expected
    unnamed = f"{tmp_path / 'data.yaml'} has no names: the classes are called by their numbers"
    assert (unnamed in splits.reading.lines()) == (expected == ("class 1",))


def test_without_data_yaml_folders_and_classes_txt_count(tmp_path: Path) -> None:
    put(yolo_source(tmp_path / "split") / "classes.txt", "cat\ndog\n")
    assert read(tmp_path / "split").train.classes == ("cat", "dog")
    root = tmp_path / "flat"
    for i in range(5):
        blank(root / "images" / f"a{i}.JPG")
        put(root / "labels" / f"a{i}.TXT", BOX)
    with pytest.raises(DataError, match=r"no split to test on \(splits: all; .*--data.test-fraction 0.2"):
        read(root)
    splits = read(root, test_fraction=0.4)
    assert [len(part.images) for part in (splits.train, splits.val, splits.test)] == [2, 1, 2]
    assert splits.reading.lines()[:1] == (
        f"{root} has no data.yaml and no classes.txt: the classes are called by their numbers",
    )
    assert "test: 0.4 of all, left out of train, the same for every seed; 2 images, 2 objects" in splits.reading.lines()
    beside = tmp_path / "beside"
    for split in ("train", "valid"):
        for i in range(3):
            blank(beside / split / f"{split}{i}.jpg")
            put(beside / split / f"{split}{i}.txt", BOX)
    assert names(read(beside).test) == ["valid0", "valid1", "valid2"]
    darknet = tmp_path / "darknet"
    for i in range(4):
        blank(darknet / "obj_train_data" / f"{i}.png")
        put(darknet / "obj_train_data" / f"{i}.txt", BOX)
    put(darknet / "obj.names", "cat\ndog\n")
    put(darknet / "train.txt", "".join(f"data/obj_train_data/{i}.png\n" for i in range(4)))
    assert read(darknet, test_fraction=0.25).train.classes == ("cat", "dog")


def test_a_test_folder_that_data_yaml_does_not_name_is_read(tmp_path: Path) -> None:
    yolo_source(tmp_path, yaml="train: ../train/images\nval: ../val/images\n" + NAMES, form="{}/images")
    blank(tmp_path / "test" / "images" / "c.jpg")
    put(tmp_path / "test" / "labels" / "c.txt", BOX)
    splits = read(tmp_path)
    assert names(splits.test) == ["c"]
    assert "data.yaml names no split test: test/images is read as test" in splits.reading.lines()


@pytest.mark.parametrize(
    ("form", "place", "image"),
    [("images/{}", "images/test", "images/test/c"), ("pool/{}/images", "test.txt", "pool/more/images/c")],
)
def test_a_test_split_without_labels_that_data_yaml_does_not_name_is_left_out(
    tmp_path: Path, form: str, place: str, image: str
) -> None:
    yaml = f"train: {form.format('train')}\nval: {form.format('val')}\n"
    root = yolo_source(tmp_path, yaml=yaml + NAMES, form=form)
    blank(root / f"{image}.jpg")
    if place == "test.txt":
        put(root / place, f"{image}.jpg\n")
    splits = read(root, val="none")
    assert names(splits.test) == ["b0", "b1"]
    line = f"data.yaml names no split test, and {place} has no label files: it is left out"
    assert line in splits.reading.lines()
    put(root / f"{image.replace('images', 'labels')}.txt", BOX)
    assert names(read(root, val="none").test) == ["c"]


@pytest.mark.parametrize("yaml", [None, "train: images/train\nval: images/val\ntest: images/test\n" + NAMES])
def test_a_test_folder_without_labels_is_not_chosen(tmp_path: Path, yaml: str | None) -> None:
    root = yolo_source(tmp_path, yaml=yaml)
    blank(root / "images" / "test" / "c.jpg")
    splits = read(root)
    assert names(splits.test) == ["b0", "b1"]
    assert len(splits.train.images) == 3 and splits.drawn == ("val",)
    assert "splits without labels, left out: 1 (test)" in splits.reading.lines()
    with pytest.raises(DataError, match=r"no usable label in test \(split test\)"):
        read(root, test="test")
    with pytest.raises(DataError, match=r"\(splits: .*; train is trained on; test has no labels\)"):
        read(root, val="val")
    put(root / "labels" / "test" / "c.txt", BOX)
    assert names(read(root).test) == ["c"]


def test_a_val_folder_without_labels_is_not_chosen(tmp_path: Path) -> None:
    root = yolo_source(tmp_path)
    blank(root / "images" / "test" / "c.jpg")
    put(root / "labels" / "test" / "c.txt", BOX)
    for path in (root / "labels" / "val").iterdir():
        path.unlink()
    splits = read(root)
    assert (names(splits.test), splits.drawn) == (["c"], ("val",))
    assert "splits without labels, left out: 1 (val)" in splits.reading.lines()


def test_the_yaml_file_itself_may_be_named(tmp_path: Path) -> None:
    yolo_source(tmp_path)
    for name in ("birds.yaml", "small.yaml"):
        put(tmp_path / name, "train: images/train\nval: images/val\n" + NAMES)
    with pytest.raises(DataError, match=r"2 files that may describe the data \(birds.yaml, small.yaml\)"):
        read(tmp_path)
    assert len(read(tmp_path / "small.yaml").test.images) == 2


def test_polygons_are_boxes_and_masks(tmp_path: Path) -> None:
    lines = ["0 0.2 0.1 0.8 0.1 0.8 0.5", "1 0.1 0.5 0.4 0.5 0.4 0.9 0.1 0.9 0.1 0.7"]
    yolo_source(tmp_path, *lines, yaml="train: images/train\nval: images/train\n" + NAMES)
    for i in (1, 2, 3):
        put(tmp_path / "labels" / "train" / f"a{i}.txt", f"{lines[0]}\n{BOX}\n")
    with pytest.raises(DataError, match="no split to test on"):  # val is train: no split of its own
        read(tmp_path, val="none", layout="yolo", train="train")
    splits = read(tmp_path, "instances", val="none", test_fraction=0.25)
    image = next(image for part in (splits.train, splits.test) for image in part.images if image.name[-6:-4] == "a0")
    np.testing.assert_allclose(image.boxes, [[6, 2, 24, 10], [3, 10, 12, 18]], rtol=1e-6)
    masks = decode_masks(image.segments, 20, 30)
    assert masks[1].sum() == 9 * 8 and masks[1, 10:18, 3:12].all()
    lines_read = splits.reading.lines()
    assert "data.yaml: val names the same images as another split; it is left out" in lines_read
    assert any(line.startswith("objects without a usable mask, dropped: 3 (labels/train/a1.txt") for line in lines_read)
    boxes = read(tmp_path, val="none", test_fraction=0.25)
    assert sum(len(image.classes) for part in (boxes.train, boxes.test) for image in part.images) == 8


def test_labels_of_four_points_need_an_answer(tmp_path: Path) -> None:
    tilted = "0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5"
    yolo_source(tmp_path / "ask", tilted)
    with pytest.raises(DataError, match=r"labels/train/a0.txt line 1 has 8 values .* --data.four-point-polygons"):
        read(tmp_path / "ask")
    assert len(read(tmp_path / "ask", four_point_polygons=True).test.images) == 2
    yolo_source(tmp_path / "upright", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5")
    yolo_source(tmp_path / "mixed", tilted, "0 0.1 0.1 0.5 0.1 0.5 0.5")
    for name in ("upright", "mixed"):
        assert len(read(tmp_path / name).test.images) == 2
    put(tmp_path / "ask" / "data.yaml", "task: obb\n" + NAMES)
    with pytest.raises(DataError, match="its labels are oriented boxes, which plrc does not read"):
        read(tmp_path / "ask", four_point_polygons=True)


def test_every_loss_is_counted(tmp_path: Path) -> None:
    lines = [
        "",
        BOX,
        BOX,
        " 1  0.5 0.50 0.2 0.4 ",
        "1.0 0.1 0.1 0.2 0.2",
        "cat 0.5 0.5 0.2 0.2",
        "0.5 0.5 0.5 0.2 0.2",
        "0 0.5 nan 0.2 0.2",
        "0 0.5",
        "0 0.9 0.5 0.4 0.2",
        "0 1.5 0.5 0.4 0.2",
        "0 0.5 0.5 0 0.2",
        "0 300 0.5 0.2 0.2",
    ]
    yolo_source(tmp_path, *lines, yaml="train: images/train\nval: images/val\n" + NAMES)
    (tmp_path / "labels" / "train" / "a1.txt").unlink()
    put(tmp_path / "labels" / "train" / "a2.txt", "")
    put(tmp_path / "labels" / "train" / "gone.txt", BOX)
    blank(tmp_path / "images" / "train" / "a3.png")
    splits = read(tmp_path, val="none")
    by_name = {image.name: image for image in splits.train.images}
    counts = {name.removeprefix("images/train/"): len(image.classes) for name, image in by_name.items()}
    assert counts == {"a0.jpg": 3, "a1.jpg": 0, "a2.jpg": 0, "a3.jpg": 1, "a3.png": 1}
    place = "labels/train/a0.txt line"
    assert set(splits.reading.lines()[3:]) == {
        f"labels that a file repeats, dropped: 2 ({place} 3, {place} 4)",
        f"{NO_LABEL}, dropped: 4 ({place} 6, {place} 7, {place} 8, ...)",
        f"boxes partly outside of the image, clipped: 1 ({place} 10)",
        f"boxes outside of the image, dropped: 1 ({place} 11)",
        f"boxes without width or height, dropped: 1 ({place} 12)",
        f"labels with values far outside of 0 to 1, dropped: 1 ({place} 13)",
        "label files without an image, left out: 1 (labels/train/gone.txt)",
        "label files that several images share, read: 1 (labels/train/a3.txt)",
        "images without a label file, as background, read: 1 (images/train/a1.jpg)",
    }
    left = read(tmp_path, val="none", unlabelled="leave_out")
    assert "images/train/a1.jpg" not in {image.name for image in left.train.images}
    assert "images without a label file, left out: 1 (images/train/a1.jpg)" in left.reading.lines()


@pytest.mark.parametrize(
    ("line", "yaml", "sentence"),
    [
        ("2 0.5 0.5 0.2 0.2", NAMES, "labels/train/a0.txt line 1 has the class 2, but {root}/data.yaml names only 2"),
        ("-1 0.5 0.5 0.2 0.2", NAMES, "has the class -1, but {root}/data.yaml names only 2 classes (0 to 1)"),
        ("0 0.5 0.5 0.2 0.2 0.9", NAMES, "line 1 has 5 values after the class: a box with a confidence"),
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 2", NAMES, "line 1 has 7 values after the class, which is neither a box (4) nor"),
        ("0 0.5 0.5 0.2 0.2", "kpt_shape: [2, 3]\n", "has kpt_shape: its labels are keypoints"),
        ("0 0.5 0.5 0.2 0.2", "names: [cat, cat]\n", "gives 'cat' to more than one class"),
        ("0 0.5 0.5 0.2 0.2", "names: {a: cat}\n", "names has a key that is not the number of a class"),
        ("0 0.5 0.5 0.2 0.2", "names: [[cat]]\n", "has a class without a name, or whose name is not text"),
        ("0 0.5 0.5 0.2 0.2", "names: gone.txt\n", "names is gone.txt, neither a list of names nor a file"),
        ("0 0.5 0.5 0.2 0.2", "train: images/gone\n", "train names images/gone, which is no folder or list of images"),
        ("0 0.5 0.5 0.2 0.2", "train: /\n", "train names /, which is no folder or list of images"),
        ("0 0.5 0.5 0.2 0.2", "train: {a: b}\n", "train is neither a path nor a list of paths"),
        ("0 0.5 0.5 0.2 0.2", "train: [\n", "is not readable YAML"),
        ("0 0.5 0.5 0.2 0.2", "- train\n", "is not the description of a YOLO data set"),
    ],
)
def test_what_is_not_certain_is_one_sentence(tmp_path: Path, line: str, yaml: str, sentence: str) -> None:
    yolo_source(tmp_path, line, yaml=yaml)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert sentence.format(root=tmp_path) in str(error.value)


def test_boxes_in_pixels_are_one_sentence(tmp_path: Path) -> None:
    yolo_source(tmp_path)
    for i in range(4):
        put(tmp_path / "labels" / "train" / f"a{i}.txt", "0 15 10 8 6\n")
    with pytest.raises(
        DataError, match=r"4 of 4 labels of the split train .* such as 15 in labels/train/a0.txt line 1"
    ):
        read(tmp_path)


def test_tasks_and_splits_that_yolo_does_not_have(tmp_path: Path) -> None:
    yolo_source(tmp_path, yaml="train: images/train\nval: images/val\n" + NAMES)
    for layout in ("auto", "yolo"):
        with pytest.raises(LayoutError, match=r"the layout of YOLO, .* no label maps; choose the task detection"):
            read(tmp_path, "semantic", layout=layout)
    with pytest.raises(LayoutError, match="the split train has boxes without masks; choose the task detection"):
        read(tmp_path, "instances")
    with pytest.raises(ConfigError, match="no split trian in the layout of YOLO; write one of: train, val"):
        read(tmp_path, train="trian")
    with pytest.raises(PlrcError, match="set only one"):
        read(tmp_path, test="val", test_fraction=0.5)


def test_a_name_in_a_list_may_start_with_a_hash(tmp_path: Path) -> None:
    root = yolo_source(tmp_path / "set", yaml=NAMES + "train: images/train/train.txt\nval: images/val\n")
    blank(root / "images" / "train" / "#1.jpg")
    put(root / "labels" / "train" / "#1.txt", BOX)
    put(root / "images" / "train" / "train.txt", "# a comment\n#1.jpg\na0.jpg\n")
    assert names(read(root, val="none").train) == ["#1", "a0"]


def test_a_folder_labels_of_other_data_is_not_taken(tmp_path: Path) -> None:
    root = tmp_path / "images" / "set"
    for i in range(3):
        blank(root / f"{i}.jpg")
        put(root / f"{i}.txt", BOX)
    put(tmp_path / "labels" / "other" / "0.txt", "")
    train = read(root, test_fraction=0.4, val="none").train
    assert [len(image.boxes) for image in train.images] == [1, 1]


@pytest.mark.parametrize("stated", ["", "names: classes.txt\n"])
def test_the_line_of_a_class_is_its_number(tmp_path: Path, stated: str) -> None:
    yaml = "train: images/train\nval: images/val\n" + stated
    root = yolo_source(tmp_path, "0 0.5 0.5 0.2 0.4", "2 0.5 0.5 0.2 0.4", yaml=yaml)
    put(root / "classes.txt", "#1 bolt\n nut \nscrew\n\n \n")
    train = read(root, val="none").train
    assert train.classes == ("#1 bolt", "nut", "screw") and train.images[0].classes.tolist() == [0, 2]
    put(root / "classes.txt", "#1 bolt\n\nscrew\n")
    with pytest.raises(DataError, match=r"classes.txt: line 2 is empty, .*; remove the line, or write a name"):
        read(root)


def test_objects_of_an_image_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    root = yolo_source(tmp_path, BOX, "0 0.5 0.5 0.2 0.2", "0 300 0.5 0.2 0.2")
    (root / "images" / "train" / "a0.jpg").write_bytes(b"no image")
    place = "labels/train/a0.txt line"
    assert {line for line in all_lines(root) if "dropped" in line} == {
        "image files that cannot be read, dropped: 1 (images/train/a0.jpg)",
        f"objects of images that cannot be used, dropped: 3 ({place} 1, {place} 2, {place} 3)",
    }


def test_an_image_without_an_ending_has_a_label_file(tmp_path: Path) -> None:
    root = yolo_source(tmp_path)
    (root / "images" / "train" / "a0.jpg").rename(root / "images" / "train" / "a0")
    (root / "images" / "train" / "a1").mkdir()
    splits = read(root, val="none")
    assert len(splits.train.images[0].classes) == 1
    assert not any(line.startswith("label files") for line in splits.reading.lines())


def test_an_image_has_one_label_file(tmp_path: Path) -> None:
    root = yolo_source(tmp_path, BOX)
    put(root / "labels" / "train" / "a0.TXT", f"0 0.1 0.1 0.1 0.1\n{BOX}\n")
    splits = read(root, val="none")
    assert len(splits.train.images[0].classes) == 1
    assert "further annotation files of an image, left out: 1 (a0.TXT)" in splits.reading.lines()
