"""find_images in every layout, exclusions, the index, and the manifest."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plrc.config import DataConfig
from plrc.data.manifest import build_manifest, read_manifest, write_manifest
from plrc.data.scan import scan
from plrc.data.sources import ImageList, find_images
from plrc.errors import ConfigError, DataError, LayoutError, PlrcError

COLOURS = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def fill(root: Path, *names: str) -> None:
    """Write an image of its own colors under each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = COLOURS.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name, "PNG")


def find(source: Path | str, **settings: Any) -> ImageList:
    return find_images(DataConfig(source=str(source), **settings))


def refused(source: Path | str, error: type[PlrcError] = DataError, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        find(source, **settings)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_is_listed_with_all_below_it(tmp_path: Path) -> None:
    names = ("b.PNG", "a.jpg", "x/c.jpeg", "x/y/d.webp", "x/e.tif", "z/f.TIFF", "z/g.bmp", "h.gif")
    fill(tmp_path, *names, ".hidden.jpg", ".folder/i.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    images = find(tmp_path)
    assert images.names == tuple(sorted(names))
    assert images.layout == "folder"
    assert images.notes == (
        "files that are no images: 1 .txt",
        "hidden files and folders, left out: 2 (.folder, .hidden.jpg)",
    )
    assert len(images) == 8
    assert all(os.path.isfile(images.path(i)) for i in range(8))
    assert sorted(os.listdir(tmp_path)) == sorted(
        [".hidden.jpg", ".folder", "a.jpg", "b.PNG", "h.gif", "notes.txt", "x", "z"]
    )


def test_a_relative_source_survives_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "in", "a.jpg")
    monkeypatch.chdir(tmp_path)
    images = find("in")
    monkeypatch.chdir("/")
    assert os.path.isfile(images.path(0))


def test_links_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "in", "real/a.jpg")
    fill(tmp_path / "out", "b.jpg")
    (tmp_path / "in" / "alias").symlink_to(tmp_path / "in" / "real")
    (tmp_path / "in" / "real" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "far").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "l.jpg").symlink_to(tmp_path / "out" / "b.jpg")
    (tmp_path / "out" / "back").symlink_to(tmp_path / "in")
    assert find(tmp_path / "in").names == ("far/b.jpg", "l.jpg", "real/a.jpg")


