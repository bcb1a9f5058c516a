"""Sets of labelled images: generated scenes as they were drawn, subsets, items for training and scoring."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.transfer.sources import (
    POLYGON,
    blank,
    coco_file,
    coco_source,
    mask_folders,
    names,
    read,
    save,
    thing,
)

from plrc.data.decode import decode
from plrc.data.masks import decode_masks
from plrc.errors import MissingPackageError, PlrcError
from plrc.presets import preset
from plrc.scenes import render_scene, scene_names, write_scenes
from plrc.transfer.data_checks import rescaling_warnings
from plrc.transfer.labels.datasets import DetectionImages, SemanticImages
from plrc.transfer.labels.rasterize import rasterize
from plrc.transfer.labels.splits import LabelledSet, Splits, labelled_subset
from plrc.transfer.protocols import InputConfig, LabelledConfig, Task


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    write_scenes(root, {"train": 30, "test": 4}, seed=5, size=48)
    return root


@pytest.fixture(scope="module")
def instances(scene_folder: Path) -> Splits:
    return read(scene_folder, "instances")


def test_scenes_are_read_as_they_were_drawn(scene_folder: Path, instances: Splits) -> None:
    assert (len(instances.train.images), len(instances.val.images), len(instances.test.images)) == (24, 6, 4)
    assert list(instances.test.classes) == scene_names()
    for i, image in enumerate(instances.test.images):
        scene = render_scene(5, 30 + i, size=48)
        assert image.name == f"test/images/{i:06d}.jpg"
        assert (image.boxes == scene.boxes).all() and (image.classes == scene.classes).all()
        masks = decode_masks(image.segments, 48, 48)
        assert all((masks[k] == (scene.masks == k + 1)).all() for k in range(len(masks)))
    semantic = read(scene_folder, "semantic")
    assert list(semantic.test.classes) == ["background", *scene_names()]
    _, labels = SemanticImages(semantic.test, InputConfig(test_size=0.5), train=False, seed=0)[2]
    assert (labels.numpy() == render_scene(5, 32, size=48).semantic).all()


def test_merged_classes(scene_folder: Path) -> None:
    splits = read(scene_folder, merge_classes=True)
    assert splits.train.classes == splits.test.classes == ("object",)
    assert all((image.classes == 0).all() for image in splits.train.images)
    with pytest.raises(PlrcError, match="merge_classes is for objects"):
        read(scene_folder, "semantic", merge_classes=True)


def test_masks_without_their_package(scene_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(
        MissingPackageError, match="masks need faster-coco-eval; install with: pip install faster-coco-eval"
    ):
        read(scene_folder, "instances")


# subsets


@pytest.mark.parametrize("seed", [0, 1])
def test_smaller_subsets_are_parts_of_larger_ones(instances: Splits, seed: int) -> None:
    train = instances.train
    shares = [labelled_subset(train, fraction, 0, seed) for fraction in (0.01, 0.1, 0.3, 0.8, 1.0)]
    assert [len(part.images) for part in shares] == [1, 2, 7, 19, 24]
    shots = [labelled_subset(train, 1.0, count, seed) for count in (1, 2, 4)]
    for parts in (shares, shots):
        for small, large in pairwise(parts):
            assert {image.name for image in small.images} < {image.name for image in large.images}
    assert shares[-1].images == train.images
    assert labelled_subset(train, 0.3, 0, seed).images == shares[2].images


def test_seeds_choose_differently(instances: Splits) -> None:
    chosen = {tuple(names(labelled_subset(instances.train, 0.2, 0, seed))) for seed in range(5)}
    assert len(chosen) == 5


@pytest.mark.parametrize("task", ["detection", "semantic"])
def test_shots_give_every_class_its_images(scene_folder: Path, task: Task) -> None:
    train = read(scene_folder, task).train
    chosen = labelled_subset(train, 1.0, 2, 0)
    assert len(chosen.images) < len(train.images)
    for k, name in enumerate(scene_names()):
        having = 0
        for image in chosen.images:
            scene = render_scene(5, int(Path(image.name).stem), size=48)
            having += k in scene.classes.tolist()
        assert having >= 2, name


def test_shots_do_not_count_ignored_objects(tmp_path: Path) -> None:
    things = [thing(i, image=i, iscrowd=int(i != 3)) for i in (1, 2, 3, 4)]
    train = read(coco_source(tmp_path, things), val="none", test="val2017").train
    for seed in range(4):
        assert names(labelled_subset(train, 1.0, 1, seed)) == ["3"]


# items


def test_mirrored_boxes_and_masks_agree(instances: Splits) -> None:
    straight = DetectionImages(instances.train, InputConfig(flip_prob=0.0), train=True, masks=True, seed=0)
    mirrored = DetectionImages(instances.train, InputConfig(flip_prob=1.0), train=True, masks=True, seed=0)
    for i in range(4):
        image, target = mirrored[(0, i)]
        before, labels = straight[(0, i)]
        assert torch.equal(image.flip(-1), before) and torch.equal(target["masks"].flip(-1), labels["masks"])
        assert torch.equal(target["labels"], labels["labels"]) and int(target["labels"].min()) >= 1
        assert not torch.equal(target["boxes"], labels["boxes"])
        for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            rows, columns = torch.where(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert target["image"] == i
        assert target["boxes"].dtype == torch.float32 and target["masks"].dtype == image.dtype == torch.uint8


def test_a_share_is_mirrored_as_the_key_says(instances: Splits) -> None:
    images = DetectionImages(instances.train, InputConfig(flip_prob=0.5), train=True, masks=False, seed=7)
    plain = DetectionImages(instances.train, InputConfig(), train=False, masks=False, seed=0)
    turned = [not torch.equal(images[(epoch, i)][0], plain[i][0]) for epoch in (0, 1) for i in range(24)]
    assert turned == [not torch.equal(images[(epoch, i)][0], plain[i][0]) for epoch in (0, 1) for i in range(24)]
    assert 12 <= sum(turned) <= 36
    assert turned[:24] != turned[24:]


def striped(root: Path) -> LabelledSet:
    """Images 40 x 60 whose color (4 * id in every channel) tells the label, id = column // 6."""
    ids = np.repeat(np.arange(10), 6)[None].repeat(40, axis=0)
    for split in ("train", "val"):
        for i in range(2):
            save(root / "images" / split / f"{i}.png", np.stack([4 * ids] * 3, axis=-1))
            save(root / "labels" / split / f"{i}.png", ids)
    return read(root, "semantic").train


