"""A layout is recognized by its content; what cannot be told apart, or is not complete, is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.transfer.labels.test_voc_files import pairs, put_xml
from tests.transfer.labels.test_yolo import BOX, put, yolo_source
from tests.transfer.sources import blank, coco_source, mask_folders, read, save, thing

from plrc.errors import ConfigError, LayoutError, PlrcError

ALL = r"voc, cityscapes, coco, yolo, folders"


def refusal(source: Path, **config: str) -> str:
    with pytest.raises(LayoutError) as error:
        read(source, **config)
    return str(error.value)


def test_nothing_known_names_what_was_seen(tmp_path: Path) -> None:
    put(tmp_path / "notes" / "a.csv", "1")
    blank(tmp_path / "photos" / "a.png")
    blank(tmp_path / "photos" / "b.PNG")
    assert refusal(tmp_path) == (
        f"{tmp_path} has no labels in a known layout ({ALL}): it has the folders notes, photos and 2 .png, 1 .csv; "
        "name the folder with the labels, or the layout with --data.layout (plrc transfer probe: --layout)"
    )


def test_near_layouts_name_what_is_missing(tmp_path: Path) -> None:
    blank(tmp_path / "JPEGImages" / "a.jpg")
    put(tmp_path / "data.yaml", "names: [cat]")
    put(tmp_path / "shapes.json", '{"shapes": []}')
    put(tmp_path / "labels" / "a.csv", "1")
    message = refusal(tmp_path)
    for reason in (
        "; voc has the folder JPEGImages, but there is no folder ImageSets and no .xml file",
        "; coco has 1 .json files such as shapes.json, but none of them is a COCO file",
        "; yolo has data.yaml, but there is no .txt file in a folder labels or next to an image",
        "; folders has the folder labels, but there are no id maps (.png) in it",
    ):
        assert reason in message
    put(tmp_path / "labels" / "a.txt", "a cat")
    put(tmp_path / "tasks.xml", "<annotations/>")
    (tmp_path / "data.yaml").unlink()
    message = refusal(tmp_path)
    assert "yolo has 1 .txt files such as labels/a.txt, but none of them has lines of a class and a box" in message
    assert "voc has 1 .xml files such as tasks.xml, but none of them is an annotation of Pascal VOC" in message
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    put(tmp_path / "labels" / "a.txt", BOX)
    put_xml(tmp_path / "a.xml")
    assert "yolo has 1 .txt files such as labels/a.txt, but there is no image" in refusal(tmp_path)
    assert "voc has 2 .xml files such as a.xml, but there is no image" in refusal(tmp_path)


def test_the_folder_inside_is_advised(tmp_path: Path) -> None:
    coco_source(tmp_path / "set" / "version 2", [thing(1)])
    advice = f"name the folder with the labels, such as {tmp_path / 'set' / 'version 2'}, or the layout"
    assert advice in refusal(tmp_path / "set")


def test_yolo_is_never_taken_for_id_maps(tmp_path: Path) -> None:
    yolo_source(tmp_path / "yolo")
    assert len(read(tmp_path / "yolo").test.images) == 2
    with pytest.raises(LayoutError, match="the layout of YOLO"):
        read(tmp_path / "yolo", "semantic")
    for path in (tmp_path / "yolo" / "labels").rglob("*.txt"):
        path.write_text("")
    with pytest.raises(PlrcError, match=r"no usable label in train \(split train\)"):
        read(tmp_path / "yolo")
    maps = mask_folders(tmp_path / "maps", "train", "val")
    assert len(read(maps, "semantic").test.images) == 5
    with pytest.raises(LayoutError, match="images and id maps, but no boxes; choose the task semantic"):
        read(maps)


def test_several_layouts_are_asked_for_unless_the_task_decides(tmp_path: Path) -> None:
    pairs(tmp_path, "images/train/{}.jpg", "annotations/train/{}.xml")
    pairs(tmp_path, "images/val/{}.jpg", "annotations/val/{}.xml")
    for split in ("train", "val"):
        for i in range(5):
            put(tmp_path / "labels" / split / f"{i}.txt", BOX)
    message = refusal(tmp_path)
    assert message == (
        f"{tmp_path} has labels in more than one layout: voc (10 .xml files such as annotations/train/0.xml), yolo (10 "
        ".txt files such as labels/train/0.txt); name one with --data.layout (plrc transfer probe: --layout)"
    )
    assert read(tmp_path, layout="voc").train.classes == ("dog",)
    assert read(tmp_path, layout="yolo").train.classes == ("class 1",)
    for split in ("train", "val"):
        for i in range(5):
            save(tmp_path / "labels" / split / f"{i}.png", [[1, 2] * 15] * 20)
    with pytest.raises(LayoutError, match=r"more than one layout: voc .*, folders \(id maps in the folder labels\)"):
        read(tmp_path, "semantic")
    for path in (tmp_path / "annotations").rglob("*.xml"):
        path.unlink()
    assert read(tmp_path, "semantic").train.classes == ("class 1", "class 2")
    assert read(tmp_path).train.classes == ("class 1",)


def test_notes_next_to_labels_are_no_coco_file(tmp_path: Path) -> None:
    yolo_source(tmp_path)
    put(tmp_path / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}}')
    put(tmp_path / "README.txt", "exported")
    assert len(read(tmp_path).test.images) == 2


def test_a_setting_of_another_layout_is_refused(tmp_path: Path) -> None:
    coco_source(tmp_path, [thing(1)])
    with pytest.raises(ConfigError, match=r"data.unlabelled is for the layouts yolo and voc, but .* is read as coco"):
        read(tmp_path, unlabelled="background")
    with pytest.raises(ConfigError, match=r"data.four_point_polygons is for the layout yolo, but .* is read as coco"):
        read(tmp_path, four_point_polygons=True)
