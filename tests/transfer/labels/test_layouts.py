"""Each layout: what is read from it, what is dropped and noted, what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.transfer.sources import (
    blank,
    cityscapes,
    coco_file,
    coco_source,
    mask_folders,
    names,
    read,
    save,
    thing,
    voc_image,
    voc_list,
    voc_years,
)

from plrc.data.decode import decode
from plrc.data.masks import decode_masks, encode_mask
from plrc.data.reading import ReadingReport
from plrc.errors import ConfigError, DataError, LayoutError, PlrcError
from plrc.scenes import encode_rle
from plrc.transfer.labels.datasets import DetectionImages, SemanticImages
from plrc.transfer.labels.layouts import LAYOUTS, open_labels
from plrc.transfer.protocols import InputConfig, LabelledConfig, Layout, Task

# Pascal VOC


def test_voc_corners_count_from_one_and_are_inside(tmp_path: Path) -> None:
    splits = read(voc_years(tmp_path))
    assert splits.train.classes == ("cat", "dog")
    image = splits.train.images[0]
    assert (image.name, image.height, image.width) == ("VOC2007/JPEGImages/07_0.jpg", 20, 30)
    assert image.boxes.tolist() == [[0, 0, 10, 10], [4, 5, 30, 20]]
    assert image.classes.tolist() == [1, 0]
    assert image.areas.tolist() == [100, 390]
    assert image.segments == ()


def test_voc_splits_are_found_over_years(tmp_path: Path) -> None:
    splits = read(voc_years(tmp_path))
    assert names(splits.train) == ["07_0", "07_1", "12_0", "12_1"]
    assert names(splits.val) == ["07_2", "12_2"]
    assert names(splits.test) == ["07_3", "07_4"]
    assert splits.reading.lines() == (
        "train: split train; 4 images, 8 objects",
        "val: split val; 2 images, 4 objects",
        "test: split test; 2 images, 4 objects",
    )


@pytest.mark.parametrize("kit", ["", "VOCdevkit"])
def test_voc_lists_of_years_are_joined(tmp_path: Path, kit: str) -> None:
    voc_years(tmp_path / kit)
    splits = read(tmp_path, train="trainval07+12", test="test07")
    assert len(splits.train.images) == 5 and len(splits.val.images) == 1  # the list val is part of train
    assert sorted(names(splits.train) + names(splits.val)) == ["07_0", "07_1", "07_2", "12_0", "12_1", "12_2"]
    assert (
        "val: a fifth of trainval07+12, left out of train, the same for every seed; 1 images"
        in splits.reading.lines()[1]
    )
    one_year = read(tmp_path, train="trainval12", val="none", test="test07")
    assert names(one_year.train) == ["12_0", "12_1", "12_2"]
    assert (names(one_year.val), names(one_year.test)) == ([], ["07_3", "07_4"])
    assert "val: none; 0 images, 0 objects" in one_year.reading.lines()


def test_splits_are_joined_by_plus(tmp_path: Path) -> None:
    splits = read(voc_years(tmp_path / "voc"), val="none", test="val+test")
    assert names(splits.test) == ["07_2", "07_3", "07_4", "12_2"]
    assert splits.reading.lines()[-1] == "test: split val+test; 4 images, 8 objects"
    coco = coco_source(tmp_path / "coco", [thing(1)], [])
    third = [{"id": 9, "file_name": "6.jpg"}]
    blank(coco / "test" / "6.jpg")
    coco_file(coco / "annotations" / "instances_test.json", third, [thing(1, image=9)], ("cat", "dog"))
    joined = read(coco, val="none", test="val2017+test").test
    assert len(joined.images) == 2 and sum(len(image.classes) for image in joined.images) == 1
    with pytest.raises(
        ConfigError, match="no COCO annotations of a split val2017\\+tset; write one of: test, train2017"
    ):
        read(coco, test="val2017+tset")


def test_one_voc_folder_takes_its_own_year(tmp_path: Path) -> None:
    splits = read(voc_years(tmp_path) / "VOC2007", train="trainval07", test="test")
    assert names(splits.test) == ["07_3", "07_4"]
    assert splits.test.images[0].name == "JPEGImages/07_3.jpg"


def test_voc_difficult_objects_are_ignored(tmp_path: Path) -> None:
    voc_years(tmp_path)
    voc_image(tmp_path / "VOC2007", "07_0", ("dog", 1, 1, 9, 9), extra="<difficult>1</difficult>")
    labelled = read(tmp_path).train
    assert labelled.images[0].ignored.tolist() == [True]
    assert labelled.images[1].ignored.tolist() == [False, False]
    _, target = DetectionImages(labelled, InputConfig(flip_prob=0), train=True, masks=False, seed=0)[(0, 0)]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    _, target = DetectionImages(labelled, InputConfig(), train=False, masks=False, seed=0)[0]
    assert target["boxes"].shape == (1, 4)


def test_difficult_objects_may_be_trained_on_and_never_count(tmp_path: Path) -> None:
    voc_years(tmp_path)
    for name in ("07_0", "07_2", "07_3"):
        voc_image(tmp_path / "VOC2007", name, ("dog", 1, 1, 9, 9), extra="<difficult>1</difficult>")
    splits = read(tmp_path, difficult=True)
    sets = (splits.train, splits.val, splits.test)
    assert [part.images[0].ignored.tolist() for part in sets] == [[False], [True], [True]]
    _, target = DetectionImages(splits.train, InputConfig(flip_prob=0), train=True, masks=False, seed=0)[(0, 0)]
    assert target["boxes"].tolist() == [[0, 0, 9, 9]]
    crowd = [thing(i, image=i, iscrowd=1) for i in (1, 2, 3)] + [thing(4, image=4)]
    coco = read(coco_source(tmp_path / "coco", crowd), difficult=True, val="none")
    assert [one.ignored.tolist() for one in coco.train.images] == [[True], [True], [True], [False]]


def test_broken_voc_annotations_are_counted_by_reason(tmp_path: Path) -> None:
    root = voc_years(tmp_path) / "VOC2007"
    voc_image(
        root,
        "07_0",
        ("dog", 5, 5, 5, 9),
        ("dog", 9, 5, 5, 9),
        ("dog", 31, 1, 40, 9),
        ("dog", -9, 1, 0, 9),
        ("dog", float("nan"), 1, 3, 4),
        ("dog", 21, 11, 33, 24),
        ("dog", 0, 0, 10, 10),
        ("", 1, 1, 4, 4),
        ("dog", 3, 3, 8, 8),
    )
    voc_image(root, "07_1", ("dog", 1, 1, 40, 10), size=(480, 640))
    voc_image(root, "07_3", ("bird", 1, 1, 4, 4), ("dog", 1, 1, 4, 4))
    (root / "Annotations" / "broken.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    blank(root / "JPEGImages" / "broken.jpg")
    (root / "JPEGImages" / "07_4.jpg").write_bytes(b"no image")
    blank(root / "JPEGImages" / "bare.jpg")
    (root / "Annotations" / "gone.xml").write_text("<annotation/>")
    voc_list(root, "train", "07_0", "07_1", "broken", "bare", "gone")
    splits = read(root)
    assert splits.train.images[0].boxes.tolist() == [[20, 10, 30, 20], [0, 0, 10, 10], [2, 2, 8, 8]]
    assert names(splits.train) == ["07_0", "broken"]
    assert splits.test.images[0].classes.tolist() == [0]
    assert set(splits.reading.lines()[3:]) == {
        "boxes without width or height, dropped: 3 (07_0.xml object 1, 07_0.xml object 2, 07_0.xml object 5)",
        "boxes outside of the image, dropped: 2 (07_0.xml object 3, 07_0.xml object 4)",
        "boxes partly outside of the image, clipped: 2 (07_0.xml object 6, 07_0.xml object 7)",
        "objects without a name, dropped: 1 (07_0.xml object 8)",
        "objects without a box of four numbers, dropped: 1 (broken.xml object 1)",
        "objects of an unknown class, dropped: 2 (07_2.xml object 2 cat, 07_3.xml object 1 bird)",
        "images whose objects were all dropped, as background, read: 1 (JPEGImages/broken.jpg)",
        "images of another size than their annotation says, dropped: 1 (JPEGImages/07_1.jpg)",
        "images without an annotation file, left out: 1 (JPEGImages/bare.jpg)",
        "image files that are missing, dropped: 1 (JPEGImages/gone.jpg)",
        "image files that cannot be read, dropped: 1 (JPEGImages/07_4.jpg)",
        "objects of images that cannot be used, dropped: 3 (07_1.xml object 1, 07_4.xml object 1, 07_4.xml object 2)",
    }


def test_a_rotated_photograph_has_the_size_that_it_is_shown_in(tmp_path: Path) -> None:
    root = voc_years(tmp_path) / "VOC2007"
    voc_image(root, "07_0", ("dog", 1, 1, 20, 30), size=(30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "JPEGImages" / "07_0.jpg", exif=exif)
    splits = read(root)
    assert len(splits.reading.lines()) == 3  # nothing was mended
    image, target = DetectionImages(splits.train, InputConfig(), train=False, masks=False, seed=0)[0]
    assert image.shape == (3, 30, 20)
    assert target["boxes"].tolist() == [[0, 0, 20, 30]]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("stated", ["shown", "stored", "only size", "neither", "unknown"])
def test_boxes_lie_on_the_object_of_a_turned_image(tmp_path: Path, ending: str, stated: str) -> None:
    root = voc_years(tmp_path) / "VOC2007"
    box_and_size = {
        "shown": ((21, 11, 40, 40), (200, 100)),
        "stored": ((11, 61, 40, 80), (100, 200)),
        "only size": ((21, 111, 40, 140), (100, 200)),
        "neither": ((11, 61, 40, 80), (200, 99)),
        "unknown": ((21, 11, 40, 40), (0, 0)),
    }
    box, size = box_and_size[stated]
    voc_image(root, "07_0", ("dog", *box), size=size)
    (root / "JPEGImages" / "07_0.jpg").unlink()
    shown = np.zeros((200, 100, 3), np.uint8)
    top = 110 if stated == "only size" else 10
    shown[top : top + 30, 20:40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(shown))).save(root / "JPEGImages" / f"07_0.{ending}", exif=exif)
    splits = read(root)
    lines = splits.reading.lines()[3:]
    if stated == "neither":
        assert "07_0" not in names(splits.train)
        assert lines == (
            f"images of another size than their annotation says, dropped: 1 (JPEGImages/07_0.{ending})",
            "objects of images that cannot be used, dropped: 1 (07_0.xml object 1)",
        )
        return
    item = next(image for image in splits.train.images if image.name.endswith(f"07_0.{ending}"))
    assert item.boxes.tolist() == [[20, top, 40, top + 30]]
    pixels = decode(item.path)
    assert tuple(pixels.shape[1:]) == (item.height, item.width) == (200, 100)
    assert pixels[:, top + 2 : top + 28, 22:38].min() > 200
    if stated == "stored":
        sentence = "objects annotated before the turn of their image by EXIF, turned with it, repaired: 1"
        assert lines == (f"{sentence} (JPEGImages/07_0.{ending})",)
    elif stated == "only size":
        sentence = "images whose annotation states the size before their turn by EXIF, and boxes after it, repaired: 1"
        assert lines == (f"{sentence} (JPEGImages/07_0.{ending})",)
    else:
        assert lines == ()


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_images_that_are_cut_off_are_dropped_and_odd_ends_are_not(tmp_path: Path, ending: str) -> None:
    coco_source(tmp_path, [])
    images = [{"id": i, "file_name": f"{i}.{ending}"} for i in (1, 2, 3, 4)]
    things = [thing(i, image=i) for i in (1, 2, 3, 4)]
    coco_file(tmp_path / "annotations" / "instances_train2017.json", images, things, ("cat", "dog"))
    files = [tmp_path / "train2017" / f"{i}.{ending}" for i in (1, 2, 3, 4)]
    for path in files:
        save(path, np.random.default_rng(0).integers(0, 256, (20, 30, 3)))
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-200])
    files[1].write_bytes(content + bytes(1000))  # as some cameras append their own data
    splits = read(tmp_path, val="none")
    assert names(splits.train) == ["2", "3", "4"]
    assert splits.reading.lines()[3:] == (
        f"image files that cannot be read, dropped: 1 (train2017/1.{ending})",
        "objects of images that cannot be used, dropped: 1 (instances_train2017.json annotation 1)",
    )


def test_voc_semantic_maps_and_the_augmented_list(tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    for i in range(6):
        blank(root / "JPEGImages" / f"{i}.jpg", 4, 6)
        folder = "SegmentationClass" if i >= 4 else "SegmentationClassAug"
        ids = Image.fromarray(np.uint8([[0, 20, 255, 15, 21, 1]] * 4))
        ids.putpalette([(i * 37) % 256 for i in range(768)])
        (root / folder).mkdir(exist_ok=True)
        ids.save(root / folder / f"{i}.png")
    voc_list(root, "train_aug", "0", "1", "2", "/JPEGImages/3.jpg /SegmentationClassAug/3.png", kind="Segmentation")
    voc_list(root, "val", "4", "5", kind="Segmentation")
    splits = read(tmp_path, "semantic", train="train_aug12", test="val12")
    assert (len(splits.train.images), len(splits.val.images), len(splits.test.images)) == (3, 1, 2)
    assert len(splits.train.classes) == 21 and splits.train.classes[15] == "person"
    _, labels = SemanticImages(splits.test, InputConfig(test_size=1.0), train=False, seed=0)[0]
    assert labels[0].tolist() == [0, 20, 255, 15, 255, 1]


# COCO


def test_coco_boxes_masks_areas_and_crowds(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:8, 2:12] = True
    polygon = [[2.0, 3.0, 12.0, 3.0, 12.0, 8.0, 2.0, 8.0]]
    compressed = {"size": [20, 30], "counts": encode_mask(mask)["counts"].decode()}
    things = [
        thing(1, segmentation=polygon, area=41.5),
        thing(2, segmentation=encode_rle(mask), category=8),
        thing(3, segmentation=compressed, iscrowd=1),
    ]
    everywhere = [{**one, "id": 10 * image + one["id"], "image_id": image} for image in (1, 2, 3, 4) for one in things]
    splits = read(coco_source(tmp_path, everywhere), "instances")
    image = splits.train.images[0]
    assert splits.train.classes == ("cat", "dog")
    assert image.boxes.tolist() == [[2, 3, 12, 8]] * 3
    assert image.classes.tolist() == [0, 1, 0]
    assert image.ignored.tolist() == [False, False, True]
    assert image.areas.tolist() == [41.5, 50, 50]
    assert (decode_masks(image.segments, 20, 30) == mask).all()
    assert (len(splits.train.images), len(splits.val.images)) == (3, 1)
    assert splits.test.images[0].name == "val2017/9.jpg"
    assert read(tmp_path).train.images[0].segments == ()


def test_broken_coco_annotations_are_counted(tmp_path: Path) -> None:
    fine = [[2.0, 3.0, 12.0, 3.0, 12.0, 8.0]]
    things = [
        *(thing(i, image=i, segmentation=fine) for i in (1, 2, 3, 4)),
        thing(5, category=99, segmentation=fine),
        thing(6, image=55, segmentation=fine),
        {**thing(7), "bbox": [1, 2, 0, 4]},
        {**thing(8), "bbox": [1, 2, None, 4]},
        {**thing(9, segmentation=fine), "bbox": [25, 2, 9, 4]},
        thing(10),
        thing(11, segmentation=[[1.0, 2.0]]),
        thing(12, segmentation=[[100.0, 100.0, 120.0, 100.0, 120.0, 120.0]]),
        thing(13, segmentation={"size": [20, 31], "counts": [600, 20]}),
        thing(14, segmentation={"size": [20, 30], "counts": "zzz"}),
    ]
    coco_source(tmp_path, things)
    (tmp_path / "train2017" / "4.jpg").unlink()
    splits = read(tmp_path, "instances")
    assert sum(len(one.classes) for one in (*splits.train.images, *splits.val.images)) == 4
    name = "instances_train2017.json annotation"
    assert set(splits.reading.lines()[3:]) == {
        "objects of an unknown class, dropped: 1 (instances_train2017.json annotation 5 (category 99))",
        "annotations of an image that is not listed, dropped: 1 (instances_train2017.json annotation 6)",
        "boxes without width or height, dropped: 1 (instances_train2017.json annotation 7)",
        "objects without a box of four numbers, dropped: 1 (instances_train2017.json annotation 8)",
        "boxes partly outside of the image, clipped: 1 (instances_train2017.json annotation 9)",
        f"objects without a usable mask, dropped: 5 ({', '.join(f'{name} {i}' for i in (10, 11, 12))}, ...)",
        "image files that are missing, dropped: 1 (train2017/4.jpg)",
        "objects of images that cannot be used, dropped: 1 (instances_train2017.json annotation 4)",
    }


def test_an_image_listed_twice_counts_once(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{min(i, 3)}.jpg"} for i in (1, 2, 3, 4)]
    coco_source(tmp_path, [])
    things = [thing(i, image=i) for i in (1, 2, 3, 4)]
    coco_file(tmp_path / "annotations" / "instances_train2017.json", images, things, ("cat", "dog"))
    splits = read(tmp_path)
    assert len(splits.train.images) + len(splits.val.images) == 3
    assert splits.reading.lines()[3:] == (
        "images that are listed under several ids, their objects joined, repaired: 1 (3.jpg)",
        "objects that are annotated twice, dropped: 1 (instances_train2017.json annotation 4)",
    )


def test_coco_semantic_maps(tmp_path: Path) -> None:
    root = coco_source(tmp_path, [])
    for split, count in (("train2017", 3), ("val2017", 0)):
        for name in [str(i + 1) for i in range(count)] or ["9"]:
            save(root / "semantic" / split / f"{name}.png", [[0, 7, 149, 90, 255] * 6] * 20)
    splits = read(root, "semantic")
    assert splits.train.classes == ("cat", "class 90", "road")
    assert "images without a label map, dropped: 1 (4.jpg)" in splits.reading.lines()
    _, labels = SemanticImages(splits.test, InputConfig(test_size=1.0), train=False, seed=0)[0]
    assert labels[0, :5].tolist() == [255, 0, 2, 1, 255]


# folders of images and maps


def test_folders_with_ids_that_occur(tmp_path: Path) -> None:
    splits = read(mask_folders(tmp_path, "train", "val"), "semantic")
    assert splits.train.classes == ("class 0", "class 3", "class 5")
    assert (len(splits.train.images), len(splits.val.images)) == (4, 1)
    assert names(splits.test) == [f"val{i}" for i in range(5)]
    assert splits.train.table is not None
    assert splits.train.table.class_of_value == {0: 0, 3: 1, 5: 2}
    assert splits.reading.lines()[0].endswith(
        "pixels: class 0 25.0%, class 3 25.0%, class 5 25.0%, ignored 25.0% (ids 255)"
    )


def test_folders_with_a_list_of_classes(tmp_path: Path) -> None:
    mask_folders(tmp_path, "train", "val", "test", ids=((0, 3, 2, 255),))
    (tmp_path / "classes.txt").write_text("sky\nroad\nVoid\ncar\n")
    splits = read(tmp_path, "semantic")
    assert splits.train.classes == ("sky", "road", "car")
    assert splits.train.table is not None
    assert splits.train.table.class_of_value == {0: 0, 1: 1, 3: 2}
    _, labels = SemanticImages(splits.test, InputConfig(test_size=1.0), train=False, seed=0)[0]
    assert labels.tolist() == [[0, 2, 255, 255]]
    assert names(splits.val) == [f"val{i}" for i in range(5)]


def test_camvid_is_known_by_its_file_names(tmp_path: Path) -> None:
    splits = read(mask_folders(tmp_path, "train", "test", ids=((0, 10, 11, 255),), prefix="Seq05VD_"), "semantic")
    assert len(splits.train.classes) == 11 and splits.train.classes[10] == "bicyclist"
    assert splits.train.table is not None and 11 not in splits.train.table.class_of_value
    assert "named as CamVid's" in splits.reading.lines()[0]


def test_maps_that_do_not_fit_their_image_are_dropped(tmp_path: Path) -> None:
    mask_folders(tmp_path, "train", "val")
    save(tmp_path / "labels" / "train" / "train0.png", [[0, 1, 2]])
    (tmp_path / "labels" / "train" / "train1.png").unlink()
    (tmp_path / "images" / "val" / "val2.jpg").unlink()
    assert read(tmp_path, "semantic").reading.lines()[3:] == (
        "label maps of another size than the image, dropped: 1 (train0.jpg)",
        "images without a label map, dropped: 1 (train1.jpg)",
        "label maps without an image, dropped: 1 (val2.png)",
    )


# Cityscapes


def test_cityscapes_semantic(tmp_path: Path) -> None:
    splits = read(cityscapes(tmp_path), "semantic")
    assert len(splits.train.classes) == 19 and splits.train.classes[13] == "car"
    assert (len(splits.train.images), len(splits.val.images), len(splits.test.images)) == (4, 1, 5)
    assert splits.test.images[0].name == "leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png"
    _, labels = SemanticImages(splits.test, InputConfig(test_size=1.0), train=False, seed=0)[0]
    assert labels.tolist() == [[0, 13, 13, 11], [0, 13, 13, 18], [255, 255, 13, 12]]


def test_cityscapes_instances(tmp_path: Path) -> None:
    image = read(cityscapes(tmp_path), "instances").test.images[0]
    classes = read(tmp_path, "instances").test.classes
    found = {
        (classes[k], bool(ignored)): (box, area)
        for k, ignored, box, area in zip(
            image.classes, image.ignored, image.boxes.tolist(), image.areas.tolist(), strict=True
        )
    }
    assert len(classes) == 8 and len(image.classes) == 5
    assert found[("person", True)] == ([3, 0, 4, 1], 1)
    assert found[("rider", True)] == ([3, 2, 4, 3], 1)
    assert found[("bicycle", False)] == ([3, 1, 4, 2], 1)
    cars = image.boxes[image.classes == classes.index("car")]
    assert cars.tolist() == [[2, 1, 3, 3], [1, 0, 3, 2]]
    masks = decode_masks(image.segments, 3, 4)[image.classes == classes.index("car")]
    assert masks[1].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("task", ["detection", "instances"])
def test_a_map_of_cityscapes_that_cannot_be_read_is_named(task: Task, tmp_path: Path) -> None:
    file = cityscapes(tmp_path) / "gtFine" / "val" / "aachen" / "aachen_000003_000019_gtFine_instanceIds.png"
    noise = np.random.default_rng(0).integers(0, 2**16, (300, 400), dtype=np.uint16)
    blank(tmp_path / "leftImg8bit" / "val" / "aachen" / "aachen_000003_000019_leftImg8bit.png", 300, 400)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:-100_000])
    with pytest.raises(DataError, match=rf"the label map {file} cannot be read .*; fix or remove it"):
        read(tmp_path, task)


def test_a_map_of_cityscapes_is_measured_before_it_is_decoded(tmp_path: Path) -> None:
    stem = "val/aachen/aachen_000003_000019"
    cityscapes(tmp_path)
    for name in (f"gtFine/{stem}_gtFine_instanceIds.png", f"leftImg8bit/{stem}_leftImg8bit.png"):
        content = bytearray((tmp_path / name).read_bytes())
        content[16:24] = struct.pack(">II", 20_000, 15_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"instanceIds\.png cannot be read \(15000 x 20000 pixels; 1 to 200000000 can"):
        read(tmp_path, "instances")


# splits without labels, and images without a usable label


def test_a_test_split_without_labels_is_not_chosen(tmp_path: Path) -> None:
    voc = voc_years(tmp_path / "voc") / "VOC2007"
    for name in ("07_3", "07_4"):
        (voc / "Annotations" / f"{name}.xml").unlink()
    coco = coco_source(tmp_path / "coco", [thing(i, image=i) for i in (1, 2, 3, 4)])
    blank(coco / "test" / "6.jpg")
    (coco / "annotations" / "instances_test.json").write_text('{"images": [{"id": 9, "file_name": "6.jpg"}]}')
    masks = mask_folders(tmp_path / "masks", "train", "val", "test")
    for path in (masks / "labels" / "test").iterdir():
        path.unlink()
    voc_maps = tmp_path / "maps" / "VOC2012"
    for split in ("train", "val", "test"):
        for i in range(3):
            blank(voc_maps / "JPEGImages" / f"{split}{i}.jpg", 1, 2)
            if split != "test":
                save(voc_maps / "SegmentationClass" / f"{split}{i}.png", [[0, 1]])
        voc_list(voc_maps, split, *(f"{split}{i}" for i in range(3)), kind="Segmentation")
    cases: list[tuple[Path, Task, list[str]]] = [
        (voc, "detection", ["07_2"]),
        (coco, "detection", ["9"]),
        (masks, "semantic", [f"val{i}" for i in range(5)]),
        (voc_maps, "semantic", ["val0", "val1", "val2"]),
    ]
    for root, task, expected in cases:
        splits = read(root, task)
        assert names(splits.test) == expected
        assert "splits without labels, left out: 1 (test)" in splits.reading.lines()


def test_images_whose_objects_were_all_dropped_are_counted(tmp_path: Path) -> None:
    voc = voc_years(tmp_path / "voc") / "VOC2007"
    voc_image(voc, "07_0", ("dog", 5, 5, 5, 9))
    voc_image(voc, "07_3", ("bird", 1, 1, 4, 4), ("cow", 1, 1, 4, 4))
    things = [
        thing(1, iscrowd=2),
        {**thing(2, image=2), "bbox": None},
        {**thing(3, image=3), "bbox": [1, 2, 0, 4]},
        thing(4, image=4),
    ]
    coco = coco_source(tmp_path / "coco", things)
    yolo = tmp_path / "yolo"
    contents = {"a": "cat 0.5 0.5 0.2 0.2", "b": "0 300 0.5 0.2 0.2", "c": "0 0.5 0.5 0 0.2", "d": "", "e": "", "f": ""}
    for name, content in contents.items():
        blank(yolo / "images" / f"{name}.jpg")
        (yolo / "labels").mkdir(exist_ok=True)
        (yolo / "labels" / f"{name}.txt").write_text(f"{content}\n")
    for name in ("g", "h", "i"):
        blank(yolo / "images" / f"{name}.jpg")
        (yolo / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n" * 2)
    cases = [
        (read(voc, val="none"), "2 (JPEGImages/07_0.jpg, JPEGImages/07_3.jpg)"),
        (read(coco, val="none"), "3 (train2017/1.jpg, train2017/2.jpg, train2017/3.jpg)"),
        (read(yolo, val="none", test_fraction=0.5), "3 (images/a.jpg, images/b.jpg, images/c.jpg)"),
    ]
    for splits, counted in cases:
        lines = splits.reading.lines()
        assert f"images whose objects were all dropped, as background, read: {counted}" in lines
        assert not any(line.startswith("images without an annotation, as background") for line in lines)


# one sentence for each mistake


def spoil(path: Path) -> str:
    path.write_text("<annotation>" if path.suffix == ".xml" else "{")
    return str(path)


def test_unreadable_annotations_name_the_file(tmp_path: Path) -> None:
    voc_years(tmp_path / "voc")
    name = spoil(tmp_path / "voc" / "VOC2007" / "Annotations" / "07_1.xml")
    with pytest.raises(PlrcError, match=f"{name} is not readable XML"):
        read(tmp_path / "voc")
    coco_source(tmp_path / "coco", [])
    name = spoil(tmp_path / "coco" / "annotations" / "instances_val2017.json")
    with pytest.raises(PlrcError, match=f"{name} is not readable JSON"):
        read(tmp_path / "coco")
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text('{"images": [3], "categories": []}')
    with pytest.raises(PlrcError, match="is not a COCO file of instances"):
        read(tmp_path / "coco", test="val2017")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"train": "trainval", "val": "val"}, "the splits trainval and val share 2 images"),
        ({"train": "trainval12", "val": "test07", "test": "test07"}, "the splits test07 and test07 share 2 images"),
        ({"train": "test07", "test": "test"}, "the splits test07 and test share 2 images"),
        ({"train": "nothing"}, "no list nothing in ImageSets/Main; write one of: test, train, trainval, val"),
        ({"train": "trainval07+12", "test": "test12"}, "test.txt is not a file"),
        ({"layout": "coco"}, "no COCO annotations (looked for annotations/*.json, */*.json and *.json)"),
    ],
)
def test_splits_that_cannot_be_used(tmp_path: Path, config: dict[str, str], sentence: str) -> None:
    voc_years(tmp_path)
    voc_list(tmp_path / "VOC2007", "dog_train", "07_0 1")
    with pytest.raises(PlrcError) as error:
        read(tmp_path, **config)
    assert sentence in str(error.value)


def test_tasks_and_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="no labels in a known layout"):
        read(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read(tmp_path / "absent")
    with pytest.raises(LayoutError, match="boxes without masks"):
        read(voc_years(tmp_path / "voc"), "instances")
    with pytest.raises(LayoutError, match=r"boxes, but no label maps .*; choose the task detection"):
        read(tmp_path / "voc", "semantic")
    with pytest.raises(LayoutError, match=r"instances_train2017.json has boxes without masks"):
        read(coco_source(tmp_path / "no masks", [thing(1)]), "instances")
    with pytest.raises(LayoutError, match=r"boxes, but no label maps .*; choose the task detection, or instances"):
        read(coco_source(tmp_path / "boxes", []), "semantic")
    mask_folders(tmp_path / "maps", "train")
    with pytest.raises(DataError, match=r"no split to test on \(splits: train; train is trained on\)"):
        read(tmp_path / "maps", "semantic")
    with pytest.raises(LayoutError, match="no boxes; choose the task semantic"):
        read(tmp_path / "maps", "detection")
    mask_folders(tmp_path / "maps", "val")
    Image.fromarray(np.zeros((1, 4), np.float32)).save(tmp_path / "maps" / "labels" / "val" / "val3.tif")
    (tmp_path / "maps" / "labels" / "val" / "val3.png").unlink()
    with pytest.raises(DataError, match=r"val3.tif contains F pixels, not ids"):
        read(tmp_path / "maps", "semantic")
    with pytest.raises(DataError, match="no usable label"):
        read(coco_source(tmp_path / "coco", []))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", get_args(Task))
def test_a_folder_of_another_layout_is_a_layout_error(layout: str, task: Task, tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    with pytest.raises(LayoutError):
        read(tmp_path, task, layout=layout)


def test_the_settings_name_every_layout() -> None:
    assert set(get_args(Layout)) == {"auto", *LAYOUTS}


def test_a_split_that_does_not_exist_is_a_setting_that_cannot_be_used(tmp_path: Path) -> None:
    for root, task in ((voc_years(tmp_path / "voc"), "detection"), (mask_folders(tmp_path / "maps", "a"), "semantic")):
        with pytest.raises(ConfigError, match="write one of: "):
            read(root, task, train="nothing", test="nothing")


@pytest.mark.parametrize(
    ("boxes", "turned"),
    [
        ([(100, 300, 300, 480)] * 8, True),  # inside both
        ([(100, 300, 300, 483)] + [(100, 300, 300, 480)] * 7, True),  # a careless box
        ([(100, 300, 300, 560)] + [(100, 300, 300, 480)] * 7, True),  # a wrong box
        ([(100, 300, 300, 483)] * 8, True),  # all by a few pixels
        ([(400, 300, 640, 480)] * 4 + [(100, 300, 300, 560)] * 4, True),  # no majority
        ([(100, 300, 300, 640)] * 2 + [(100, 300, 300, 480)] * 6, False),
        ([(100, 300, 300, 640)] * 7 + [(100, 300, 600, 480)], False),  # a wrong box
        ([(100, 300, 490, 640)] * 8, False),  # all by a few pixels to the right
    ],
)
def test_most_boxes_decide_whether_the_boxes_of_a_source_are_turned(
    tmp_path: Path, boxes: list[tuple[int, int, int, int]], turned: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(8):
        blank(tmp_path / f"{i}.jpg")
        Image.new("RGB", (640, 480)).save(tmp_path / f"{i}.jpg", exif=exif)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(8)]
    corners = dict(enumerate(boxes))
    things = [
        {**thing(i, image=i), "bbox": [x0, y0, x1 - x0, y1 - y0], "area": None}
        for i, (x0, y0, x1, y1) in corners.items()
    ]
    coco_file(tmp_path / "annotations" / "train.json", images, things, ("cat",))
    splits = read(tmp_path, test_fraction=0.2, val="none")
    read_boxes = {image.name: image.boxes.tolist() for part in (splits.train, splits.test) for image in part.images}
    for i, (x0, y0, x1, y1) in corners.items():
        expected = [480 - y1, x0, 480 - y0, x1] if turned else [x0, y0, x1, y1]
        clipped = [min(max(side, 0), limit) for side, limit in zip(expected, (480, 640) * 2, strict=True)]
        assert read_boxes[f"{i}.jpg"] == [clipped]
    reason = "objects annotated before the turn" if turned else "images whose annotation states the size before"
    assert any(line.startswith(reason) and "repaired: 8 " in line for line in splits.reading.lines())


def five_channels(path: Path, height: int, width: int) -> None:
    """Put a TIFF of five channels in the place of an image."""
    path.unlink()
    values = np.zeros((height, width, 5), np.uint8)
    tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig")


def test_every_reader_counts_images_of_other_channels(tmp_path: Path) -> None:
    voc_years(tmp_path / "voc")
    five_channels(tmp_path / "voc" / "VOC2007" / "JPEGImages" / "07_0.jpg", 20, 30)
    for i in range(3):
        voc_image(tmp_path / "files", f"{i}", ("dog", 1, 1, 10, 10))
    five_channels(tmp_path / "files" / "JPEGImages" / "0.jpg", 20, 30)
    mask_folders(tmp_path / "masks", "train")
    five_channels(tmp_path / "masks" / "images" / "train" / "train0.jpg", 1, 4)
    cityscapes(tmp_path / "cityscapes")
    stem = "aachen/aachen_000000_000019_leftImg8bit.png"
    five_channels(tmp_path / "cityscapes" / "leftImg8bit" / "train" / stem, 3, 4)
    cases: list[tuple[str, Task, str, int]] = [
        ("voc/VOC2007", "detection", "trainval", 2),
        ("files", "detection", "", 2),
        ("masks", "semantic", "train", 4),
        ("cityscapes", "semantic", "train", 4),
        ("cityscapes", "detection", "train", 4),
    ]
    for folder, task, split, others in cases:
        reading = ReadingReport()
        config = LabelledConfig(source=str(tmp_path / folder), channels=5)
        reader = open_labels(config, task, reading)
        images = reader.read(split or reader.splits[0]).images
        assert [Path(image.path).suffix for image in images] == [".tif"]
        sentence = (
            f"image files of other channels (the image has 3 channels, but data.channels is 5), dropped: {others}"
        )
        assert sentence in str(reading.lines())
