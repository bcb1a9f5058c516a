"""COCO in the forms in which exporters write it: the same boxes, classes and images from each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.transfer.sources import POLYGON, blank, read

from plrc.errors import DataError
from plrc.transfer.labels.splits import Splits

Table = dict[str, Any]
BOXES = {"cat": [2.0, 3.0, 12.0, 8.0], "dog": [1.5, 2.25, 21.5, 12.25]}


def table(names: list[str], prefix: str = "", first: int = 1) -> Table:
    """A cat and a dog in each image."""
    images = [{"id": first + i, "file_name": prefix + n, "height": 20, "width": 30} for i, n in enumerate(names)]
    things = []
    for image in images:
        things += [
            {"id": len(things), "image_id": image["id"], "category_id": first, "bbox": [2, 3, 10, 5]},
            {"id": len(things) + 1, "image_id": image["id"], "category_id": first + 1, "bbox": [1.5, 2.25, 20, 10]},
        ]
    categories = [{"id": first, "name": "cat"}, {"id": first + 1, "name": "dog"}]
    return {"images": images, "annotations": things, "categories": categories}


def write(path: Path, content: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def images_of(split: str) -> list[str]:
    return [f"{split}_{i}.png" for i in range(6)]


def put_images(folder: Path, split: str) -> None:
    for name in images_of(split):
        blank(folder / name)


def form(root: Path, file: str, images: str, prefix: str = "") -> None:
    """Two splits, train and valid; {} in the paths stands for the split."""
    for split in ("train", "valid"):
        put_images(root / images.format(split), split)
        write(root / file.format(split), table(images_of(split), prefix.format(split)))


def with_group(root: Path) -> None:
    form(root, "{}/_annotations.coco.json", "{}")
    for split in ("train", "valid"):
        path = root / split / "_annotations.coco.json"
        content = json.loads(path.read_text())
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        for category in content["categories"][1:]:
            category["supercategory"] = "animals"
        write(path, content)


FORMS: dict[str, Callable[[Path], None]] = {
    "folders of splits": lambda root: form(root, "annotations/instances_{}.json", "{}"),
    "one folder": lambda root: form(root, "annotations/instances_{}.json", "images"),
    "images/SPLIT": lambda root: form(root, "annotations/instances_{}.json", "images/{}"),
    "nested": lambda root: form(root, "annotations/{}.json", "images/a/{}", "a/{}/"),
    "beside": with_group,
    "SPLIT/images": lambda root: form(root, "{}/annotations.json", "{}/images"),
    "SPLIT/data": lambda root: form(root, "{}/labels.json", "{}/data"),
    "in the source": lambda root: form(root, "{}.json", "images"),
    "Windows": lambda root: form(root, "annotations/instances_{}.json", "images", "C:\\set\\images\\"),
    "Windows, relative": lambda root: form(root, "annotations/instances_{}.json", "images", "images\\"),
    "addresses": lambda root: form(root, "annotations/instances_{}.json", "my images", "https://host/my%20images/"),
}


def content(splits: Splits) -> list[Any]:
    rows = []
    for part in (splits.train, splits.test):
        for image in part.images:
            kinds = [part.classes[k] for k in image.classes]
            rows.append((Path(image.name).name, dict(zip(kinds, image.boxes.tolist(), strict=True))))
    return [splits.train.classes, *rows]


@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_the_same_images_boxes_and_classes(tmp_path: Path, name: str) -> None:
    FORMS[name](tmp_path)
    splits = read(tmp_path, val="none")
    expected = [(file, BOXES) for split in ("train", "valid") for file in images_of(split)]
    assert content(splits) == [("cat", "dog"), *expected]
    lines = [line.partition(":")[0] for line in splits.reading.lines()[3:]]
    group = ["categories of a group or the background that no object has, left out"]
    spelled = ["image names with Windows separators, URL escapes or folders of another place, repaired"]
    other = {"beside": group, "Windows": spelled, "Windows, relative": spelled, "addresses": spelled}
    assert lines == other.get(name, [])


SINGLE: dict[str, tuple[str, str, str, str]] = {
    "FiftyOne": ("labels.json", "data", "", "labels"),
    "Datumaro": ("annotations/instances_default.json", "images/default", "", "default"),
    "CVAT": ("annotations/instances_default.json", "images", "", "default"),
    "Label Studio": ("result.json", "images", "images\\", "result"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_source_without_splits_asks_for_a_test_split(tmp_path: Path, name: str) -> None:
    file, images, prefix, split = SINGLE[name]
    put_images(tmp_path / images, "all")
    write(tmp_path / file, table(images_of("all"), prefix, first=0))
    with pytest.raises(DataError, match=rf"no split to test on .* --data.train {split} --data.test-fraction 0.2"):
        read(tmp_path)
    splits = read(tmp_path, test_fraction=0.2)
    assert [len(part.images) for part in (splits.train, splits.val, splits.test)] == [4, 1, 1]
    assert splits.reading.lines()[0] == f"train: split {split}; 4 images, 8 objects"
    assert content(splits)[1][1] == BOXES
    assert content(read(tmp_path, test_fraction=0.2)) == content(splits)


# ids, numbers and what is written twice


def changed(root: Path, change: Callable[[Table], None]) -> Splits:
    form(root, "annotations/instances_{}.json", "{}")
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    write(path, content)
    return read(root, val="none")


def renumber(number: Callable[[int], Any]) -> Callable[[Table], None]:
    def change(content: Table) -> None:
        for image in content["images"]:
            image["id"] = number(image["id"])
        for category in content["categories"]:
            category["id"] = number(category["id"])
        for thing in content["annotations"]:
            thing["image_id"] = number(thing["image_id"])
            thing["category_id"] = number(thing["category_id"])

    return change


def text_image_ids(content: Table) -> None:
    for thing in content["annotations"]:
        thing["image_id"] = str(thing["image_id"])


@pytest.mark.parametrize(
    "change",
    [
        renumber(lambda i: i - 1),
        renumber(lambda i: 1000 * i + 7),
        renumber(float),
        renumber(lambda i: f"{i:03d}x"),
        text_image_ids,
    ],
)
def test_renumbering_ids_changes_nothing(tmp_path: Path, change: Callable[[Table], None]) -> None:
    plain = changed(tmp_path / "plain", lambda _: None)
    other = changed(tmp_path / "other", change)
    assert other.digest() == plain.digest()
    assert other.reading.lines() == plain.reading.lines()


def odd_numbers(content: Table) -> None:
    for thing in content["annotations"]:
        thing |= {"iscrowd": "0", "area": None}
    for image in content["images"]:
        image |= {"width": None, "height": None}
    content["annotations"][0]["bbox"] = ["2", "3.0", 10, 5.0]


def twice(content: Table) -> None:
    content["images"] += content["images"]
    content["annotations"] += content["annotations"]


def two_ids(content: Table) -> None:
    content["images"].append({**content["images"][0], "id": 99, "file_name": "./train_0.png"})
    for thing in content["annotations"]:
        thing["image_id"] = 99 if thing["id"] == 1 else thing["image_id"]


def no_areas(content: Table) -> None:
    content["annotations"][0]["area"] = 0
    content["annotations"][1]["area"] = -4.5
    content["annotations"][2]["area"] = "0.0"


def boxes_from_polygons(content: Table) -> None:
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = POLYGON


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (odd_numbers, ["objects with numbers written as text, repaired: 12 ("]),
        (twice, ["images that are listed twice, dropped: 6 (", "objects that are annotated twice, dropped: 12 ("]),
        (
            no_areas,
            [
                "objects with an area of 0 or less, which their box gives, repaired: 3 (",
                "objects with numbers written as text, repaired: 1 (",
            ],
        ),
        (two_ids, ["images that are listed under several ids, their objects joined, repaired: 1 (./train_0.png)"]),
        (boxes_from_polygons, ["objects without a box, which their polygons give, repaired: 1 (instances_train.json"]),
    ],
)
def test_what_is_certain_is_repaired_and_counted(
    tmp_path: Path, change: Callable[[Table], None], lines: list[str]
) -> None:
    plain = changed(tmp_path / "plain", lambda _: None)
    splits = changed(tmp_path / "other", change)
    assert content(splits) == content(plain)
    assert [i.areas.tolist() for i in splits.train.images] == [i.areas.tolist() for i in plain.train.images]
    assert not any(image.ignored.any() for image in splits.train.images)
    assert len(splits.reading.lines()) == 3 + len(lines)
    for line, start in zip(splits.reading.lines()[3:], lines, strict=True):
        assert line.startswith(start)


def test_backgrounds_single_polygons_and_run_lengths_as_fractions_are_read(tmp_path: Path) -> None:
    def change(content: Table) -> None:
        content["annotations"] = content["annotations"][:6]
        for thing in content["annotations"]:
            thing["segmentation"] = POLYGON[0]
        content["annotations"][1]["segmentation"] = {"size": [20, 30], "counts": [63.0, 5.0, 532.0]}

    changed(tmp_path, change)
    valid = tmp_path / "annotations" / "instances_valid.json"
    content = json.loads(valid.read_text())
    for thing in content["annotations"]:
        thing["segmentation"] = POLYGON
    write(valid, content)
    splits = read(tmp_path, "instances", val="none")
    assert [len(image.segments) for image in splits.train.images] == [2, 2, 2, 0, 0, 0]
    names = ", ".join(f"train/train_{i}.png" for i in (3, 4, 5))
    assert splits.reading.lines()[3:] == (f"images without an annotation, as background, read: 3 ({names})",)


def test_an_image_in_two_joined_splits_loses_no_object_in_silence(tmp_path: Path) -> None:
    put_images(tmp_path / "images", "all")
    for split in ("train", "val", "test"):
        names = images_of("all")
        write(tmp_path / f"{split}.json", table(names[:3] if split == "train" else names[3:4]))
    content = json.loads((tmp_path / "test.json").read_text())
    content["annotations"][0]["bbox"] = [0, 0, 4, 4]
    write(tmp_path / "test.json", content)
    splits = read(tmp_path, val="none", test="val+test")
    assert splits.reading.lines()[3:] == (
        "images that a split lists again, dropped: 1 (images/all_3.png)",
        "objects of images that a split lists again, dropped: 1 (test.json annotation 0)",
        "objects that are annotated twice, dropped: 1 (test.json annotation 1)",
    )


def joined(content: Table) -> None:
    content["images"][1]["id"] = content["images"][0]["id"]


def one_category_id(content: Table) -> None:
    content["categories"][1]["id"] = content["categories"][0]["id"]


def shares(content: Table) -> None:
    for thing in content["annotations"]:
        thing["bbox"] = [0.1, 0.2, 0.5, 0.25]


def unclear_crowds(content: Table) -> None:
    for thing in content["annotations"]:
        thing["iscrowd"] = "perhaps"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (joined, r"different images have the same id, such as train_0.png, train_1.png \(1 such ids\)"),
        (one_category_id, "two categories, cat and dog, have the id 1, so the class of an object is not certain"),
        (shares, r"all 12 boxes lie between 0 and 1, .* are in pixels; multiply x and width"),
        (unclear_crowds, r"objects whose iscrowd is neither 0 nor 1, dropped: 12 \("),
    ],
)
def test_what_is_not_certain_is_refused_in_a_sentence(
    tmp_path: Path, change: Callable[[Table], None], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        changed(tmp_path, change)


def test_no_image_exists(tmp_path: Path) -> None:
    write(tmp_path / "train.json", table(["a.png"]))
    write(tmp_path / "val.json", table(["b.png"]))
    with pytest.raises(DataError, match=r"none of the 1 images of .*train.json, such as a.png, is a file; looked in"):
        read(tmp_path)


# labels that count


@pytest.mark.parametrize("split", ["train", "valid"])
def test_crowds_alone_are_refused_before_training(tmp_path: Path, split: str) -> None:
    form(tmp_path, "annotations/instances_{}.json", "{}")
    path = tmp_path / "annotations" / f"instances_{split}.json"
    crowds = json.loads(path.read_text())
    for thing in crowds["annotations"]:
        thing["iscrowd"] = 1
    write(path, crowds)
    role = "train" if split == "train" else "test"
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert f"no usable label in {role} (split {split}) of {tmp_path}, no object that counts" in str(error.value)
    assert "crowds, neither trained on nor scored, left out: 1" in str(error.value)


def test_a_few_crowds_are_counted(tmp_path: Path) -> None:
    def change(content: Table) -> None:
        content["annotations"][0]["iscrowd"] = True

    splits = changed(tmp_path, change)
    assert splits.reading.lines()[3:] == (
        "crowds, neither trained on nor scored, left out: 1 (instances_train.json annotation 0)",
    )
