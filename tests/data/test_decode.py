"""decode: every kind of image file becomes the right RGB pixels, everything else a DecodeError in plain words."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from plrc.data import decode as module
from plrc.data.decode import decode, decode_bytes
from plrc.data.image_errors import DecodeError
from plrc.data.image_files import read_file_header
from plrc.data.image_header import open_image
from plrc.data.rescale import rescale

HEIGHT, WIDTH = 40, 64


def coordinates() -> np.ndarray:
    """[40, 64, 3]: red is the column, green the row, so that every pixel knows where it belongs."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 4, y * 6, np.full_like(x, 90)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, **options: Any) -> np.ndarray:
    tensor = decode_bytes(data, **options)
    assert tensor.dtype == torch.uint8
    assert tensor.permute(1, 2, 0).is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_bytes(data, **options)
    return caught.value.reason


def turned(orientation: int, image: np.ndarray) -> np.ndarray:
    """The pixels a camera would store with this EXIF orientation, so that the displayed image is `image`."""
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(stored[orientation](image))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_puts_every_pixel_where_it_belongs(
    orientation: int, kind: str, options: dict[str, Any]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(turned(orientation, coordinates()), kind, exif=exif, **options)
    assert difference(pixels(data), coordinates()) <= (4 if kind == "JPEG" else 0)


def png_options(kind: bytes) -> dict[str, Any]:
    """What makes Pillow write the orientation 6 into a chunk of this kind."""
    if kind == b"eXIf":
        exif = Image.Exif()
        exif[0x0112] = 6
        return {"exif": exif}
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    return {"pnginfo": text}


@pytest.mark.parametrize("kind", [b"eXIf", b"iTXt"])
def test_the_orientation_behind_the_pixels_of_a_png_is_found(kind: bytes) -> None:
    data = encoded(turned(6, coordinates()), "PNG", **png_options(kind))
    start = data.index(kind) - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    trailer = data.index(b"IEND") - 4
    moved = data[:start] + data[end:trailer] + data[start:end] + data[trailer:]
    assert moved.index(b"IDAT") < moved.index(kind) and len(moved) == len(data)
    for content in (data, moved):
        assert difference(pixels(content), coordinates()) == 0


def test_opening_a_png_decodes_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(coordinates(), "PNG")
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("decoded the pixels"))
    opened = open_image(io.BytesIO(data))
    assert (opened.height, opened.width) == coordinates().shape[:2]


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_both_decoders_agree(kind: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(turned(orientation, coordinates()), kind, quality=85, exif=exif)
    assert module._decode_jpeg is not None
    assert module._decode_webp is not None
    fast = pixels(data)
    monkeypatch.setattr(module, "_decode_jpeg", None)
    monkeypatch.setattr(module, "_decode_webp", None)
    assert difference(pixels(data), fast) <= 3


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_lossless_kinds_come_back_exactly(kind: str) -> None:
    image = coordinates() // 64 * 64
    assert difference(pixels(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))), image) == 0


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("1", "TIFF"), ("L", "BMP")])
def test_gray_becomes_three_equal_channels(mode: str, kind: str) -> None:
    gray = Image.fromarray(coordinates()).convert(mode)
    expected = np.repeat(np.asarray(gray.convert("L"))[:, :, None], 3, axis=2)
    assert difference(pixels(encoded(gray, kind)), expected) <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    """A CMYK JPEG is stored inverted with an Adobe marker (that is how Pillow writes it); a TIFF is not."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:] = (200, 40, 90)
    data = encoded(Image.fromarray(image).convert("CMYK"), kind)
    if kind == "JPEG":
        assert b"Adobe" in data
    assert difference(pixels(data), image) <= 3


def test_ycbcr_tiff() -> None:
    data = encoded(Image.fromarray(coordinates()).convert("YCbCr"), "TIFF")
    if int(PIL.__version__.partition(".")[0]) >= 13:
        assert difference(pixels(data), coordinates()) <= 3
    else:  # Pillow 12, the newest for Python 3.10, takes such files for four channels
        with pytest.raises(DecodeError, match="truncated"):
            pixels(data)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG")])
def test_transparent_pixels_are_laid_on_white(mode: str, kind: str) -> None:
    image = np.full((8, 8, 4), 100, np.uint8)
    image[..., 3] = 255
    image[:, 4:, 3] = 0
    image[0, :, 3] = 128
    data = encoded(Image.fromarray(image).convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    result = pixels(data)
    assert (result[1:, :4] == 100).all()
    assert (result[1:, 4:] == 255).all()
    assert difference(result[0], np.full((8, 3), round(100 * 128 / 255 + 127), np.uint8)) <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_and_without_a_transparent_color(kind: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 4, 8))
    opaque, transparent = pixels(encoded(image, kind)), pixels(encoded(image, kind, transparency=0))
    assert opaque[0, 0].tolist() == [10, 20, 30]
    assert transparent[0, 0].tolist() == [255, 255, 255]
    assert opaque[0, 7].tolist() == transparent[0, 7].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(np.uint16, "PNG"), (np.uint16, "TIFF"), (">u2", "TIFF"), (np.int32, "TIFF"), (np.float32, "TIFF")],
)
def test_deep_gray_is_scaled_by_percentiles(dtype: Any, kind: str) -> None:
    values = np.linspace(300, 4000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    values[0, 0] = 30000  # one hot pixel must not darken the rest
    data = encoded(Image.fromarray(values.astype(dtype)), kind)
    low, high = np.percentile(values, (1, 99))
    expected = np.clip((values - low) / (high - low) * 255, 0, 255)
    result = pixels(data, percentiles=(1, 99))
    assert np.abs(result - expected[:, :, None]).max() <= 1
    assert result.min() == 0
    assert result.max() == 255


def test_deep_color_png_keeps_its_low_bits() -> None:
    """A 12-bit camera's values in a 16-bit PNG: all below 4096, so their upper bytes alone hold 16 levels."""
    values = np.linspace(0, 4095, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint16)
    result = pixels(deep_png(values), percentiles=(0, 100))
    assert difference(result, np.rint(values / 4095 * 255).astype(np.uint8)) <= 1
    assert len(np.unique(result)) == 256