def test_semantic_crops_keep_image_and_labels_together(tmp_path: Path) -> None:
    labelled = striped(tmp_path)
    config = InputConfig(train_size=(0.5, 2.0), crop=(32.0, 48.0))
    images = SemanticImages(labelled, config, train=True, seed=3)
    windows = set()
    for epoch in range(12):
        image, labels = images[(epoch, 0)]
        assert image.shape == (3, 32, 48) and labels.shape == (32, 48)
        assert image.dtype == labels.dtype == torch.uint8
        inside = labels != 255
        difference = (image[0].float() / 4 - labels.float()).abs()[inside]
        assert float(difference.max()) <= 1  # the resampled edge of a stripe
        assert float(difference.mean()) < 0.2
        assert image[:, ~inside].unique(dim=1).T.tolist() in ([], [[124, 116, 104]])
        windows.add((int(inside.sum()), int(labels[0, 0]), int(labels[0, 20])))
        assert torch.equal(image, images[(epoch, 0)][0])
    assert len(windows) > 6


def test_semantic_padding_and_whole_images(tmp_path: Path) -> None:
    labelled = striped(tmp_path)
    image, labels = SemanticImages(
        labelled, InputConfig(train_size=(1.0, 1.0), crop=(50.0, 70.0), flip_prob=0), train=True, seed=0
    )[(0, 0)]
    assert (labels != 255).nonzero().max(dim=0).values.tolist() == [39, 59]
    assert torch.equal(image[0, :40, :60], 4 * labels[:40, :60])
    whole = InputConfig(train_size=(0.5, 0.5))
    image, labels = SemanticImages(labelled, whole, train=True, seed=0)[(0, 0)]
    assert image.shape == (3, 20, 30) and labels.shape == (20, 30)
    image, labels = SemanticImages(labelled, InputConfig(test_size=0.5), train=False, seed=0)[0]
    assert image.shape == (3, 20, 30) and labels.shape == (40, 60)


def test_an_image_that_changed_is_refused(tmp_path: Path) -> None:
    labelled = striped(tmp_path)
    blank(Path(labelled.images[0].path), 41, 60)
    with pytest.raises(PlrcError, match="has changed since"):
        SemanticImages(labelled, InputConfig(), train=False, seed=0)[0]


# the digest


