"""Scenes: the labels fit the pictures, the files can be read back, and neither background nor color is a short cut."""

import json
from collections import defaultdict
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from plrc.errors import DataError
from plrc.scenes import MATERIALS, encode_rle, render_scene, scene_names, write_scenes


@lru_cache(maxsize=1)
def scenes():
    return [render_scene(3, index) for index in range(400)]


def decode_rle(rle):
    """COCO's definition, pixel by pixel: runs of 0, 1, 0, 1, ... down the columns."""
    height, width = rle["size"]
    mask, position = np.zeros((height, width), dtype=bool), 0
    for run, length in enumerate(rle["counts"]):
        for _ in range(length):
            mask[position % height, position // height] = run % 2 == 1
            position += 1
    assert position == height * width
    return mask


def test_a_scene_depends_on_its_seed_and_index_alone():
    first = render_scene(5, 17)
    render_scene(5, 18, size=64)
    again = render_scene(5, 17)
    assert (first.image == again.image).all()
    assert (first.masks == again.masks).all()
    assert (first.classes == again.classes).all()
    for other in (render_scene(5, 18), render_scene(6, 17)):
        assert (first.image != other.image).mean() > 0.5


@pytest.mark.parametrize("size", [48, 96, 200])
def test_shapes_types_and_every_object_visible(size):
    for index in range(20):
        scene = render_scene(1, index, size)
        count = len(scene.classes)
        assert 2 <= count <= 5
        assert scene.image.shape == (size, size, 3)
        assert (scene.image.dtype, scene.masks.dtype, scene.classes.dtype) == (np.uint8, np.int32, np.int64)
        assert sorted(np.unique(scene.masks)) == list(range(count + 1))
        assert np.bincount(scene.masks.ravel()).min() > 0.002 * size * size


def test_boxes_are_the_tight_bounds_of_the_masks():
    for scene in scenes()[:50]:
        for i, (x0, y0, x1, y1) in enumerate(scene.boxes.astype(int)):
            mask = scene.masks == i + 1
            assert not mask[:y0].any()
            assert not mask[y1:].any()
            assert not mask[:, :x0].any()
            assert not mask[:, x1:].any()
            assert mask[y0].any()
            assert mask[y1 - 1].any()
            assert mask[:, x0].any()
            assert mask[:, x1 - 1].any()


def test_class_map_is_class_plus_one_on_objects():
    scene = scenes()[0]
    assert (scene.semantic[scene.masks == 0] == 0).all()
    for i, kind in enumerate(scene.classes):
        assert (scene.semantic[scene.masks == i + 1] == kind + 1).all()


def test_all_classes_materials_and_counts_occur_about_equally():
    kinds = np.bincount(np.concatenate([s.classes for s in scenes()]), minlength=9)
    assert len(kinds) == len(scene_names()) == len(set(scene_names())) == 9
    assert kinds.min() > 0.7 * kinds.mean()
    assert np.bincount([s.material for s in scenes()], minlength=len(MATERIALS)).min() > 40
    assert np.bincount([len(s.classes) for s in scenes()])[2:].min() > 60


def test_shapes_differ_as_their_names_say():
    """Area over box area of whole objects: pi / 4 for a disc, up to 1 for a square, about 1/2 for a triangle."""
    fill = defaultdict(list)
    for scene in scenes():
        if len(scene.classes) == 2:
            for i, kind in enumerate(scene.classes):
                x0, y0, x1, y1 = scene.boxes[i]
                if i == 1 and min(x0, y0) > 0 and max(x1, y1) < 96:  # the last one is hidden by none
                    fill[scene_names()[kind].split()[1]].append((scene.masks == i + 1).sum() / ((x1 - x0) * (y1 - y0)))
    assert np.allclose(fill["disc"], np.pi / 4, atol=0.04)
    assert max(fill["triangle"]) < 0.6
    assert max(fill["square"]) > 0.85


def test_textures_are_stripes_checks_and_dots():
    """Stripes are constant along one direction; checks and dots are not: the least directional change tells them."""
    change = defaultdict(list)
    for scene in scenes():
        gray = scene.image.astype(float).mean(axis=2)
        gy, gx = np.gradient(gray)
        for i, kind in enumerate(scene.classes):
            mask = scene.masks == i + 1
            inner = mask.copy()
            inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
            tensor = np.cov(np.stack([gx[inner], gy[inner]]))
            low, high = np.linalg.eigvalsh(tensor)
            change[scene_names()[kind].split()[0]].append(low / high)
    assert np.quantile(change["striped"], 0.8) < 0.35
    assert np.quantile(change["checked"], 0.2) > 0.5
    assert np.quantile(change["dotted"], 0.2) > 0.5


def background_statistics(scene, half):
    """Mean color, contrast and gradient strengths of one half's background pixels [9], or None if there are few."""
    columns = slice(0, 48) if half == 0 else slice(48, 96)
    image, free = scene.image[:, columns].astype(float), scene.masks[:, columns] == 0
    if free.sum() < 1500:
        return None
    gy, gx = np.gradient(image.mean(axis=2))
    strengths = [np.abs(gx[free]).mean(), np.abs(gy[free]).mean(), np.hypot(gx, gy)[free].std()]
    return np.concatenate([image[free].mean(axis=0), image[free].std(axis=0), strengths])


def test_an_image_is_not_identified_by_its_background():
    """Left halves look for their right halves among 20 images of the same material: chance is 1 / 20."""
    hits, tries = 0, 0
    for material in range(len(MATERIALS)):
        pairs = [(background_statistics(s, 0), background_statistics(s, 1)) for s in scenes() if s.material == material]
        pairs = [p for p in pairs if p[0] is not None and p[1] is not None][:20]
        left, right = (np.stack(side) for side in zip(*pairs, strict=True))
        center, scale = right.mean(axis=0), right.std(axis=0)
        distance = np.linalg.norm(((left - center) / scale)[:, None] - ((right - center) / scale)[None], axis=2)
        hits += int((distance.argmin(axis=1) == np.arange(len(pairs))).sum())
        tries += len(pairs)
    assert tries == 120
    assert hits / tries < 0.25


def test_materials_themselves_can_be_told_apart():
    """The statistics of the test above are not blind: they tell which material a background is."""
    known = [(background_statistics(s, 0), s.material) for s in scenes()]
    known = [(values, material) for values, material in known if values is not None]
    table, materials = np.stack([v for v, _ in known]), np.array([m for _, m in known])
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    distance = np.linalg.norm(table[:, None] - table[None], axis=2) + 1e9 * np.eye(len(table))
    assert (materials[distance.argmin(axis=1)] == materials).mean() > 0.9


def test_color_does_not_give_the_class():
    """A linear classifier on color histograms (4 x 4 x 4 bins) of the objects' pixels is near chance, 1 / 9."""
    histograms, kinds = [], []
    for scene in scenes():
        bins = (scene.image.astype(int) // 64) @ [16, 4, 1]
        for i, kind in enumerate(scene.classes):
            counts = np.bincount(bins[scene.masks == i + 1], minlength=64)
            histograms.append(counts / counts.sum())
            kinds.append(kind)
    x, y = np.array(histograms), np.eye(9)[kinds]
    x = np.column_stack([x, np.ones(len(x))])
    fitted = slice(0, 3 * len(x) // 4)
    tested = slice(3 * len(x) // 4, None)
    weights = np.linalg.solve(x[fitted].T @ x[fitted] + 1e-2 * np.eye(65), x[fitted].T @ y[fitted])
    accuracy = ((x[tested] @ weights).argmax(axis=1) == np.array(kinds)[tested]).mean()
    assert accuracy < 0.18


def test_rle_round_trip_on_scenes_and_corner_cases():
    cases = [scenes()[0].masks == 1, np.zeros((3, 5), bool), np.ones((3, 5), bool), np.eye(4, dtype=bool)]
    for mask in cases:
        assert (decode_rle(encode_rle(mask)) == mask).all()
    assert encode_rle(np.array([[True, False], [True, True]])) == {"counts": [0, 2, 1, 1], "size": [2, 2]}


def test_written_files_hold_the_scenes(tmp_path):
    write_scenes(tmp_path / "new", {"train": 3, "test": 2}, seed=9, size=64)
    for split, offset, count in (("train", 0, 3), ("test", 3, 2)):
        folder = tmp_path / "new" / split
        table = json.loads((folder / "annotations.json").read_text())
        assert [c["name"] for c in table["categories"]] == scene_names()
        assert len(table["images"]) == count
        for number, record in enumerate(table["images"]):
            scene = render_scene(9, offset + number, 64)
            image = np.asarray(Image.open(folder / record["file_name"]))
            assert image.shape == (record["height"], record["width"], 3)
            assert np.abs(image.astype(int) - scene.image).mean() < 12  # JPEG
            labels = np.asarray(Image.open(folder / "semantic" / f"{number:06d}.png"))
            assert (labels == scene.semantic).all()
            annotations = [a for a in table["annotations"] if a["image_id"] == record["id"]]
            assert [a["category_id"] for a in annotations] == (scene.classes + 1).tolist()
            for i, entry in enumerate(annotations):
                mask = decode_rle(entry["segmentation"])
                assert (mask == (scene.masks == i + 1)).all()
                assert entry["area"] == mask.sum()
                x, y, width, height = entry["bbox"]
                assert [x, y, x + width, y + height] == scene.boxes[i].tolist()
        assert len({a["id"] for a in table["annotations"]}) == len(table["annotations"])


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        write_scenes(tmp_path, {"train": 1})
    with pytest.raises(DataError, match="not an empty folder"):
        write_scenes(tmp_path / "mine.txt", {"train": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
