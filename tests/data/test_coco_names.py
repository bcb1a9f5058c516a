"""The image files that a COCO file names, in the spellings of exporters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plrc.config import DataConfig
from plrc.data.coco_names import find_images, names_by_ending, plain_name
from plrc.data.masks import read_coco_masks
from plrc.data.sources import find_images as list_images
from plrc.errors import DataError


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("a.jpg", "a.jpg"),
        ("./b//a.jpg", "b/a.jpg"),
        ("images\\b\\a.jpg", "images/b/a.jpg"),
        ("C:\\work\\set\\a.jpg", "/work/set/a.jpg"),
        ("my%20cat%C3%A9.jpg", "my caté.jpg"),
        ("https://host.org/set/a%20b.jpg?token=1#x", "/set/a b.jpg"),
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