def test_the_digest_follows_the_labels_and_nothing_else(tmp_path: Path) -> None:
    def digest(name: str, box: tuple[int, ...] = (2, 3, 10, 5), category: int = 7, file: str = "1.jpg") -> str:
        root = tmp_path / name
        coco_source(root, [thing(i, image=i) for i in (2, 3, 4)])
        annotations = root / "annotations" / "instances_train2017.json"
        table = json.loads(annotations.read_text())
        table["images"][0]["file_name"] = file
        table["annotations"].append(thing(9, image=1, category=category, bbox=box))
        annotations.write_text(json.dumps(table))
        (root / "train2017" / "1.jpg").rename(root / "train2017" / file)
        return read(root).digest()

    plain = digest("a")
    blank(tmp_path / "a" / "train2017" / "2.png", 50, 50)  # no image of the set
    assert read(tmp_path / "a").digest() == plain == digest("moved")
    others = [digest("box", box=(2, 3, 10, 6)), digest("class", category=8), digest("name", file="0.jpg")]
    assert len({plain, *others, read(tmp_path / "a", merge_classes=True).digest()}) == 5


def test_the_digest_of_id_maps_is_that_of_their_content(tmp_path: Path) -> None:
    first, other = (mask_folders(tmp_path / name, "train", "val") for name in "ab")
    assert read(first, "semantic").digest() == read(other, "semantic").digest()
    save(other / "labels" / "val" / "val3.png", ((0, 3, 5, 5),))
    assert read(first, "semantic").digest() != read(other, "semantic").digest()


# real data


def test_real_blood_cells(real_data: Path) -> None:
    splits = read(real_data / "bccd")
    assert splits.train.classes == ("Platelets", "RBC", "WBC")
    assert [len(part.images) for part in (splits.train, splits.val, splits.test)] == [205, 87, 72]
    assert sum(len(i.classes) for part in (splits.train, splits.val, splits.test) for i in part.images) == 4886
    assert splits.reading.lines()[3:] == (
        "boxes without width or height, dropped: 2 (BloodImage_00338.xml object 13, BloodImage_00343.xml object 4)",
    )


def test_real_coco(real_data: Path) -> None:
    splits = read(real_data / "coco128", "instances")
    assert [len(part.images) for part in (splits.train, splits.val, splits.test)] == [80, 20, 100]
    assert len(splits.test.classes) == 80
    deviations = []
    for image in splits.test.images[:20]:
        masks = decode_masks(image.segments, image.height, image.width)
        for box, mask in zip(image.boxes, masks, strict=True):
            rows, columns = np.nonzero(mask)
            extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            deviations.append(np.abs(extent - box).max())
    assert np.median(deviations) <= 1  # its polygons are coarse
    semantic = read(real_data / "coco128", "semantic")
    assert semantic.train.classes[0] == "person" and "sky-other-merged" in semantic.train.classes
    assert not any(name.startswith("class ") for name in semantic.train.classes)
    assert len(semantic.train.images) == 80


@pytest.mark.parametrize(
    ("name", "classes", "images", "objects", "background"),
    [("aquarium", 7, [448, 127, 63], 4815, 1), ("road", 2, [1426, 255, 554], 6274, 13)],
)
def test_real_exports_with_one_folder_of_images(
    real_data: Path, name: str, classes: int, images: list[int], objects: int, background: int
) -> None:
    splits = read(real_data / name)
    parts = (splits.train, splits.val, splits.test)
    assert len(splits.train.classes) == classes
    assert [len(part.images) for part in parts] == images
    assert sum(len(image.classes) for part in parts for image in part.images) == objects
    assert splits.reading.lines()[3].startswith(f"images without an annotation, as background, read: {background} (")
    assert len(splits.reading.lines()) == 4  # nothing was dropped or clipped


def test_real_street_scenes(real_data: Path) -> None:
    splits = read(real_data / "camvid", "semantic")
    assert [len(part.images) for part in (splits.train, splits.val, splits.test)] == [367, 101, 233]
    assert len(splits.train.classes) == 11
    images = SemanticImages(splits.train, InputConfig(train_size=(0.4, 0.75), crop=(160.0, 224.0)), True, 0)
    image, labels = images[(0, 0)]
    assert image.shape == (3, 160, 224) and set(labels.unique().tolist()) <= {*range(11), 255}


def deep_source(root: Path) -> Path:
    """COCO with 16-bit images, of which a tenth is far brighter than the rest."""
    source = coco_source(root, [thing(i, image=i) for i in (1, 2, 3, 4)])
    values = np.linspace(0, 1000, 600).astype(np.uint16).reshape(20, 30)
    values[:2] = np.linspace(50_000, 60_000, 60).reshape(2, 30)
    for file in source.glob("*2017/*.jpg"):
        file.write_bytes(b"")
        Image.fromarray(values).save(file, "PNG")  # what a file is, its contents say
    return source


