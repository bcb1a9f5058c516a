"""Files of semantic label maps: the value of each pixel, and how many pixels have each value.

A value is an id (a gray value, a palette index), or a color as the number R * 65536 + G * 256 + B.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from plrc.data.id_maps import require_pixels
from plrc.data.image_header import quiet_pillow
from plrc.errors import DataError

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I")
"""Pillow's modes that a label map may have."""
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF", "HEIF")
MAX_VALUES = 4096
"""Largest number of values in a label map: a photo has more."""
MAX_ID = 2**16 - 1
GRAY = 0x010101
"""A gray value times this number is its color."""

Kind = Literal["bits", "gray", "palette", "color"]


@dataclass(frozen=True)
class MapValues:
    """The values in one label map.

    Attributes:
        kind: bits (values 0 and 1), gray (ids; also an RGB file without any color), palette (indices), or color.
        pixels: Value -> number of pixels.
        palette: Palette index -> its color, for the indices that occur.
    """

    kind: Kind
    pixels: dict[int, int]
    palette: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MapEncoding:
    """How the files of one source are read.

    Attributes:
        in_color: Values are colors; otherwise ids.
        bit: The id of a set bit.
    """

    in_color: bool = False
    bit: int = 255

    def pixels(self, content: MapValues) -> dict[int, int]:
        """Return value -> number of pixels of a file, as `read` gives the values."""
        if content.kind == "bits":
            set_bit = 255 * GRAY if self.in_color else self.bit
            return {value * set_bit: count for value, count in content.pixels.items()}
        if not self.in_color or content.kind == "color":
            return content.pixels
        pixels: dict[int, int] = {}
        for value, count in content.pixels.items():
            color = content.palette.get(value, value * GRAY)
            pixels[color] = pixels.get(color, 0) + count
        return pixels

    def read(self, path: str) -> NDArray[Any]:
        """Read the value of each pixel, [H, W], in the type of the file or a larger one.

        Raises:
            DataError: The file cannot be read.
        """
        with _opened(path) as image:
            if self.in_color:
                if image.mode.startswith("I"):
                    return np.asarray(image, dtype=np.int64) * GRAY
                red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int64), 2, 0)
                return np.asarray(red * 65536 + green * 256 + blue)
            if image.mode == "1":
                return np.asarray(image, dtype=np.uint8) * np.uint8(self.bit)
            return _first_channel(image)


def check_map_format(path: Any, file_format: str, mode: str, modes: tuple[str, ...] = MODES) -> None:
    """Raise DataError for a file that cannot hold exact labels, or whose pixels are none.

    Args:
        path: The file.
        file_format: Pillow's name of its format.
        mode: Pillow's name of its kind of pixels.
        modes: The kinds that are allowed.
    """
    if file_format in LOSSY_FORMATS:
        raise DataError(
            f"the label map {path} is a {file_format} file, which does not keep ids exactly; write it as PNG"
        )
    if mode not in modes:
        raise DataError(
            f"the label map {path} contains {mode} pixels, not ids; write label maps as gray or palette PNG files"
        )


def count_values(paths: Iterable[str]) -> dict[str, MapValues]:
    """Count the values of label maps.

    Args:
        paths: The files; each is read once.

    Returns:
        Path -> its values.

    Raises:
        DataError: A file cannot be read or is not a label map.
    """
    return {path: _count_file(path) for path in dict.fromkeys(paths)}


def _count_file(path: str) -> MapValues:
    with _opened(path) as image:
        if image.mode == "1":
            zeros, *ones = image.histogram()
            return MapValues("bits", _occurring([(0, zeros), (1, sum(ones))]))
        if image.mode == "P":
            pixels = _occurring(enumerate(image.histogram()))
            colors = _palette_colors(image)
            return MapValues("palette", pixels, {index: colors.get(index, 0) for index in pixels})
        if image.mode in ("RGB", "RGBA"):
            return _count_colors(path, image.convert("RGB"))
        if image.mode in ("L", "LA"):
            return MapValues("gray", _occurring(enumerate(image.histogram()[:256])))  # of the first channel
        values, counts = np.unique(_first_channel(image), return_counts=True)
        if values[0] < 0 or values[-1] > MAX_ID or len(values) > MAX_VALUES:
            raise DataError(
                f"the label map {path} has {len(values)} values from {values[0]} to {values[-1]}; ids are whole "
                f"numbers from 0 to {MAX_ID}, at most {MAX_VALUES} of them"
            )
        return MapValues("gray", dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _count_colors(path: str, image: Image.Image) -> MapValues:
    colors: Any = image.getcolors(MAX_VALUES)
    if colors is None:
        raise DataError(
            f"the label map {path} has more than {MAX_VALUES} colors, as photos and files that were saved with loss or "
            "scaled have; write one exact color, or one gray value, for each class"
        )
    if all(red == green == blue for _, (red, green, blue) in colors):
        return MapValues("gray", {red: count for count, (red, _, _) in colors})
    return MapValues("color", {red * 65536 + green * 256 + blue: count for count, (red, green, blue) in colors})


def _palette_colors(image: Image.Image) -> dict[int, int]:
    numbers = image.convert("P").getpalette("RGB") or []
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=False)
    return {index: red * 65536 + green * 256 + blue for index, (red, green, blue) in enumerate(triples)}


def _first_channel(image: Image.Image) -> NDArray[Any]:
    pixels = np.asarray(image)
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def _occurring(pixels: Iterable[tuple[int, int]]) -> dict[int, int]:
    return {value: count for value, count in pixels if count}


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """A decoded label map of an allowed mode, turned as EXIF says. Raises DataError."""
    try:
        with quiet_pillow(), Image.open(path) as image:
            check_map_format(path, str(image.format), image.mode)
            require_pixels(image.height, image.width)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders raise errors of many types for damaged files
        raise DataError(f"the label map {path} cannot be read ({error}); fix or remove it") from error
