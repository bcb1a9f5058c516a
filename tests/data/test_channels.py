"""Images of other channels than RGB: arrays and files as they are stored, their statistics, colors and regions."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import tifffile
import torch
from PIL import Image

from plrc.config import DataConfig, ViewConfig
from plrc.data import image_files
from plrc.data.channel_statistics import measure_pixels
from plrc.data.channels import ChannelsError, shown_pixels
from plrc.data.decode import decode, decode_bytes
from plrc.data.image_errors import DecodeError
from plrc.data.image_header import Header, read_header
from plrc.data.photometric import augment, color_draws, normalize
from plrc.data.regions import felzenszwalb_regions, slic_regions
from plrc.data.scan import scan
from plrc.data.shard_writer import write_shards
from plrc.data.sources import ImageList, find_images
from plrc.errors import ConfigError, DataError
from plrc.pixels import PixelStatistics


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def five() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 5), dtype=np.uint8)


def test_an_array_is_read_with_its_channels_last_or_first(five: np.ndarray) -> None:
    for stored in (five, np.ascontiguousarray(np.moveaxis(five, -1, 0)), np.asfortranarray(five)):
        image = decode_bytes(npy(stored), channels=5)
        assert torch.equal(image, torch.from_numpy(five).permute(2, 0, 1))
        assert image.permute(1, 2, 0).is_contiguous()  # as all decoders give it
    gray = decode_bytes(npy(five[:, :, 0]), channels=1)
    assert torch.equal(gray[0], torch.from_numpy(five[:, :, 0]))
    assert decode_bytes(npy(five[:, :, :3])).shape == (3, 20, 30)


KINDS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TGA": ("L", "LA", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
}


def files_of_many_kinds() -> list[bytes]:
    files: list[bytes] = []
    ramp = Image.fromarray(np.arange(20 * 30, dtype=np.uint16).reshape(20, 30))
    for file_format, modes in KINDS.items():
        for mode in modes:
            if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
                continue  # these versions cannot read what they write
            file = io.BytesIO()
            image = ramp if mode == "I;16" else Image.linear_gradient("L").resize((30, 20)).convert(mode)
            image.save(file, file_format)
            files.append(file.getvalue())
    for channels in (2, 4, 5):
        for dtype in (np.uint8, np.uint16):
            for colors in ("minisblack", "rgb") if channels > 2 else ("minisblack",):
                file = io.BytesIO()
                values = np.arange(20 * 30 * channels, dtype=dtype).reshape(20, 30, channels)
                tifffile.imwrite(file, values, photometric=colors, planarconfig="contig")
                files.append(file.getvalue())
    return files


def refusal(header: Header, channels: int) -> str:
    try:
        header.require_channels(channels)
    except ChannelsError as error:
        return error.reason
    return ""


def test_the_header_states_whether_an_image_can_be_decoded_with_so_many_channels() -> None:
    for data in files_of_many_kinds():
        header = read_header(io.BytesIO(data))
        for channels in range(1, 6):
            reason = refusal(header, channels)
            if reason:
                with pytest.raises(ChannelsError, match=re.escape(reason)):
                    decode_bytes(data, channels=channels)
            else:
                assert decode_bytes(data, channels=channels).shape == (channels, 20, 30)


def test_deep_channels_are_rescaled_one_by_one() -> None:
    ramp = np.linspace(0, 1, 101)[:, None].repeat(101, axis=1)
    values = np.stack([ramp * 60_000, 5 - ramp], axis=-1).astype(np.float32)
    values[0, 0] = np.nan
    image = decode_bytes(npy(values), channels=2, percentiles=(0, 100))
    assert [(int(channel.min()), int(channel.max())) for channel in image] == [(0, 255), (0, 255)]
    assert image[0, :, 5].tolist() == sorted(image[0, :, 5].tolist())
    mask = decode_bytes(npy(ramp > 0.5), channels=1)
    assert set(mask.unique().tolist()) == {0, 255}


@pytest.mark.parametrize(
    ("shape", "channels", "sentence"),
    [
        ((20, 30, 4), 5, "an array of shape 20 x 30 x 4, but data.channels is 5"),
        ((20, 5, 30), 5, "an array of shape 20 x 5 x 30, but data.channels is 5"),
        ((20, 30), 5, "the image has 1 channel, but data.channels is 5"),
        ((5, 30, 5), 5, "its first and its last axis can be the channels; crop or pad the image"),
        ((2, 20, 30, 5), 5, r"an array of shape 2 x 20 x 30 x 5; an image is \[H, W, channels\] or"),
        ((0, 30, 5), 5, "the image has no pixels"),
        ((9000, 30_000, 1), 1, "30000 x 9000 = 270 megapixels is more than data.max_megapixels = 200"),
    ],
)
def test_an_array_of_another_shape_has_a_sentence(shape: tuple[int, ...], channels: int, sentence: str) -> None:
    with pytest.raises(DecodeError, match=sentence):
        decode_bytes(npy(np.zeros(shape, np.uint8)), channels=channels)


def test_damaged_and_foreign_arrays_have_a_sentence(five: np.ndarray) -> None:
    with pytest.raises(DecodeError, match="the file is truncated"):
        decode_bytes(npy(five)[:-100], channels=5)
    with pytest.raises(DecodeError, match=r"a \.npy file whose header is damaged"):
        decode_bytes(npy(five)[:40], channels=5)
    with pytest.raises(DecodeError, match="which are no numbers of pixels"):
        decode_bytes(npy(np.zeros((20, 30, 5), complex)), channels=5)
    pickled = io.BytesIO()
    np.save(pickled, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DecodeError, match="which are no numbers of pixels"):
        decode_bytes(pickled.getvalue(), channels=1)


def test_other_formats_keep_their_channels(five: np.ndarray, tmp_path: Path) -> None:
    assert torch.equal(decode_bytes(png(five[:, :, 0]), channels=1)[0], torch.from_numpy(five[:, :, 0]))
    rgba = decode_bytes(png(np.ascontiguousarray(five[:, :, :4])), channels=4)  # the fourth channel is no transparency
    assert torch.equal(rgba, torch.from_numpy(five[:, :, :4]).permute(2, 0, 1))
    deep = png(five[:, :, 0].astype(np.uint16) * 200)
    assert decode_bytes(deep, channels=1).shape == (1, 20, 30)
    with pytest.raises(DecodeError, match=r"the image has 3 channels, but data.channels is 1"):
        decode_bytes(png(np.ascontiguousarray(five[:, :, :3])), channels=1)
    (tmp_path / "x.png").write_bytes(png(five[:, :, 0]))
    with pytest.raises(DecodeError, match=r"x\.png: the image has 1 channel, but data.channels is 5"):
        decode(tmp_path / "x.png", channels=5)


def test_statistics_are_those_of_the_images(tmp_path: Path) -> None:
    images = [np.random.default_rng(i).integers(0, 200 + i, (8, 9, 2), dtype=np.uint8) for i in range(4)]
    for i, image in enumerate(images):
        np.save(tmp_path / f"{i}.npy", image)
    listed = ImageList(str(tmp_path), ("0.npy", "1.npy", "2.npy", "3.npy", "gone.npy"), "list")
    measured, count = measure_pixels(listed, range(5), DataConfig(channels=2))
    values = np.stack(images) / 255
    assert count == 4
    np.testing.assert_allclose(measured.mean, values.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(measured.std, values.std(axis=(0, 1, 2)), atol=1e-6)
    np.save(tmp_path / "0.npy", np.stack([images[0][:, :, 0], np.full((8, 9), 7, np.uint8)], axis=-1))
    with pytest.raises(DataError, match=r"channel 1 \(counted from 0\) has the same value everywhere"):
        measure_pixels(listed, [0], DataConfig(channels=2))
    with pytest.raises(DataError, match=r"none of 1 images can be read to measure .* gone.npy: does not exist"):
        measure_pixels(listed, [4], DataConfig(channels=2))


def test_statistics_have_a_number_for_each_channel() -> None:
    with pytest.raises(ConfigError, match=r"data.mean must be 5 numbers from 0 to 1 \(images of 5 channels\), got 0.5"):
        DataConfig(channels=5, mean=(0.5,), std=(0.5,))
    with pytest.raises(ConfigError, match=r"data.std must be one number above 0 \(gray\), got 0"):
        DataConfig(channels=1, mean=(0.5,), std=(0.0,))
    with pytest.raises(ConfigError, match=r"data.channels must be between 1 and 1024, got 0"):
        DataConfig(channels=0)
    with pytest.raises(ConfigError, match=r"data.mean and data.std are needed for images of 5 channels"):
        _ = DataConfig(channels=5).pixels


def test_each_channel_is_jittered_by_its_own_numbers(five: np.ndarray) -> None:
    statistics = PixelStatistics((0.5,) * 5, (0.25,) * 5)
    views = torch.from_numpy(five[:20, :20]).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    config = ViewConfig(jitter_prob=0.5, blur_prob=0.0, brightness=0.4, contrast=0.2)
    uniform = torch.rand(2, color_draws(5), generator=torch.Generator().manual_seed(3))
    uniform[:, 0] = torch.tensor([0.9, 0.1])  # the first view keeps its values
    got = augment(views, uniform, config, statistics)
    torch.testing.assert_close(got[0], normalize(views[:1], statistics)[0], atol=2e-6, rtol=1e-6)
    for channel in range(5):
        values = views[1, channel] / 255
        brightness = 1 + 0.4 * (2 * uniform[1, 1 + channel] - 1)
        contrast = 1 + 0.2 * (2 * uniform[1, 6 + channel] - 1)
        expected = (brightness * contrast * values + (1 - contrast) * brightness * values.mean()).clamp(0, 1)
        torch.testing.assert_close(got[1, channel], (expected - 0.5) / 0.25, atol=1e-5, rtol=1e-5)


def test_views_that_are_not_rgb_are_blurred_as_rgb_is(five: np.ndarray) -> None:
    config = ViewConfig(jitter_prob=0.0, gray_prob=0.0, blur_prob=1.0)
    rgb = torch.from_numpy(five[:20, :20, :3]).permute(2, 0, 1)[None]
    uniform = torch.full((1, color_draws(3)), 0.5)
    blurred = augment(rgb, uniform, config, PixelStatistics((0.5,) * 3, (0.25,) * 3))[:, :2]
    pair = augment(rgb[:, :2], torch.full((1, color_draws(2)), 0.5), config, PixelStatistics((0.5,) * 2, (0.25,) * 2))
    torch.testing.assert_close(pair, blurred, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_superpixels_follow_any_channel(channels: int) -> None:
    pytest.importorskip("skimage")
    pixels = np.zeros((32, 32, channels), np.uint8)
    pixels[:, 16:, -1] = 255  # two halves, which differ in the last channel only
    for ids in (felzenszwalb_regions(pixels, 200.0), slic_regions(pixels, 8)):
        assert not set(np.unique(ids[:, :13])) & set(np.unique(ids[:, 19:]))


def test_people_are_shown_three_channels_or_gray(five: np.ndarray) -> None:
    image = torch.from_numpy(five).permute(2, 0, 1)
    assert np.array_equal(shown_pixels(image), five[:, :, :3])
    assert np.array_equal(shown_pixels(image[:2]), np.repeat(five[:, :, :1], 3, axis=2))


def test_scan_measures_what_a_folder_holds(five: np.ndarray, tmp_path: Path) -> None:
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.roll(five, 40 * i, axis=0) // (i + 1))
    np.save(tmp_path / "other.npy", five[:, :, :4])
    (tmp_path / "gray.png").write_bytes(png(five[:, :, 0]))
    data = DataConfig(source=str(tmp_path), channels=5)
    report = scan(data)
    assert (report.files, report.usable, report.formats) == (6, 4, {"NPY": 4})
    assert dict(report.unusable) == {
        "other.npy": "an array of shape 20 x 30 x 4, but data.channels is 5",
        "gray.png": "the image has 1 channel, but data.channels is 5",
    }
    measured, _ = measure_pixels(find_images(data), range(4), data)
    assert (report.mean, report.std) == (measured.mean, measured.std)
    assert f"data.mean   {' '.join(map(str, measured.mean))}" in report.table()
    assert len(find_images(data)) == 4  # the index knows the other two
    assert find_images(DataConfig(source=str(tmp_path))).names == ("gray.png",)  # as RGB it is another source
    with pytest.raises(ConfigError, match=r"shards hold image files, but 4 of the images are arrays, such as 0.npy"):
        write_shards(find_images(data), tmp_path / "shards", "", 1.0)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", **options)
    return file.getvalue()


def test_bands_and_planes_of_a_tiff_are_channels(five: np.ndarray, tmp_path: Path) -> None:
    expected = torch.from_numpy(five).permute(2, 0, 1)
    bands = tiff(five, planarconfig="contig")
    planes = tiff(np.moveaxis(five, -1, 0), planarconfig="separate")
    for data in (bands, planes):
        assert torch.equal(decode_bytes(data, channels=5), expected)
    assert decode_bytes(tiff(five.astype(np.float32) / 7, planarconfig="contig"), channels=5).shape == (5, 20, 30)
    with pytest.raises(DecodeError, match=r"the image has 5 channels, but data.channels is 4"):
        decode_bytes(bands, channels=4)
    (tmp_path / "a.tif").write_bytes(bands)
    report = scan(DataConfig(source=str(tmp_path), channels=5))
    assert (report.usable, report.modes, len(report.std)) == (1, {"5 channels of uint8": 1}, 5)


def test_a_large_array_is_not_taken_for_another_file(
    five: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_LARGE_FILE", 100)  # above it, headers are checked before a file is read
    np.save(tmp_path / "x.npy", five)
    assert decode(tmp_path / "x.npy", channels=5).shape == (5, 20, 30)
