"""TIFF pages that Pillow cannot read, or only in part: more than 8 bits per channel, or other than 1 to 4 channels.

Shapes: H x W pixels of a page after its orientation tag was applied, C channels.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from plrc.data.image_errors import DecodeError
from plrc.data.orientation import turn, turn_size
from plrc.text import printable

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretations that can be read

_ORIENTATION_TAG = 274
_ALPHA = (1, 2)  # kinds of extra channels that are a transparency
_ZLIB = (8, 32946)  # compressions; the others without imagecodecs cannot inflate much
_REFUSED = {34925: "LZMA"}  # inflates without a limit
_AXES = ("YX", "YXS", "SYX")

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it raises


class TiffPage(NamedTuple):
    """What the header of a TIFF page states.

    Attributes:
        height: Pixels as shown.
        width: Pixels as shown.
        channels: Number of channels, alpha included.
        dtype: Type of the numbers.
        photometric: Its photometric interpretation, such as RGB.
        alpha: Position of the channel with the transparency; -1 if there is none.
        orientation: Orientation tag, 1 to 8.
        no_data: The value that GDAL's tag declares as no data; None without the tag.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    photometric: int
    alpha: int
    orientation: int
    no_data: float | None

    @property
    def is_color(self) -> bool:
        """Whether the first three channels are red, green and blue."""
        return self.photometric == RGB and self.channels >= 3

    @property
    def unmarked(self) -> str:
        """The description of channels that are neither gray nor marked as colors; empty if the image can become RGB."""
        is_gray = self.channels - (self.alpha >= 0) == 1
        return "" if is_gray or self.is_color else self.description

    @property
    def unused_channels(self) -> int:
        """Number of channels that are neither color nor transparency, if the image has colors."""
        return self.channels - 3 - (self.alpha >= 0) if self.is_color else 0

    @property
    def description(self) -> str:
        """The channels and their type, such as "5 channels of uint16"."""
        return f"{self.channels} channels of {self.dtype.name}"


def read_tiff_header(file: BinaryIO, page: int = 0) -> TiffPage:
    """Read what the header of a TIFF page states. Raises DecodeError, also if the page does not exist.

    Args:
        file: The open file.
        page: Number of the page, from 0; see `full_pages`.
    """
    with _opened(file, page) as tiff_page:
        return _describe(tiff_page)


def full_pages(file: BinaryIO) -> list[int]:
    """Return which pages of a TIFF are pictures of their own, neither thumbnails nor masks. Raises DecodeError."""
    file.seek(0)
    with _damage_named(), tifffile.TiffFile(file) as tiff:
        return _full_pages(tiff)


def require_page(page: int, count: int) -> None:
    """Raise DecodeError if a file does not have a page.

    Args:
        page: Number of the page, from 0.
        count: Number of pages in the file.
    """
    if not 0 <= page < count:
        pages = "1 page" if count == 1 else f"{count} pages"
        raise DecodeError(f"page {page + 1} does not exist, because the file has {pages}")


def read_tiff_page(data: bytes, page: int = 0) -> NDArray[Any]:
    """Read a page of a TIFF file.

    Args:
        data: The contents of the file.
        page: Number of the page, from 0.

    Returns:
        [H, W, C] in the type of the file and its byte order of this machine, as shown: turned as the orientation tag
        says, planes joined, "white is zero" inverted. The size is not limited: check the header first.

    Raises:
        DecodeError: The page does not exist, is damaged, or is of a kind that cannot be read.
    """
    with _opened(io.BytesIO(data), page) as tiff_page:
        header = _describe(tiff_page)
        _check_compression(tiff_page, data)
        try:
            values = tiff_page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _read_gray_by_pillow(tiff_page, data)
        if tiff_page.axes == "SYX":
            values = np.moveaxis(values, 0, -1)
        elif tiff_page.axes == "YX":
            values = values[:, :, None]
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if header.photometric == WHITE_IS_ZERO:
            values = _invert(values, int(tiff_page.bitspersample))
        return turn(values, header.orientation)


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn whatever damaged data raises into DecodeError."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DecodeError(f"damaged or unusual TIFF data ({printable(lines[0])})") from error


