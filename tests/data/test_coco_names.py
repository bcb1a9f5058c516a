"""The image files that a COCO file names, in the spellings of exporters."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from plrc.config import DataConfig
from plrc.data.coco_categories import read_categories, without_unused_groups
from plrc.data.coco_file import read_images
from plrc.data.coco_names import find_images, names_by_ending, plain_name
from plrc.data.coco_values import Ids
from plrc.data.masks import read_coco_masks
from plrc.data.reading import ReadingReport
from plrc.data.sources import find_images as list_images
from plrc.errors import DataError, LayoutError


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("a.jpg", "a.jpg"),
        ("./b//a.jpg", "b/a.jpg"),
        ("images\\b\\a.jpg", "images/b/a.jpg"),
        ("C:\\work\\set\\a.jpg", "/work/set/a.jpg"),
        ("my%20cat%C3%A9.jpg", "my caté.jpg"),
        ("https://host.org/set/a%20b.jpg?token=1#x", "/set/a b.jpg"),
        ("0:1.jpg", "0:1.jpg"),
        ("\\\\host\\share\\a.jpg", "/a.jpg"),
        ("s3://bucket/set/a.jpg", "/set/a.jpg"),
        ("/data/local-files/?d=set/a.jpg&x=1", "set/a.jpg"),
        ("http://[", "http:/["),
    ],
)
def test_plain_names(written: str, plain: str) -> None:
    assert plain_name(written) == plain


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def located(root: Path, *file_names: str) -> list[str]:
    places = find_images(file_names, [str(root), str(root / "images")])
    return [str(Path(path).relative_to(root)) for path in places.paths.values()]


def test_a_file_of_the_name_as_written_comes_first(tmp_path: Path) -> None:
    touch(tmp_path, "a%20b.jpg", "a b.jpg", "c d.jpg")
    assert located(tmp_path, "a%20b.jpg", "c%20d.jpg") == ["a%20b.jpg", "c d.jpg"]


def test_leading_folders_that_all_names_share_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "images/one/a.jpg", "images/two/a.jpg")
    assert located(tmp_path, "C:\\x\\one\\a.jpg", "C:\\x\\two\\a.jpg") == ["images/one/a.jpg", "images/two/a.jpg"]
    assert located(tmp_path, "http://h/x/one/a.jpg", "one/a.jpg") == ["images/one/a.jpg"] * 2
    missing = find_images(["one/a.jpg", "three/a.jpg"], [str(tmp_path / "images")]).missing()
    assert missing == ["three/a.jpg"]  # never the file of the same name in another folder


def test_paths_end_with_plain_names_and_full_ones_without_what_they_share() -> None:
    names = ["C:\\x\\one\\a.jpg", "C:\\x\\two\\b.jpg", "train/c.jpg"]
    assert names_by_ending(names) == {
        "x/one/a.jpg": names[0],
        "one/a.jpg": names[0],
        "x/two/b.jpg": names[1],
        "two/b.jpg": names[1],
        "train/c.jpg": names[2],
    }


@pytest.mark.parametrize("spelling", ["images\\{}.jpg", "D:\\set\\images\\{}.jpg", "https://h/images/{}.jpg", "{}.jpg"])
def test_sources_and_masks_agree_with_the_labels_about_names(tmp_path: Path, spelling: str) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg")
    entries = [{"id": i, "file_name": spelling.format(i), "height": 4, "width": 4} for i in "abc"]
    things = [{"image_id": i, "segmentation": [[0, 0, 2, 0, 2, 2]], "iscrowd": "0"} for i in "ab"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"images": entries, "annotations": things}))
    images = list_images(DataConfig(source=str(path)))
    assert [Path(name).name for name in images.names] == ["a.jpg", "b.jpg"]
    lines = [line.partition(":")[0] for line in images.notes]
    spelled = ["image names with Windows separators, URL escapes or folders of another place, repaired"]
    assert lines == (spelled if spelling != "{}.jpg" else []) + [
        "images of the annotations that do not exist, left out"
    ]
    assert list(read_coco_masks(path, images).entries) == list(images.names)


def test_no_image_exists(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"images": [{"file_name": "a.jpg"}]}))
    with pytest.raises(DataError, match=r"none of the 1 images of .*labels.json, such as a.jpg, is a file; looked in"):
        list_images(DataConfig(source=str(path)))


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["a%20b.jpg", "a b.jpg"], 2),
        (["0:1.jpg", "1:1.jpg", "1.jpg"], 3),
        (["c:1.jpg", "d:1.jpg", "1.jpg"], 3),
        (["b.jpg", "./b.jpg", "x\\..\\b.jpg"], 2),
    ],
)
@pytest.mark.parametrize("same_id", [False, True])
def test_names_of_different_files_are_never_joined(tmp_path: Path, names: list[str], count: int, same_id: bool) -> None:
    touch(tmp_path, *(name.removeprefix("./") for name in names))
    entries = [{"id": 0 if same_id else i, "file_name": name} for i, name in enumerate(names)]
    path = tmp_path / "labels.json"
    reading = ReadingReport()
    if same_id:
        with pytest.raises(DataError, match="different images have the same id"):
            read_images(path, {"images": entries}, reading)
        return
    images = read_images(path, {"images": entries}, reading)
    assert len({id(image) for image in images.values()}) == count
    assert reading.total("repaired") == len(names) - count


def test_spellings_of_the_only_file_are_joined(tmp_path: Path) -> None:
    touch(tmp_path, "a b.jpg")
    names = ["a%20b.jpg", "a b.jpg", ".\\a b.jpg"]
    reading = ReadingReport()
    entries = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    images = read_images(tmp_path / "labels.json", {"images": entries}, reading)
    assert len({id(image) for image in images.values()}) == 1
    assert reading.total("repaired") == 2


def test_images_without_a_name_are_dropped_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    path = tmp_path / "labels.json"
    nameless = [{"id": 2}, {"id": 3, "file_name": None}, {"id": 4, "file_name": ""}, 5]
    path.write_text(json.dumps({"images": [{"file_name": "a.jpg"}, *nameless, {"file_name": "b.jpg"}]}))
    images = list_images(DataConfig(source=str(path)))
    assert images.names == ("a.jpg", "b.jpg")
    counted = "images without a file name, dropped: 4 (labels.json images 1, labels.json images 2, labels.json images 3"
    assert images.notes == (f"{counted}, ...)",)
    with pytest.raises(LayoutError, match=r"labels.json does not name all of its images: images without a file name"):
        list_images(DataConfig(source=str(tmp_path), exclude=str(path)))


def test_many_categories_are_read_in_linear_time() -> None:
    number = 20_000
    categories = [{"id": i, "name": f"c{i}", "supercategory": f"s{i % 50}"} for i in range(number)]
    table = {"categories": [*categories, {"id": number, "name": "s3", "supercategory": "none"}], "annotations": []}
    reading = ReadingReport()
    start = time.process_time()
    kept = without_unused_groups("labels.json", read_categories("labels.json", table, reading), table, reading)
    assert time.process_time() - start < 5
    assert kept.values() == [category["name"] for category in categories]
    assert reading.lines() == ("categories of a group or the background that no object has, left out: 1 (s3)",)


def test_a_file_without_annotations_is_named() -> None:
    with pytest.raises(DataError, match=r'a/labels.json is not a COCO file of instances: it has no list "annotations"'):
        without_unused_groups("a/labels.json", Ids(), {"categories": []}, ReadingReport())
