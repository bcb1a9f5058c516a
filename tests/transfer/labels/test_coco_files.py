"""Which COCO file holds which split, and the count of the ones that are not used."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.transfer.sources import blank, coco_file, read, thing

from plrc.errors import DataError

PER_SPLIT = 5


def write(path: Path, first: int = 0) -> None:
    numbers = range(first, first + PER_SPLIT)
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in numbers]
    coco_file(path, images, [thing(i, image=i) for i in numbers], ("cat", "dog"))


def put_images(folder: Path, numbers: range = range(2 * PER_SPLIT)) -> None:
    for i in numbers:
        blank(folder / f"{i}.jpg")


@pytest.mark.parametrize("folder", ["annotations", "Annotations", "labels", "coco", "."])
@pytest.mark.parametrize("name", ["{}.json", "instances_{}.json"])
def test_a_folder_with_a_file_for_each_split(tmp_path: Path, folder: str, name: str) -> None:
    put_images(tmp_path / "images")
    write(tmp_path / folder / name.format("train"))
    write(tmp_path / folder / name.format("val"), PER_SPLIT)
    splits = read(tmp_path, val="none", layout="coco")
    assert [image.name for image in splits.train.images] == [f"images/{i}.jpg" for i in range(PER_SPLIT)]
    assert [image.name for image in splits.test.images] == [f"images/{i}.jpg" for i in range(PER_SPLIT, 2 * PER_SPLIT)]
    assert len(splits.reading.lines()) == 3


@pytest.mark.parametrize("folder", ["annotations", "labels", "."])
def test_files_in_other_places_are_counted(tmp_path: Path, folder: str) -> None:
    put_images(tmp_path / "images")
    write(tmp_path / folder / "train.json")
    write(tmp_path / folder / "val.json", PER_SPLIT)
    write(tmp_path / "old" / "backup.json")
    splits = read(tmp_path, val="none", layout="coco")
    assert [len(part.images) for part in (splits.train, splits.test)] == [PER_SPLIT, PER_SPLIT]
    assert splits.reading.lines()[3:] == ("further COCO files, left out: 1 (old/backup.json)",)


@pytest.mark.parametrize("names", [("part1.json", "part2.json"), ("_annotations.coco.json", "copy.json")])
@pytest.mark.parametrize("images_in", ["train", "images"])
def test_further_files_of_a_split_are_counted(tmp_path: Path, names: tuple[str, str], images_in: str) -> None:
    for split in ("train", "test"):
        put_images(tmp_path / (split if images_in == "train" else "images/" + split))
        write(tmp_path / split / names[1], PER_SPLIT)
        write(tmp_path / split / names[0])
    splits = read(tmp_path, val="none")
    numbers = [int(Path(image.name).stem) for image in splits.train.images]
    assert numbers == list(range(PER_SPLIT))
    assert splits.reading.lines()[3:] == (f"further COCO files, left out: 2 (test/{names[1]}, train/{names[1]})",)


def test_other_annotations_of_coco_are_counted(tmp_path: Path) -> None:
    put_images(tmp_path / "images")
    write(tmp_path / "annotations" / "instances_train.json")
    write(tmp_path / "annotations" / "instances_val.json", PER_SPLIT)
    write(tmp_path / "annotations" / "captions_train.json")
    splits = read(tmp_path, val="none")
    assert splits.reading.lines()[3:] == ("further COCO files, left out: 1 (annotations/captions_train.json)",)


def test_files_of_other_content_are_no_split(tmp_path: Path) -> None:
    put_images(tmp_path / "images", range(PER_SPLIT))
    write(tmp_path / "annotations" / "labels.json")
    (tmp_path / "annotations" / "meta.json").write_text("{}")
    splits = read(tmp_path, test_fraction=0.4, val="none")
    assert [len(part.images) for part in (splits.train, splits.test)] == [3, 2]


def test_an_empty_file_named_like_a_split_is_refused(tmp_path: Path) -> None:
    put_images(tmp_path / "images", range(PER_SPLIT))
    write(tmp_path / "annotations" / "val.json")
    (tmp_path / "annotations" / "train.json").write_text("")
    with pytest.raises(DataError, match=r"train\.json is not readable JSON"):
        read(tmp_path)