@contextmanager
def _opened(file: BinaryIO, page: int) -> Iterator[tifffile.TiffPage]:
    """Open a page of `full_pages`."""
    file.seek(0)
    with _damage_named(), tifffile.TiffFile(file) as tiff:
        number = 0
        if page or not _is_full(tiff.pages[0]):
            pages = _full_pages(tiff)
            require_page(page, len(pages))
            number = pages[page]
        tiff_page = tiff.pages[number]
        if not isinstance(tiff_page, tifffile.TiffPage):
            raise DecodeError("a TIFF page without a header of its own")
        yield tiff_page


def _full_pages(tiff: tifffile.TiffFile) -> list[int]:
    numbers: list[int] = []
    offsets: set[int] = set()
    for number, page in enumerate(tiff.pages):
        if page.offset in offsets:  # in a damaged file, an earlier page can follow: without end
            break
        offsets.add(page.offset)
        if _is_full(page):
            numbers.append(number)
    return numbers or [0]


def _is_full(page: Any) -> bool:
    """Whether a page is a picture of its own."""
    return not (isinstance(page, tifffile.TiffPage) and (page.is_reduced or page.is_mask))


def _describe(page: tifffile.TiffPage) -> TiffPage:
    if page.axes not in _AXES or page.dtype is None or page.dtype.kind not in "uif":
        raise DecodeError(f"a TIFF of shape {page.shape} ({page.axes}) and type {page.dtype}, which cannot be read")
    channels = int(page.samplesperpixel)
    photometric = int(page.photometric)
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        name = getattr(page.photometric, "name", photometric)
        raise DecodeError(f"a TIFF of {channels} channels of {page.dtype.name} in {name} colors; convert it to RGB")
    extra = [int(kind) for kind in page.extrasamples]
    first_extra = channels - len(extra)
    alpha = next((first_extra + i for i, kind in enumerate(extra) if kind in _ALPHA), -1)
    tag = page.tags.get(_ORIENTATION_TAG)
    orientation = int(tag.value) if tag is not None else 1
    height, width = turn_size(int(page.imagelength), int(page.imagewidth), orientation)
    no_data = None
    if page.tags.get("GDAL_NODATA") is not None:
        no_data = float(page.nodata)
    return TiffPage(height, width, channels, page.dtype, photometric, alpha, orientation, no_data)


def _check_compression(page: tifffile.TiffPage, data: bytes) -> None:
    """Refuse a compression that could fill the memory: a small file can inflate to any size."""
    compression = int(page.compression)
    if compression in _REFUSED:
        raise DecodeError(f"a TIFF compressed with {_REFUSED[compression]}; save it with another compression")
    if compression not in _ZLIB:
        return
    assert page.dtype is not None  # `_describe` has checked it
    limit = int(np.prod(page.chunks)) * page.dtype.itemsize + 1
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        stream = zlib.decompressobj()
        stream.decompress(data[offset : offset + size], limit)
        if stream.unconsumed_tail:
            raise DecodeError("a TIFF whose compressed data is larger than its header says")


def _read_gray_by_pillow(page: tifffile.TiffPage, data: bytes) -> NDArray[Any]:
    """Read a page whose compression tifffile knows with the package imagecodecs only; Pillow turns it."""
    if page.samplesperpixel > 1:
        name = getattr(page.compression, "name", page.compression)
        raise DecodeError(
            f"a TIFF of {page.samplesperpixel} channels of {page.dtype} compressed with {name}: pip install "
            "imagecodecs, or save it without compression"
        )
    image = TiffImageFile(io.BytesIO(data))
    image.seek(page.index)
    values = np.asarray(image)[:, :, None]
    return _invert(values, int(page.bitspersample)) if page.photometric == WHITE_IS_ZERO else values


def _invert(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Turn "white is zero" into "black is zero"."""
    if values.dtype.kind == "u":
        return np.asarray(values.dtype.type(2**bits - 1) - values)
    return np.asarray(values.max() - values)