def test_folders_and_dangling_links_named_like_images_are_noted(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "x.jpg/inner.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for source in (tmp_path, tmp_path / "*"):
        images = find(source)
        assert images.names == ("a.jpg",)
        assert "x.jpg" in " ".join(images.notes)
        assert "gone.png" in " ".join(images.notes)


def test_a_source_without_images_says_what_is_there_instead(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.dcm").touch()
    message = refused(tmp_path)
    assert message.startswith(f"no image in {tmp_path} ")
    assert "looked for JPEG PNG WEBP TIFF BMP GIF AVIF" in message
    assert "12 files, none with an image ending (12 .dcm)" in message
    assert "12 files, none with an image ending (12 .dcm)" in refused(tmp_path / "**")
    (tmp_path / "empty").mkdir()
    assert "found no files" in refused(tmp_path / "empty")


def test_missing_and_unsuitable_sources(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    assert "does not exist" in refused(tmp_path / "none")
    assert "data.source is empty" in refused("", ConfigError)
    assert "nowhere://bucket/images is not a URL that can be read" in refused("nowhere://bucket/images")
    assert "no shards" in refused("memory://nowhere/images")
    assert "single file" in refused(tmp_path / "a.jpg")
    assert "is not a folder" in refused(tmp_path / "a.jpg", LayoutError, layout="folder")
    assert "is not a file" in refused(tmp_path, layout="list")
    assert "no folder JPEGImages" in refused(tmp_path, LayoutError, layout="voc")
    assert "only VOC has splits" in refused(tmp_path, ConfigError, split="train")


# ---------------------------------------------------------------------------------------------------- glob, list, COCO


def test_glob(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/b/2.jpg", "c/3.png", "c/4.jpg")
    (tmp_path / "a" / "t.txt").touch()
    assert find(tmp_path / "**" / "*.jpg").names == ("a/1.jpg", "a/b/2.jpg", "c/4.jpg")
    assert find(tmp_path / "a" / "*").names == ("1.jpg",)
    assert find(tmp_path / "?" / "[34].*").names == ("c/3.png", "c/4.jpg")
    assert find(tmp_path / "?" / "*").root == str(tmp_path)


def test_a_folder_with_brackets_is_no_glob(tmp_path: Path) -> None:
    fill(tmp_path / "set[1]", "a.jpg")
    assert find(tmp_path / "set[1]").layout == "folder"


def test_list_file(tmp_path: Path) -> None:
    fill(tmp_path, "in/a.jpg", "in/b/c.png", "out/d.jpg")
    lines = [
        "# a comment",
        "",
        "b/c.png",
        f"{tmp_path}/in/a.jpg",
        "../out/d.jpg",
        "gone.jpg",
        "./a.jpg",
        "e.jpg",
    ]
    (tmp_path / "in" / "train.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    images = find(tmp_path / "in" / "train.txt")
    assert images.names == tuple(sorted([f"{tmp_path}/out/d.jpg", "a.jpg", "b/c.png"]))
    assert all(os.path.isfile(images.path(i)) for i in range(3))
    assert images.notes == (
        "further entries of an image, dropped: 1 (a.jpg)",
        "entries of the list that do not exist, left out: 2 (e.jpg, gone.jpg)",
    )
    (tmp_path / "bad.txt").write_text("gone.jpg\n")
    assert "none of the 1 entries" in refused(tmp_path / "bad.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    assert "is not a text file in UTF-8" in refused(tmp_path / "binary.txt")


@pytest.mark.parametrize(
    "place", [".", "..", "images", "../images", "train2017", "../train2017", "images/train2017", "../images/train2017"]
)
def test_coco_images_are_searched_in_the_usual_places(tmp_path: Path, place: str) -> None:
    annotations = tmp_path / "set" / "annotations"
    annotations.mkdir(parents=True)
    fill(annotations / place, "1.jpg", "sub/2.jpg")
    entries = [{"id": i, "file_name": name} for i, name in enumerate(("1.jpg", "sub/2.jpg", "3.jpg"))]
    (annotations / "instances_train2017.json").write_text(json.dumps({"images": entries, "annotations": []}))
    images = find(annotations / "instances_train2017.json")
    assert images.layout == "coco"
    assert images.names == ("1.jpg", "sub/2.jpg")
    assert Path(images.path(1)).samefile(annotations / place / "sub" / "2.jpg")
    assert images.notes == ("images of the annotations that do not exist, left out: 1 (3.jpg)",)


def test_coco_images_without_an_annotation_are_kept_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    images = [{"id": i, "file_name": name} for i, name in enumerate(("a.jpg", "b.jpg", "c.jpg"))]
    table = {"images": images, "annotations": [{"id": 0, "image_id": "1", "bbox": [0, 0, 1, 1], "category_id": 1}]}
    (tmp_path / "labels.json").write_text(json.dumps(table))
    images_read = find(tmp_path / "labels.json")
    assert images_read.names == ("a.jpg", "b.jpg", "c.jpg")
    assert images_read.notes == ("images without an annotation, read: 2 (a.jpg, c.jpg)",)
    (tmp_path / "labels.json").write_text(json.dumps({"images": images}))  # a file without labels says nothing of them
    assert find(tmp_path / "labels.json").notes == ()


def test_coco_errors_name_where_it_looked(tmp_path: Path) -> None:
    path = tmp_path / "annotations" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": [{"file_name": "1.jpg"}]}))
    message = refused(path)
    assert all(str(tmp_path / place) in message for place in ("annotations", "images", "train", "annotations/images"))
    for text in ("[]", "{}", "{", '{"images": [{"id": 1}]}'):
        path.write_text(text)
        assert "is not a COCO file" in refused(path, LayoutError)


# ---------------------------------------------------------------------------------------------------------------- VOC


def test_voc(tmp_path: Path) -> None:
    fill(tmp_path / "JPEGImages", "a.jpg", "b.jpg", "b.png", "c.png", "d e.jpg")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\na\ngone\nd e\n")
    (lists / "cat_train.txt").write_text("a  1\nb -1\n")
    (lists / "empty.txt").write_text("\n")
    assert find(tmp_path).names == ("a.jpg", "b.jpg", "b.png", "c.png", "d e.jpg")
    images = find(tmp_path, split="train")
    assert (images.layout, images.names) == ("voc", ("a.jpg", "c.png", "d e.jpg"))
    assert images.notes == ("entries of the split train without an image, left out: 1 (gone)",)
    assert find(tmp_path, split="cat_train").names == ("a.jpg", "b.jpg")
    assert "write one of: cat_train, empty, train" in refused(tmp_path, ConfigError, split="test")
    assert "none of the 0 entries" in refused(tmp_path, split="empty")


# ---------------------------------------------------------------------------------------------------------- exclusion


def test_exclusions_by_names_as_exporters_write_them(tmp_path: Path) -> None:
    fill(tmp_path / "images", "a/x.jpg", "b/x.jpg", "c d.jpg", "e.jpg")
    test = tmp_path / "test.json"
    test.write_text(json.dumps({"images": [{"file_name": "a\\x.jpg"}, {"file_name": "http://host/c%20d.jpg"}]}))
    images = find(tmp_path / "images", exclude=str(test))
    assert (images.names, images.excluded, images.notes) == (("b/x.jpg", "e.jpg"), 2, ())


def test_exclude_list_takes_paths_names_and_stems(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.jpg", "b/a.jpg", "b/c.png", "d/e.jpg", "f.jpg", "g.jpg")
    path = tmp_path / "exclude.txt"
    path.write_text("# test images\nb/a.jpg\nc\ne.jpg\nin/f.jpg\nnothing.jpg\n")
    images = find(tmp_path / "in", exclude=str(path))
    assert images.names == ("a.jpg", "g.jpg")
    assert images.excluded == 4
    assert images.notes == ("entries of data.exclude that match no image: 1 (nothing.jpg)",)


def test_a_bare_name_takes_all_images_of_that_name(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.jpg", "b/a.jpg", "c.jpg")
    (tmp_path / "exclude.txt").write_text("a.jpg")
    assert find(tmp_path / "in", exclude=str(tmp_path / "exclude.txt")).names == ("c.jpg",)


def test_exclude_folder_inside_the_source_spares_equal_names_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg")
    for exclude in (tmp_path / "test", tmp_path / "te*" / "*.jpg"):
        images = find(tmp_path, exclude=str(exclude))
        assert (images.names, images.excluded) == (("train/1.jpg", "train/2.jpg"), 1)


def test_exclude_folder_elsewhere_finds_copies_by_file_name(tmp_path: Path) -> None:
    fill(tmp_path / "in", "x/1.jpg", "x/2.jpg", "3.png", "y/1.jpg")
    fill(tmp_path / "test", "deep/1.jpg", "4.jpg")
    images = find(tmp_path / "in", exclude=str(tmp_path / "test"))
    assert (images.names, images.excluded) == (("3.png", "x/2.jpg"), 2)
    assert images.notes == (f"entries of data.exclude that match no image: 1 ({tmp_path}/test/4.jpg)",)


def test_exclude_coco_file(tmp_path: Path) -> None:
    fill(tmp_path / "in", "1.jpg", "2.jpg")
    (tmp_path / "val.json").write_text(json.dumps({"images": [{"file_name": "2.jpg"}]}))
    assert find(tmp_path / "in", exclude=str(tmp_path / "val.json")).names == ("1.jpg",)


def test_exclude_errors(tmp_path: Path) -> None:
    fill(tmp_path, "in/1.jpg")
    (tmp_path / "empty").mkdir()
    assert "names all 1 images" in refused(tmp_path / "in", ConfigError, exclude=str(tmp_path / "in"))
    assert "data.exclude" in refused(tmp_path / "in", ConfigError, exclude=str(tmp_path / "none"))
    assert refused(tmp_path / "in", ConfigError, exclude=str(tmp_path / "empty")).startswith("data.exclude")


# -------------------------------------------------------------------------------------------------------------- index


def test_find_images_alone_writes_nothing(tmp_path: Path, cache: Path) -> None:
    fill(tmp_path, "a.jpg")
    find(tmp_path)
    assert os.listdir(tmp_path) == ["a.jpg"]
    assert os.listdir(cache) == []


def test_a_fresh_index_saves_the_walk_and_leaves_out_the_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "b" / "bad.jpg").write_text("no image")
    (tmp_path / "b" / "x.jpg").mkdir()
    before = find(tmp_path)
    report = scan(DataConfig(source=str(tmp_path)), workers=1)
    assert report.index == str(tmp_path / ".plrc-index.json")

    def fail(*_: object) -> None:
        raise AssertionError("walked")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        images = find(tmp_path)
    assert before.names == ("a.jpg", "b/bad.jpg", "b/c.jpg")
    assert images.names == ("a.jpg", "b/c.jpg")
    assert images.notes == (
        "folders named like an image, left out: 1 (b/x.jpg)",
        "images that plrc scan could not read, left out: 1 (b/bad.jpg)",
    )


def test_the_walk_through_a_large_folder_is_kept_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plrc.data.sources.LARGE_LISTING", 3)
    fill(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "b" / "bad.jpg").write_text("no image")
    scan(DataConfig(source=str(tmp_path)), workers=1)
    time.sleep(0.02)  # coarser than a file system's clock
    fill(tmp_path, "b/new.jpg")
    first = find(tmp_path)
    assert first.names == ("a.jpg", "b/c.jpg", "b/new.jpg")
    assert list(cache.rglob("index-*")) == []  # a change within a clock's tick would not show
    for folder in (tmp_path, tmp_path / "b"):
        os.utime(folder, (time.time() - 10, time.time() - 10))
    assert find(tmp_path) == first
    assert len(list(cache.rglob("index-*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda *_: pytest.fail("walked"))
        assert find(tmp_path) == first  # including what the scan could not read
    fill(tmp_path, "b/newer.jpg")
    assert "b/newer.jpg" in find(tmp_path).names


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plrc.data.sources.LARGE_LISTING", 1)
    (cache / "plrc").write_text("in the way")
    fill(tmp_path, "a.jpg")
    os.utime(tmp_path, (time.time() - 10, time.time() - 10))
    assert find(tmp_path).names == ("a.jpg",)


def test_a_stale_index_is_walked_again(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "b" / "bad.jpg").write_text("no image")
    scan(DataConfig(source=str(tmp_path)), workers=1)
    time.sleep(0.02)  # coarser than a file system's clock
    fill(tmp_path, "b/new.jpg")
    assert find(tmp_path).names == ("a.jpg", "b/c.jpg", "b/new.jpg")
    (tmp_path / "a.jpg").unlink()
    assert find(tmp_path).names == ("b/c.jpg", "b/new.jpg")
    fill(tmp_path, "b/bad.jpg")  # repaired: only size and time of the file show it
    assert find(tmp_path).names == ("b/bad.jpg", "b/c.jpg", "b/new.jpg")


def test_a_dangling_link_that_comes_alive_is_found(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.jpg")
    (tmp_path / "in" / "b.jpg").symlink_to(tmp_path / "later.jpg")
    scan(DataConfig(source=str(tmp_path / "in")), workers=1)
    fill(tmp_path, "later.jpg")
    assert find(tmp_path / "in").names == ("a.jpg", "b.jpg")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 99}',
        '{"version": 1, "layout": "folder"}',
        '{"version": 2, "layout": "folder", "folders": {"": 1}, "names": [3], "reading": {"sentences": []}, "bad": {}}',
        '{"version": 2, "layout": "folder", "folders": {}, "names": [], "reading": {}, "bad": {}}',
        '{"version": 2, "layout": "x", "folders": {}, "names": [], "reading": {"sentences": []}, "bad": {"a": 1}}',
    ],
)
def test_a_broken_index_is_ignored(tmp_path: Path, text: str) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / ".plrc-index.json").write_text(text)
    assert find(tmp_path).names == ("a.jpg",)
    (tmp_path / ".plrc-index.json").write_bytes(b"\xff\xfe\x00")
    assert find(tmp_path).names == ("a.jpg",)


def test_sources_that_are_no_folder_keep_their_index_in_the_cache(tmp_path: Path, cache: Path) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "train.txt").write_text("a.jpg\nbad.jpg\n")
    report = scan(DataConfig(source=str(tmp_path / "train.txt")), workers=1)
    assert Path(report.index).parent == cache / "plrc"
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "bad.jpg", "train.txt"]
    assert find(tmp_path / "train.txt").names == ("a.jpg",)
    assert find(tmp_path).names == ("a.jpg", "bad.jpg")  # another source, never scanned


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "bad.jpg").write_text("no image")
    opened = Path.open

    def guarded(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.parent == tmp_path and mode != "r":
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)  # root may write everywhere
    report = scan(DataConfig(source=str(tmp_path)), workers=1)
    assert Path(report.index).parent == cache / "plrc"
    assert find(tmp_path).names == ("a.jpg",)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    scan(DataConfig(source=str(tmp_path)), workers=1)
    assert "could read none of the 1 images" in refused(tmp_path)


# ----------------------------------------------------------------------------------------------------------- manifest


def test_manifest_round_trip(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.jpg", "b/ü.jpg", "c.jpg", "d.jpg")
    (tmp_path / "exclude.txt").write_text("d\n")
    images = find(tmp_path / "in", exclude=str(tmp_path / "exclude.txt"))
    path = tmp_path / "manifest.json"
    write_manifest(path, images, [0, 1], [2])
    assert sorted(os.listdir(tmp_path)) == ["exclude.txt", "in", "manifest.json"]
    manifest = read_manifest(path)
    assert manifest == build_manifest(images, [0, 1], [2])
    assert manifest["counts"] == {"images": 3, "excluded": 1, "train": 2, "held_out": 1}
    assert manifest["train"] == {name: os.path.getsize(tmp_path / "in" / name) for name in ("a.jpg", "b/ü.jpg")}
    assert list(manifest["held_out"]) == ["c.jpg"]


def test_manifest_digest_follows_the_images_and_not_their_place(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.jpg", "b.jpg")
    first = build_manifest(find(tmp_path / "in"), [0], [1])["sha256"]
    assert build_manifest(find(tmp_path / "in"), [1], [0])["sha256"] != first
    (tmp_path / "in").rename(tmp_path / "moved")
    moved = find(tmp_path / "moved")
    assert build_manifest(moved, [0], [1])["sha256"] == first
    with open(moved.path(0), "ab") as file:
        file.write(b"more")
    assert build_manifest(moved, [0], [1])["sha256"] != first
    os.unlink(moved.path(0))
    assert build_manifest(moved, [0], [1])["train"] == {"a.jpg": -1}


def test_manifest_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(tmp_path / "manifest.json")
    for text in ("", "[]", "{}"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match="manifest"):
            read_manifest(tmp_path / "manifest.json")


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.fixture
def real() -> Path:
    root = os.environ.get("PLRC_DATA")
    if not root:
        pytest.skip("PLRC_DATA is not set: no real data")
    return Path(root)


def test_bccd_as_voc_without_its_test_images(real: Path) -> None:
    lists = real / "bccd" / "ImageSets" / "Main"
    test = lists / "test.txt"
    images = find(real / "bccd", split="trainval", exclude=str(test))
    assert (images.layout, len(images), images.excluded) == ("voc", 292, 0)
    everything = find(real / "bccd", exclude=str(test))
    assert (len(everything), everything.excluded) == (292, 72)
    assert everything.names == images.names
    assert {Path(n).stem for n in images.names} == set((lists / "trainval.txt").read_text().split())


def test_coco128(real: Path) -> None:
    source = real / "coco128" / "annotations" / "instances_train2017.json"
    entries = json.loads(source.read_text())["images"]
    images = find(source)
    assert images.root == str(real.absolute() / "coco128" / "train2017")
    assert images.names == tuple(sorted(entry["file_name"] for entry in entries))
    assert images.notes == ("images without an annotation, read: 2 (000000000250.jpg, 000000000508.jpg)",)


def test_clothing_as_a_nested_folder(real: Path) -> None:
    images = find(real / "clothing", exclude=str(real / "clothing" / "hat"))
    assert images.layout == "folder"
    assert images.excluded == len(os.listdir(real / "clothing" / "hat"))
    assert {name.partition("/")[0] for name in images.names} == {
        "dress", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"
    }  # fmt: skip
