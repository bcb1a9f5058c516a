"""Deep TIFF images: right pixels, or one sentence."""

from __future__ import annotations

import contextlib
import io
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from plrc.data.decode import decode_bytes
from plrc.data.image_errors import DecodeError
from plrc.data.image_header import read_header
from plrc.data.rescale import FILL_REMARK
from plrc.data.tiff import full_pages, read_tiff_header, read_tiff_page

HEIGHT, WIDTH = 20, 24


def ramp(channels: int, dtype: Any = np.uint16, largest: float = 4095) -> np.ndarray:
    """[20, 24, channels] from 0 to `largest`, each channel of its own."""
    values = np.linspace(0, largest, HEIGHT * WIDTH * channels).reshape(HEIGHT, WIDTH, channels)
    return values.astype(dtype)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def pixels(data: bytes, **options: Any) -> np.ndarray:
    return decode_bytes(data, **options).permute(1, 2, 0).numpy()


def reason(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_bytes(data)
    return caught.value.reason


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int16, np.float16, np.float32, np.float64, ">u2"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_deep_color_keeps_all_its_bits(dtype: Any, planes: bool, compression: str | None) -> None:
    values = ramp(3, dtype)
    if planes:
        planar = np.moveaxis(values, -1, 0)
        data = tiff(planar, photometric="rgb", planarconfig="separate", compression=compression)
    else:
        data = tiff(values, photometric="rgb", compression=compression)
    assert np.array_equal(read_tiff_page(data), values.astype(values.dtype.newbyteorder("=")))
    result = pixels(data)
    assert np.abs(result - scaled(values)).max() <= 1
    assert len(np.unique(result)) > 250  # 12 bits of color, whose upper 8 bits have 16 levels
    header = read_header(io.BytesIO(data))
    assert (header.height, header.width, header.is_deep) == (HEIGHT, WIDTH, True)
    assert header.remarks("first", 3) == [
        "images of more than 8 bits per channel, rescaled to 8 bits (data.rescale_percentiles)"
    ]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_white_is_zero_and_the_orientation_of_gray(compression: str, orientation: int) -> None:
    values = ramp(1)[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(65535 - values).save(file, "TIFF", compression=compression, tiffinfo={262: 0, 274: orientation})
    shown = values if orientation == 1 else np.rot90(values, -1)
    assert np.array_equal(read_tiff_page(file.getvalue())[:, :, 0], shown)
    assert np.abs(pixels(file.getvalue())[:, :, 0] - scaled(shown)).max() <= 1


def test_more_channels_than_colors() -> None:
    values = ramp(5, np.uint8, 255)
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": [0, 0]}
    data = tiff(values, **options)
    assert np.array_equal(pixels(data), values[:, :, :3])
    header = read_header(io.BytesIO(data))
    assert (header.mode, header.unused_channels) == ("RGB", 2)
    assert header.remarks("first", 3) == [
        "TIFF files with channels besides red, green and blue, which are not used (data.channels)"
    ]
    deep = ramp(5)
    header = read_header(io.BytesIO(tiff(deep, **options)))
    assert (header.mode, header.unused_channels) == ("5 channels of uint16", 2)
    assert np.abs(pixels(tiff(deep, **options)) - scaled(deep[:, :, :3])).max() <= 1
    alpha = ramp(4)
    alpha[:, :, 3] = 0
    assert (pixels(tiff(alpha, photometric="rgb", extrasamples=[2])) == 255).all()


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_that_are_no_colors_are_named(channels: int, dtype: Any) -> None:
    data = tiff(ramp(channels, dtype, 200), photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_tiff_page(data), ramp(channels, dtype, 200))
    assert reason(data).startswith(
        f"a TIFF of {channels} channels of {np.dtype(dtype).name} that are not marked as red, green and blue"
    )


def test_no_data_does_not_flatten_the_image() -> None:
    values = ramp(1, np.float32)[:, :, 0] + 100
    values[:5] = -9999
    tagged = tiff(values, extratags=[(42113, 2, 0, "-9999", True)])
    assert read_tiff_header(io.BytesIO(tagged)).no_data == -9999
    for data in (tagged, tiff(values)):
        remarks: list[str] = []
        result = pixels(data, remarks=remarks)
        assert np.abs(result[5:, :, 0] - scaled(values[5:])).max() <= 1
        assert (result[:5] == 0).all()
        assert remarks == [FILL_REMARK]
    close = values.astype(np.uint16)
    close[:5] = 0  # near the others: nothing is flattened
    remarks = []
    pixels(tiff(close), remarks=remarks)
    assert remarks == []


def test_pages_are_pictures_and_no_thumbnails() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for i in range(3):
            writer.write(ramp(3) // (i + 1), photometric="rgb")
            writer.write(ramp(3)[::2, ::2], photometric="rgb", subfiletype=1)
    data = file.getvalue()
    assert full_pages(io.BytesIO(data)) == [0, 2, 4]
    assert np.array_equal(read_tiff_page(data, 2), ramp(3) // 3)
    assert read_header(io.BytesIO(data)).pages == 3
    assert read_header(io.BytesIO(data)).remarks("first", 3)[1] == (
        "TIFF files of several pages, of which the first is used (data.pages)"
    )


def pages(*contents: np.ndarray) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for values in contents:
            writer.write(values, photometric="rgb" if values.ndim == 3 else "minisblack")
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_page_that_does_not_exist_is_named(dtype: Any, channels: int) -> None:
    values = ramp(channels, dtype, 200).squeeze()
    for data, count in ((pages(values), "1 page"), (pages(values, values), "2 pages")):
        sentence = f"^page 8 does not exist, because the file has {count}$"
        for read in (decode_bytes, read_tiff_page):
            with pytest.raises(DecodeError, match=sentence):
                read(data, page=7)
        for read_start in (read_header, read_tiff_header):
            with pytest.raises(DecodeError, match=sentence):
                read_start(io.BytesIO(data), page=7)
        with pytest.raises(DecodeError, match="page 0 does not exist"):
            decode_bytes(data, page=-1)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "NPY"])
def test_other_formats_have_no_further_pages(kind: str) -> None:
    file = io.BytesIO()
    if kind == "NPY":
        np.save(file, ramp(3, np.uint8, 255))
    else:
        picture = Image.fromarray(ramp(3, np.uint8, 255))
        picture.save(file, kind, **({"save_all": True, "append_images": [picture.rotate(90)]} if kind == "GIF" else {}))
    data = file.getvalue()
    assert decode_bytes(data).shape == (3, HEIGHT, WIDTH)
    sentence = "^page 2 does not exist, because the file has 1 page$"
    with pytest.raises(DecodeError, match=sentence):
        decode_bytes(data, page=1)
    with pytest.raises(DecodeError, match=sentence):
        read_header(io.BytesIO(data), page=1)


def test_a_further_page_of_a_kind_that_pillow_does_not_know() -> None:
    first = ramp(1, np.uint8, 255)[:, :, 0]
    second = ramp(5)
    data = pages(first, second)
    assert np.array_equal(pixels(data, page=0)[:, :, 0], first)
    assert np.abs(pixels(data, page=1) - scaled(second[:, :, :3])).max() <= 1
    header = read_header(io.BytesIO(data), page=1)
    assert (header.mode, header.unused_channels, header.pages) == ("5 channels of uint16", 2, 2)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_further_page_gives_pixels_or_a_decode_error(seed: int) -> None:
    draw = np.random.default_rng(seed)
    data = bytearray(pages(ramp(1, np.uint8, 255)[:, :, 0], ramp(3, draw.choice([np.uint8, np.uint16]))))
    _, second = (page.offset for page in tifffile.TiffFile(io.BytesIO(bytes(data))).pages)
    for place in draw.integers(second, second + 100, size=2):
        data[place] = draw.integers(256)
    with contextlib.suppress(DecodeError):
        decode_bytes(bytes(data), page=1)


def test_a_damaged_list_of_pages_without_end_ends() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(2):
            writer.write(ramp(3), photometric="rgb")
    data = bytearray(file.getvalue())
    first, second = (page.offset for page in tifffile.TiffFile(io.BytesIO(bytes(data))).pages)
    end = second + 2 + 12 * int.from_bytes(data[second : second + 2], "little")  # where the next page would be named
    assert data[end : end + 4] == bytes(4)
    data[end : end + 4] = first.to_bytes(4, "little")
    assert full_pages(io.BytesIO(data)) == [0, 1] and read_header(io.BytesIO(data)).pages == 2
    assert np.array_equal(read_tiff_page(bytes(data), 1), ramp(3))


def test_kinds_that_cannot_be_read_are_named() -> None:
    cmyk = tiff(ramp(4), photometric="separated")
    assert reason(cmyk) == "a TIFF of 4 channels of uint16 in SEPARATED colors; convert it to RGB"
    bomb = bytearray(tiff(np.zeros((16, 16, 3), np.uint16), photometric="rgb", compression="zlib"))
    page = tifffile.TiffFile(io.BytesIO(bytes(bomb))).pages[0]
    large = zlib.compress(bytes(10_000_000))
    offset = len(bomb)
    bomb += large
    data = bytes(bomb).replace(page.dataoffsets[0].to_bytes(4, "little"), offset.to_bytes(4, "little"), 1)
    data = data.replace(page.databytecounts[0].to_bytes(4, "little"), len(large).to_bytes(4, "little"), 1)
    assert tifffile.TiffFile(io.BytesIO(data)).pages[0].databytecounts[0] == len(large)
    assert reason(data) == "a TIFF whose compressed data is larger than its header says"
    assert reason(b"II*\0" + bytes(50)).startswith("damaged or unusual TIFF data")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_thumbnail_before_the_picture_is_not_the_picture(dtype: Any) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(ramp(1, dtype, 200)[:5, :6, 0], subfiletype=1)
        writer.write(ramp(1, dtype, 200)[:, :, 0])
    data = file.getvalue()
    header = read_header(io.BytesIO(data))
    assert (header.height, header.width, header.pages) == (HEIGHT, WIDTH, 1)
    assert pixels(data).shape == (HEIGHT, WIDTH, 3)
    assert read_tiff_page(data).shape == (HEIGHT, WIDTH, 1)
