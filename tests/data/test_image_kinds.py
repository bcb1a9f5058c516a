"""Kinds of files in a folder: each is read, or counted with its reason; pages, names with #, and the index."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from plrc.config import Config, DataConfig, RegionConfig
from plrc.data import image_kinds
from plrc.data.decode import decode, decode_bytes
from plrc.data.id_maps import map_path
from plrc.data.image_errors import DecodeError
from plrc.data.image_header import read_header
from plrc.data.image_kinds import START_BYTES, format_of_start
from plrc.data.manifest import build_manifest
from plrc.data.regions import Regions
from plrc.data.scan import ScanReport, scan
from plrc.data.shard_writer import write_shards
from plrc.data.shards import open_shards
from plrc.data.sources import ImageList, find_images, sample_remarks
from plrc.errors import ConfigError, DataError

HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pillow-heif was not installed."""
    formats = tuple(image_kinds.EXTENSIONS_OF_FORMAT)
    endings = tuple(ending for ending in image_kinds.IMAGE_EXTENSIONS if ending not in image_kinds.HEIC_EXTENSIONS)
    for module in ("left_out", "image_header"):
        monkeypatch.setattr(f"plrc.data.{module}.readable_formats", lambda: formats)
    monkeypatch.setattr("plrc.data.layouts.IMAGE_EXTENSIONS", endings)


@pytest.fixture
def picture() -> Image.Image:
    """Smooth, so that lossy formats keep it."""
    y, x = np.mgrid[:24, :32]
    return Image.fromarray(np.stack([x * 7, y * 9, np.full_like(x, 90)], axis=-1).astype(np.uint8))


def scanned(folder: Path, **settings: Any) -> ScanReport:
    return scan(DataConfig(source=str(folder), **settings), 2)


def find(folder: Path, **settings: Any) -> ImageList:
    return find_images(DataConfig(source=str(folder), **settings))


READ = {
    "a.jpg": "JPEG",
    "a.jpe": "JPEG",
    "a.JFIF": "JPEG",
    "a.mpo": "MPO",
    "a.png": "PNG",
    "a.webp": "WEBP",
    "a.tif": "TIFF",
    "a.bmp": "BMP",
    "a.gif": "GIF",
    "a.avif": "AVIF",
    "a.jp2": "JPEG2000",
    "a.ppm": "PPM",
    "a.pgm": "PPM",
    "a.tga": "TGA",
    "a.pcx": "PCX",
    "a.qoi": "QOI",
    "a.sgi": "SGI",
    "no_ending": "JPEG",
    "odd.img": "PNG",
}


def test_every_kind_that_pillow_reads_is_read(tmp_path: Path, picture: Image.Image) -> None:
    for name, kind in READ.items():
        options = {"save_all": True, "append_images": [picture]} if kind == "MPO" else {}
        picture.save(tmp_path / name, kind, **options)
        pixels = decode(tmp_path / name).permute(1, 2, 0).numpy().astype(int)
        tolerance = 30 if kind in ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000", "GIF") else 0
        assert np.abs(pixels - np.asarray(picture).astype(int)).max() <= tolerance, name
    report = scanned(tmp_path)
    assert (report.files, report.usable) == (len(READ), len(READ))
    assert set(report.formats) == set(READ.values())
    assert report.notes == (
        "images without a usual ending, recognized by their contents, read: 2 (no_ending, odd.img)",
    )


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_photos_are_read_and_turned(tmp_path: Path, picture: Image.Image, orientation: int) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = picture.getexif()
    exif[0x0112] = orientation
    stored = picture.rotate(90, expand=True) if orientation == 6 else picture
    stored.save(tmp_path / "a.HEIC", "HEIF", quality=95, exif=exif.tobytes())
    pixels = decode(tmp_path / "a.HEIC").permute(1, 2, 0).numpy().astype(int)
    assert pixels.shape == (24, 32, 3)
    assert np.abs(pixels - np.asarray(picture).astype(int)).max() <= 30
    report = scanned(tmp_path)
    assert (report.usable, report.formats, report.width[0]) == (1, {"HEIF": 1}, 32)