def test_deep_color_png_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 65535, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint16)
    fast = pixels(deep_png(values))
    monkeypatch.setattr(module, "_decode_png", None)
    assert difference(pixels(deep_png(values)), fast) <= 2


@pytest.mark.parametrize("channels", [2, 4])
def test_deep_png_with_alpha_is_laid_on_white(channels: int) -> None:
    values = np.zeros((8, 8, channels), np.uint16)
    values[:, :4, :-1] = 5000
    values[..., -1] = 65535
    values[0, :, -1] = 0
    result = pixels(deep_png(values))
    assert (result[0] == 255).all()
    assert (result[1:, :4] == 255).all()
    assert (result[1:, 4:] == 0).all()


def deep_png(values: np.ndarray) -> bytes:
    """A 16-bit PNG with 2 (gray, alpha), 3 or 4 channels, which Pillow cannot write."""
    height, width, channels = values.shape

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_constant_and_empty_valued_images_are_black(value: float) -> None:
    assert not rescale(np.full((4, 4), value, np.float32), (0.5, 99.5)).any()


def test_stretch_of_extreme_values() -> None:
    values = np.array([-3e38, 0, 3e38, np.inf, -np.inf, np.nan], np.float32)
    assert rescale(values, (0, 100)).tolist() == [0, 128, 255, 255, 0, 0]
    mask = np.zeros(1000, np.uint16)
    mask[0] = 9  # both percentiles are 0
    assert rescale(mask, (0.5, 99.5))[:2].tolist() == [255, 0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_many_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    result = pixels(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert result.shape == (12, 16, 3)
    assert difference(result, np.asarray(frames[0])) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_size_limit_is_read_from_the_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    data = encoded(np.zeros((100, 300, 3), np.uint8), kind)
    monkeypatch.setattr(module, "_decode_by_torchvision", fail)
    result = reason(data, max_megapixels=0.02)
    assert result == "300 x 100 = 0.03 megapixels is more than data.max_megapixels = 0.02"


def test_a_decompression_bomb_is_refused_and_a_large_image_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(encoded(coordinates(), "BMP"))
    bomb[18:26] = struct.pack("<ii", 20000, 15000)
    assert "20000 x 15000 = 300 megapixels" in reason(bytes(bomb))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow would warn, or refuse
    assert pixels(encoded(coordinates(), "PNG")).shape == (HEIGHT, WIDTH, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.97])
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("GIF", {})]
)
def test_truncated_files(kind: str, options: dict[str, Any], cut: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, kind, **options)
    assert reason(data[: int(len(data) * cut)]) == "the file is truncated"