def test_deep_images_are_rescaled_as_the_settings_say(tmp_path: Path) -> None:
    source = deep_source(tmp_path)
    brightness = {}
    for percentiles in ((0.5, 99.5), (5.0, 85.0)):
        splits = read(source, rescale_percentiles=percentiles)
        item = splits.train.images[0]
        expected = decode(item.path, percentiles=percentiles)
        image, _ = DetectionImages(splits.train, InputConfig(flip_prob=0), train=True, masks=False, seed=0)[0, 0]
        assert torch.equal(image, expected)
        drawn = rasterize(splits.train, 30).images[0, :, :20]
        assert torch.equal(drawn, expected)
        brightness[percentiles] = float(image.float().mean())
    assert brightness[5.0, 85.0] > brightness[0.5, 99.5] + 50


def test_images_above_the_limit_are_refused_by_the_setting_that_they_name(tmp_path: Path) -> None:
    splits = read(deep_source(tmp_path), max_megapixels=0.0001)
    images = DetectionImages(splits.train, InputConfig(), train=True, masks=False, seed=0)
    with pytest.raises(PlrcError, match=r"is more than data\.max_megapixels = 0\.0001; fix or remove this file"):
        images[0, 0]


def test_a_run_whose_deep_images_were_rescaled_otherwise_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    preset("debug_cpu").with_values({"data.rescale_percentiles": (1.0, 99.0)}).save(run / "config.toml")
    data = LabelledConfig(source="labels")
    (warning,) = rescaling_warnings(data, ["random", str(run), str(run)])
    assert warning == (
        f"data.rescale_percentiles is 0.5 99.5, and {run} was pre-trained with 1 99: its images of more than 8 bits "
        "were rescaled otherwise; write --data.rescale-percentiles 1 99 (plrc transfer probe: --rescale-percentiles)"
    )
    assert rescaling_warnings(replace(data, rescale_percentiles=(1.0, 99.0)), [str(run), "pretrained"]) == []


def test_parts_of_masks_that_are_no_polygons_are_counted(tmp_path: Path) -> None:
    whole = thing(1, segmentation=POLYGON)
    parts = thing(2, image=2, segmentation=[*POLYGON, [1.0, 1.0, 2.0, 2.0], [3.0, 3.0]])
    nothing = thing(3, image=3, segmentation=[[1.0, 1.0, 2.0, 2.0]])
    source = coco_source(tmp_path, [whole, parts, nothing])
    splits = read(source, "instances", val="none")
    assert set(splits.reading.lines()) >= {
        "parts of masks that are no polygons of 3 points or more, dropped: 1 (instances_train2017.json annotation 2)",
        "objects without a usable mask, dropped: 1 (instances_train2017.json annotation 3)",
    }
    assert splits.train.images[0].segments == splits.train.images[1].segments


def test_images_of_other_channels_are_counted_when_labels_are_read(tmp_path: Path) -> None:
    files: list[str] = []
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.full((20, 30, 5), i, np.uint8))
        files.append(f"{i}.npy")
        blank(tmp_path / f"rgb{i}.png")
        files.append(f"rgb{i}.png")
    for i in range(2):
        values = np.full((20, 30, 5), i, np.uint8)
        tifffile.imwrite(tmp_path / f"five{i}.tif", values, photometric="minisblack", planarconfig="contig")
        files.append(f"five{i}.tif")
    images = [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(files)]
    coco_file(tmp_path / "train.json", images, [thing(i + 1, i) for i in range(len(files))], ("cat",))
    five = read(tmp_path, channels=5, test_fraction=0.3, val="none")
    for part in (five.train, five.test):
        for image in part.images:
            assert part.read_pixels(image).shape == (5, 20, 30)
    assert len(five.train.images) + len(five.test.images) == 8
    reason = "the image has 3 channels, but data.channels is 5"
    assert f"image files of other channels ({reason}), dropped: 6" in str(five.reading.lines())
    three = read(tmp_path, test_fraction=0.3, val="none")
    lines = str(three.reading.lines())
    assert len(three.train.images) + len(three.test.images) == 6
    assert "image files of other channels (an array of shape 20 x 30 x 5, but data.channels is 3), dropped: 6" in lines
    assert "image files of other channels (a TIFF of 5 channels of uint8 that are not marked as red, green" in lines


def test_a_single_training_image_is_refused_with_a_setting_that_works(tmp_path: Path) -> None:
    source = coco_source(tmp_path, [thing(1)])
    table = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    table["images"] = table["images"][:1]
    (source / "annotations" / "instances_train2017.json").write_text(json.dumps(table))
    with pytest.raises(PlrcError, match=r"train2017 has 1 image, too few to hold out any for val; .*data\.val none"):
        read(source)
    splits = read(source, val="none")
    assert (len(splits.train.images), len(splits.val.images), len(splits.test.images)) == (1, 0, 1)