@pytest.mark.usefixtures("without_heic")
def test_a_folder_of_twelve_kinds_says_twelve_things(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.jpg")
    for i in range(4):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(HEIC_START + bytes(200))
    first_photos = "IMG_0.HEIC, IMG_1.HEIC, IMG_2.HEIC"
    (tmp_path / "clip.MP4").write_bytes(b"video")
    (tmp_path / "raw.nef").write_bytes(b"MM\0*" + bytes(50))
    (tmp_path / "scan.dcm").write_bytes(b"DICM")
    (tmp_path / "blob.bin").write_bytes(b"nothing")
    picture.save(tmp_path / "no_ending", "PNG")
    for name in ("a.xml", "b.xml", "list.txt", "Thumbs.db", "README"):
        (tmp_path / name).write_text("text")
    (tmp_path / ".DS_Store").write_text("hidden")
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 20, 30), np.uint8), photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((20, 30, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    report = scanned(tmp_path)
    assert report.notes == (
        "files that are no images: 2 .xml, 1 .db, 1 .txt, 1 readme",
        "images without a usual ending, recognized by their contents, read: 1 (no_ending)",
        "images of more than 8 bits per channel, rescaled to 8 bits (data.rescale_percentiles), read: 1 (deep.png)",
        "TIFF files of several pages, of which the first is used (data.pages), read: 1 (stack.tif)",
        f"HEIC photos (.heic), to be read after pip install pillow-heif, left out: 4 ({first_photos}, ...)",
        "files that are no images by their contents (.bin), left out: 1 (blob.bin)",
        "images of a kind that is not read (.dcm), to be converted to PNG or TIFF, left out: 1 (scan.dcm)",
        "raw files of cameras (.nef), to be converted to TIFF or PNG, left out: 1 (raw.nef)",
        "videos (.mp4), whose frames can be read once they are extracted, left out: 1 (clip.MP4)",
        "hidden files and folders, left out: 1 (.DS_Store)",
        "folders named like an image, left out: 1 (x.jpg)",
        "dangling links, left out: 1 (gone.png)",
    )
    ((name, reason),) = report.unusable
    assert name == "five.tif"
    assert reason.startswith("a TIFF of 5 channels of uint8 that are not marked as red, green and blue; set data.chann")
    in_index = find(tmp_path).notes  # a later run repeats what the listing counted
    assert {line for line in report.notes if "rescaled" not in line and "pages" not in line} <= set(in_index)
    manifest = build_manifest(find(tmp_path), [0], [1])
    assert manifest["notes"] == list(in_index)


@pytest.mark.usefixtures("without_heic")
def test_heic_without_its_package_names_it() -> None:
    with pytest.raises(DecodeError, match="pip install pillow-heif"):
        decode_bytes(HEIC_START + bytes(200))


@pytest.mark.parametrize(
    "start", [b"P6\n", b"qoif", b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x18ftypavif", b"8BPS", b"\n\5"]
)
def test_damaged_files_of_the_new_kinds_are_refused(start: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes()
    with pytest.raises(DecodeError):
        decode_bytes(start + noise)


@pytest.mark.parametrize("major", [b"avif", b"mif1"])
def test_an_avif_that_begins_with_a_shared_brand_is_no_heic(
    major: bytes, picture: Image.Image, without_heic: None
) -> None:
    file = io.BytesIO()
    picture.save(file, "AVIF")
    data = file.getvalue()
    assert b"avif" in data[16 : int.from_bytes(data[:4], "big")]
    data = data[:8] + major + data[12:]
    assert format_of_start(data[:START_BYTES]) == "AVIF"
    assert tuple(decode_bytes(data).shape) == (3, picture.height, picture.width)


@pytest.mark.parametrize(
    ("brands", "kind"), [(b"mif1heic", "HEIF"), (b"mif1avif", "AVIF"), (b"miafavis", "AVIF"), (b"miaf", "HEIF")]
)
def test_the_brands_of_a_file_end_with_their_box(brands: bytes, kind: str) -> None:
    size = (16 + len(brands)).to_bytes(4, "big")
    for major in (b"mif1", b"msf1"):
        assert format_of_start(size + b"ftyp" + major + bytes(4) + brands + b"avif") == kind


# --------------------------------------------------------------------------------------------------------------- scans


def test_only_the_scans_of_the_image_count(picture: Image.Image) -> None:
    file = io.BytesIO()
    picture.save(file, "JPEG", progressive=True, comment=b"\xff\xda" * 300)  # as thumbnails in the header
    data = file.getvalue()
    assert data.count(b"\xff\xda") > 300
    pixels = decode_bytes(data)
    assert torch.equal(decode_bytes(data + b"\xff\xda" * 300), pixels)  # the video of a motion photo
    start = data.rindex(b"\xff\xda")
    with pytest.raises(DecodeError, match=r"a JPEG of 3\d\d scans, made to take minutes; at most 200 are read"):
        decode_bytes(data[:-2] + data[start:-2] * 300 + data[-2:])


# --------------------------------------------------------------------------------------------------------------- pages


def stack(path: Path, pages: int = 3) -> None:
    values = np.stack([np.full((20, 24), 60 * (i + 1), np.uint8) for i in range(pages)])
    tifffile.imwrite(path, values, photometric="minisblack")


def test_every_page_is_an_image(tmp_path: Path, picture: Image.Image) -> None:
    stack(tmp_path / "x.tif")
    picture.save(tmp_path / "x.jpg")
    assert find(tmp_path).names == ("x.jpg", "x.tif")
    config = DataConfig(source=str(tmp_path), pages="all")
    images = find_images(config)
    assert images.names == ("x.jpg", "x.tif", "x.tif#2", "x.tif#3")
    assert [int(images.decode(i, config)[0, 0, 0]) for i in (1, 2, 3)] == [60, 120, 180]
    report = scan(config, 1)
    assert (report.usable, report.notes) == (4, ())
    assert find_images(config) == images  # from the index
    assert find(tmp_path).names == ("x.jpg", "x.tif")  # the index is of other settings
    assert map_path("maps", "a/x.tif#2") == Path("maps/a/x#2.png")
    assert build_manifest(images, [1, 2, 3], [0])["train"].keys() == {"x.tif", "x.tif#2", "x.tif#3"}
    (tmp_path / "exclude.txt").write_text("x.tif#2\n")
    exclude = str(tmp_path / "exclude.txt")
    assert find(tmp_path, pages="all", exclude=exclude).names == ("x.jpg", "x.tif", "x.tif#3")
    (tmp_path / "exclude.txt").write_text("x.tif\n")
    assert find(tmp_path, pages="all", exclude=exclude).names == ("x.jpg",)
    with pytest.raises(ConfigError, match="shards hold whole files, not pages"):
        write_shards(images, tmp_path / "shards", "", 1.0)


def test_pages_are_copies_of_the_same_page_only(tmp_path: Path) -> None:
    stack(tmp_path / "x.tif")
    config = DataConfig(source=str(tmp_path), pages="all")
    assert scan(config, 1).duplicates == ()
    (tmp_path / "y.tif").write_bytes((tmp_path / "x.tif").read_bytes())
    assert scan(config, 1).duplicates == (("x.tif", "y.tif"), ("x.tif#2", "y.tif#2"), ("x.tif#3", "y.tif#3"))


def test_pages_of_one_file_change_nothing_in_a_list(tmp_path: Path) -> None:
    stack(tmp_path / "x.tif")
    (tmp_path / "list.txt").write_text("x.tif#3\n")
    config = DataConfig(source=str(tmp_path / "list.txt"))
    images = find_images(config)
    assert images.names == ("x.tif#3",)
    assert int(images.decode(0, config)[0, 0, 0]) == 180


def test_pages_that_do_not_exist_are_unusable(tmp_path: Path, picture: Image.Image) -> None:
    """A list with a page too many; and a file that is written again with fewer pages after its folder was listed."""
    stack(tmp_path / "x.tif")
    (tmp_path / "list.txt").write_text("x.tif\nx.tif#3\nx.tif#9\n")
    listed = DataConfig(source=str(tmp_path / "list.txt"))
    sentence = "page 9 does not exist, because the file has 3 pages"
    with pytest.raises(DecodeError, match=rf"x\.tif: {sentence}"):
        find_images(listed).read_header(2, 3)
    report = scan(listed, 1)
    assert (report.usable, report.unusable) == (2, (("x.tif#9", sentence),))

    config = DataConfig(source=str(tmp_path), pages="all")
    images = find_images(config)
    stack(tmp_path / "x.tif", pages=2)
    with pytest.raises(DecodeError, match="page 3 does not exist, because the file has 2 pages"):
        images.decode(2, config)


def test_images_that_differ_in_their_ending_only_share_no_map(tmp_path: Path, picture: Image.Image) -> None:
    for name in ("a/x.jpg", "a/x.png", "a-x.jpg", "a/y.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "images" / name)
    (tmp_path / "maps" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "maps" / "a" / "x.png")
    images = find(tmp_path / "images")
    config = Config(regions=RegionConfig(source="maps", maps=str(tmp_path / "maps")))
    sentence = r"images a/x\.jpg and a/x\.png share the id map .*x\.png; rename one of them"
    with pytest.raises(DataError, match=sentence):
        Regions(config, images)
    with pytest.raises(DataError, match=sentence):
        write_shards(images, tmp_path / "shards", str(tmp_path / "maps"), 1.0)
    write_shards(images, tmp_path / "shards", "", 1.0)
    assert len(open_shards(str(tmp_path / "shards"))[1].names) == 4


def test_the_start_of_a_run_describes_what_is_not_plain(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.jpg")
    stack(tmp_path / "b.tif")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(tmp_path / "c.png")
    (tmp_path / "d.jpg").write_bytes(b"")
    config = DataConfig(source=str(tmp_path))
    looked = "1 of 4 images looked at"
    assert sample_remarks(find_images(config), config) == [
        f"TIFF files of several pages, of which the first is used (data.pages): {looked}",
        f"images of more than 8 bits per channel, rescaled to 8 bits (data.rescale_percentiles): {looked}",
    ]


# --------------------------------------------------------------------------------------------------- names and index


def test_names_that_start_with_a_hash_are_no_comments(tmp_path: Path, picture: Image.Image) -> None:
    for name in ("#1.jpg", "#2.jpg", "3.jpg"):
        picture.save(tmp_path / name)
    (tmp_path / "list.txt").write_text("# all images\n#1.jpg\n3.jpg\n")
    assert find(tmp_path / "list.txt").names == ("#1.jpg", "3.jpg")
    images = find(tmp_path, exclude=str(tmp_path / "list.txt"))
    assert images.names == ("#2.jpg",)
    assert images.excluded == 2
    assert not [line for line in images.notes if "match no image" in line]


def test_a_verdict_lasts_no_longer_than_its_settings(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.jpg")
    picture.resize((200, 200)).save(tmp_path / "large.jpg")
    assert dict(scanned(tmp_path, max_megapixels=0.01).unusable).keys() == {"large.jpg"}
    assert find(tmp_path, max_megapixels=0.01).names == ("a.jpg",)
    others = find(tmp_path, max_megapixels=1)
    assert others.names == ("a.jpg", "large.jpg")
    sentence = (
        "the 1 images that plrc scan could not read are not left out, because it was run with another max_megapixels; "
        "run it again with the settings of this run"
    )
    assert sentence in others.notes
    assert sentence not in find(tmp_path, max_megapixels=0.01).notes
    (tmp_path / "large.jpg").write_bytes(b"")
    scanned(tmp_path)
    assert find(tmp_path).names == ("a.jpg",)
    before = os.stat(tmp_path / "large.jpg").st_mtime_ns
    (tmp_path / "large.jpg").chmod(0o600)  # new permissions may make it readable
    assert os.stat(tmp_path / "large.jpg").st_mtime_ns == before
    assert find(tmp_path).names == ("a.jpg", "large.jpg")


def test_entries_that_macos_adds_to_a_tar_are_no_images(tmp_path: Path, picture: Image.Image) -> None:
    pytest.importorskip("webdataset")
    file = io.BytesIO()
    picture.save(file, "JPEG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("a.jpg", file.getvalue()), ("._a.jpg", b"\0\5\x16\7" + bytes(60))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert open_shards(str(tmp_path))[1].names == ["a.tar/a.jpg"]


@pytest.mark.usefixtures("without_heic")
def test_nothing_but_heic_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC_START)
    with pytest.raises(DataError, match=r"1 files, none .*pip install pillow-heif, left out: 1 \(a\.heic\)"):
        find(tmp_path)


def test_damaged_frames_after_the_first_do_no_harm() -> None:
    frames = [Image.effect_noise((32, 24), 50 + i) for i in range(4)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    data = file.getvalue()
    for end in range(len(data) // 2, len(data)):
        assert read_header(io.BytesIO(data[:end])).height == 24