def test_contents_decide_and_not_the_name(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(encoded(coordinates(), "PNG"))
    assert difference(decode(image).permute(1, 2, 0).numpy(), coordinates()) == 0
    text = tmp_path / "b.jpg"
    text.write_bytes(b"<html>not found</html>")
    with pytest.raises(DecodeError, match=r"b\.jpg: not an image that can be read \(starts with b'<html>no'\)"):
        decode(text)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    reasons = {
        "folder.jpg": "is a folder",
        "empty.jpg": "the file is empty",
        "link.jpg": "does not exist (or is a dangling link)",
        "none.jpg": "does not exist (or is a dangling link)",
    }
    for name, expected in reasons.items():
        for function in (decode, read_file_header):
            with pytest.raises(DecodeError) as caught:
                function(tmp_path / name)
            assert caught.value.reason == expected
            assert caught.value.path == str(tmp_path / name)
    assert reason(b"") == "the file is empty"
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - errors travel from worker processes
    assert (copied.reason, copied.path, str(copied)) == (caught.value.reason, caught.value.path, str(caught.value))


def test_read_file_header_reports_the_shown_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(coordinates(), "JPEG", exif=exif))
    (tmp_path / "b.png").write_bytes(deep_png(np.zeros((5, 7, 3), np.uint16)))
    (tmp_path / "c.tif").write_bytes(encoded(np.zeros((5, 7), np.float32), "TIFF"))
    header = read_file_header(tmp_path / "a.jpg")
    assert header[:3] == (WIDTH, HEIGHT, "RGB")
    assert (header.orientation, header.stored_size) == (6, (HEIGHT, WIDTH))
    assert read_file_header(tmp_path / "b.png")[:3] == (5, 7, "RGB;16")
    assert read_file_header(tmp_path / "c.tif")[:3] == (5, 7, "F")


def test_damaged_exif_does_not_cost_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(coordinates(), "JPEG", exif=exif, quality=100, subsampling=0))
    start = data.index(b"Exif\0\0") + 6
    data[start + 8 : start + 26] = b"\xff" * 18
    assert difference(pixels(bytes(data)), coordinates()) <= 4


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[(kind, {}) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")],
        ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_damaged_bytes_give_pixels_or_a_decode_error(kind: str, options: dict[str, Any]) -> None:
    data = encoded(coordinates(), kind, **options)
    rng = np.random.default_rng(len(data))
    refused = 0
    for trial in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data))] if trial % 3 == 0 else data)
        reach = min(200, len(damaged)) if trial % 2 else len(damaged)  # half of the trials strike the header
        for position in rng.integers(0, reach, int(rng.integers(1, 8))):
            damaged[position] ^= 1 << int(rng.integers(8))
        try:
            assert decode_bytes(bytes(damaged), max_megapixels=1).shape[0] == 3
        except DecodeError:
            refused += 1
    assert 10 <= refused < 60


@pytest.mark.parametrize(
    "start", [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"II*\0", b"BM"]
)
def test_random_bytes_are_refused(start: bytes) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 40, 3000):
        assert reason(start + rng.bytes(size))


def test_many_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    data = [encoded(coordinates(), kind) for kind in ("PNG", "TIFF", "JPEG", "GIF")] * 10
    with ThreadPoolExecutor(4) as pool:
        shapes = {tuple(tensor.shape) for tensor in pool.map(decode_bytes, data)}
    assert shapes == {(3, HEIGHT, WIDTH)}
    assert list(warnings.filters) == before
    assert Image.MAX_IMAGE_PIXELS is not None


def test_real_photographs_agree_with_pillow() -> None:
    root = os.environ.get("PLRC_DATA")
    if not root:
        pytest.skip("PLRC_DATA is not set: no real data")
    for name in ("BloodImage_00047.jpg", "BloodImage_00379.jpg"):
        path = Path(root) / "bccd" / "JPEGImages" / name
        with Image.open(path) as image:
            assert difference(decode(path).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB"))) <= 3


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize(("least", "factor"), [(0, 1), (401, 1), (400, 1), (200, 2), (150, 2), (100, 4), (20, 8)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_keeps_enough_pixels(
    least: int, factor: int, orientation: int
) -> None:
    y, x = np.mgrid[:400, :640]
    smooth = np.stack([x * 0.39, y * 0.63, 90 + 60 * np.sin(x / 40 + y / 30)], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth, "JPEG", quality=95, exif=exif)
    whole = pixels(data)
    expected = whole.reshape(whole.shape[0] // factor, factor, whole.shape[1] // factor, factor, 3).mean((1, 3))
    assert difference(pixels(data, min_side=least), expected.round()) <= 4


def test_only_jpegs_can_be_decoded_at_a_smaller_scale() -> None:
    assert pixels(encoded(coordinates(), "PNG"), min_side=4).shape == (HEIGHT, WIDTH, 3)
    assert pixels(encoded(coordinates(), "JPEG"), min_side=10).shape == (HEIGHT // 4, WIDTH // 4, 3)


def test_a_truncated_jpeg_is_named_at_every_scale() -> None:
    data = encoded(np.tile(coordinates(), (10, 10, 1)), "JPEG")
    assert reason(data[: len(data) // 2], min_side=20) == reason(data[: len(data) // 2]) == "the file is truncated"
