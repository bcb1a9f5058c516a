"""What the header of an image file states, without decoding the image.

Whether a file is an image is decided by its contents, never by its name.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLESPERPIXEL, TiffImageFile

from plrc.data.channels import count_bands, read_npy_header, require_channels, require_rgb, starts_as_npy
from plrc.data.image_errors import DecodeError
from plrc.data.image_kinds import HEIC_PACKAGE, START_BYTES, format_of_start, readable_formats
from plrc.data.jpeg_markers import START_OF_SCAN, walk_markers
from plrc.data.orientation import turn_size
from plrc.data.tiff import TiffPage, full_pages, read_tiff_header, require_page
from plrc.errors import MissingPackageError
from plrc.pixels import RGB_CHANNELS
from plrc.text import printable

_MAX_METADATA = 2**23  # bytes before the pixels of a JPEG: Pillow's time grows with their square
_MAX_SCANS = 200  # of a JPEG, which usually has about ten: each costs a pass over all pixels
CUT_MODES = ("RGB", "RGBA", "LA")  # modes in which Pillow cuts a 16-bit PNG to 8 bits
_PAGE_KIND_TAG = 254  # NewSubfileType of TIFF
_REDUCED_OR_MASK = 0b101
_PNG_SIGNATURE_BYTES = 8
_PNG_METADATA = (b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"zTXt")
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")


class Header(NamedTuple):
    """What the header of an image file states.

    Attributes:
        height: Pixels as shown: after the EXIF orientation was applied, as `decode` does.
        width: Pixels as shown.
        mode: Pillow's mode, with ";16" for a color image of more than 8 bits per channel; such as "5 channels of
            uint16" for a TIFF that is none of Pillow's.
        format: One of `image_kinds.readable_formats`, or MPO.
        orientation: EXIF orientation, 1 to 8; from 5 on, height and width are stored the other way round.
        pages: Number of pages of a TIFF or frames of an animation.
        is_deep: Whether it has more than 8 bits per channel.
        unused_channels: Number of channels that are neither gray, color nor transparency.
        channels: Number of channels as they are stored.
        unmarked: The channels of an image that cannot become RGB; see `tiff.TiffPage`.
    """

    height: int
    width: int
    mode: str
    format: str
    orientation: int = 1
    pages: int = 1
    is_deep: bool = False
    unused_channels: int = 0
    channels: int = RGB_CHANNELS
    unmarked: str = ""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the pixels in the file, before they are turned."""
        return turn_size(self.height, self.width, self.orientation)

    def orientation_for(self, height: int, width: int) -> int | None:
        """Return how a mask or id map is turned to lie on the image as shown.

        Args:
            height: Of the mask; only its shape counts, because it may have been scaled.
            width: Of the mask.

        Returns:
            1 for the shape of the image as shown, `orientation` for the shape as stored, None for any other.
        """
        if _same_shape((height, width), (self.height, self.width)):
            return 1
        return self.orientation if _same_shape((height, width), self.stored_size) else None

    def require_channels(self, channels: int) -> None:
        """Raise DecodeError if `decode` would refuse the image because of its channels.

        Args:
            channels: The setting `data.channels`.
        """
        if channels == RGB_CHANNELS:
            require_rgb(self.unmarked)
        else:
            require_channels(self.channels, channels)

    def remarks(self, pages: str, channels: int) -> list[str]:
        """Return what should be known about how such images are read, as the subjects of counted sentences.

        Args:
            pages: The setting `data.pages`.
            channels: The setting `data.channels`.
        """
        remarks: list[str] = []
        if self.is_deep:
            remarks.append("images of more than 8 bits per channel, rescaled to 8 bits (data.rescale_percentiles)")
        if self.pages > 1 and self.format != "TIFF":
            remarks.append("animations, of which the first frame is used")
        elif self.pages > 1 and pages == "first":
            remarks.append("TIFF files of several pages, of which the first is used (data.pages)")
        if self.unused_channels and channels == RGB_CHANNELS:
            remarks.append("TIFF files with channels besides red, green and blue, which are not used (data.channels)")
        return remarks


class OpenedImage(NamedTuple):
    """An image whose header has been parsed, and which is not decoded yet.

    Attributes:
        height: Pixels as shown.
        width: Pixels as shown.
        format: As in `Header`.
        orientation: EXIF orientation, 1 to 8.
        is_deep: Whether it has more than 8 bits per channel.
        pillow: The image; None for a TIFF that Pillow does not know.
        tiff: The page of a TIFF that Pillow does not know or would not read in full; None for all others.
    """

    height: int
    width: int
    format: str
    orientation: int
    is_deep: bool
    pillow: Image.Image | None
    tiff: TiffPage | None

    @property
    def unused_channels(self) -> int:
        """Number of channels of a TIFF that are neither gray, color nor transparency."""
        if self.tiff is not None:
            return self.tiff.unused_channels
        if isinstance(self.pillow, TiffImageFile):
            return _tiff_channels(self.pillow) - len(self.pillow.getbands())
        return 0

    @property
    def channels(self) -> int:
        """Number of channels as they are stored."""
        if self.tiff is not None:
            return self.tiff.channels
        assert self.pillow is not None
        return _tiff_channels(self.pillow) if self.unused_channels else count_bands(self.pillow)


def _same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two (height, width) have the same shape up to rounding."""
    return abs(first[0] * second[1] - first[1] * second[0]) <= max(*first, *second)


def read_header(file: BinaryIO, channels: int = RGB_CHANNELS, page: int = 0) -> Header:
    """Read the header of an open image file, without decoding the image.

    Args:
        file: The file, open at its beginning.
        channels: `data.channels`, by which the shape of an array (.npy) is understood.
        page: Number of the page of a TIFF, from 0.

    Raises:
        DecodeError: The header is damaged or of no known format, the page does not exist, or an array is no image of so
            many channels.
    """
    if starts_as_npy(file):
        require_page(page, 1)
        height, width, dtype = read_npy_header(file, channels)
        mode = f"{channels} channels of {dtype}"
        return Header(height, width, mode, "NPY", is_deep=dtype.itemsize > 1, channels=channels)
    with quiet_pillow():
        opened = open_image(file, page)
        if opened.pillow is not None:
            mode = opened.pillow.mode
            if opened.is_deep and mode in CUT_MODES:
                mode += ";16"
        else:
            assert opened.tiff is not None
            mode = opened.tiff.description
        pages = 1
        if opened.format == "TIFF":
            pages = len(full_pages(file))
        elif opened.format in _ANIMATED:
            pages = _count_frames(opened.pillow)
        return Header(
            opened.height,
            opened.width,
            mode,
            opened.format,
            opened.orientation,
            pages,
            opened.is_deep,
            opened.unused_channels,
            opened.channels,
            opened.tiff.unmarked if opened.tiff is not None else "",
        )


def open_image(file: BinaryIO, page: int = 0) -> OpenedImage:
    """Parse the header of an image file, which is open at its beginning.

    Args:
        file: The file.
        page: Number of the page of a TIFF, from 0.

    Raises:
        DecodeError: The header is damaged or belongs to no known format, or the page does not exist.
    """
    start = file.read(START_BYTES)
    if not start:
        raise DecodeError("the file is empty")
    if start.startswith(b"\xff\xd8"):
        _check_jpeg_metadata(file)
    kind = format_of_start(start)
    image = _open_by_pillow(file, start, kind)
    if kind == "TIFF":
        if image is not None and (page or _is_thumbnail_or_mask(image)):
            image = _seek_page(image, file, page)
        has_unknown_channels = image is not None and image.mode == "L" and _tiff_channels(image) > 1
        if image is None or has_unknown_channels or _exceeds_8_bits(image, start):
            tiff = read_tiff_header(file, page)
            is_deep = tiff.dtype.itemsize > 1
            return OpenedImage(tiff.height, tiff.width, "TIFF", tiff.orientation, is_deep, image, tiff)
    else:
        require_page(page, 1)
    assert image is not None
    orientation = _orientation(image, file)
    height, width = image.height, image.width
    if image.format != "TIFF":  # Pillow turns a TIFF itself
        height, width = turn_size(height, width, orientation)
    return OpenedImage(height, width, str(image.format), orientation, _exceeds_8_bits(image, start), image, None)


def check_pixels(opened: OpenedImage, data: bytes, max_megapixels: float) -> None:
    """Raise DecodeError for an image that has no pixels, too many, or too many passes over them."""
    scans = 0
    if opened.format in ("JPEG", "MPO"):
        scans = sum(code == START_OF_SCAN for _, code in walk_markers(data))
    if scans > _MAX_SCANS:
        raise DecodeError(f"a JPEG of {scans} scans, made to take minutes; at most {_MAX_SCANS} are read")
    check_megapixels(opened.height, opened.width, max_megapixels)


def check_megapixels(height: int, width: int, max_megapixels: float) -> None:
    """Raise DecodeError for an image that has no pixels or too many."""
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        size = f"{width} x {height} = {megapixels:.6g} megapixels"
        raise DecodeError(f"{size} is more than data.max_megapixels = {max_megapixels:g}")
    if megapixels == 0:
        raise DecodeError("the image has no pixels")


def _open_by_pillow(file: BinaryIO, start: bytes, kind: str) -> Image.Image | None:
    """Open an image; None for a TIFF that Pillow does not know."""
    if kind == "HEIF" and kind not in readable_formats():
        raise DecodeError(str(MissingPackageError("HEIC photos", HEIC_PACKAGE)))
    file.seek(0)
    try:
        return Image.open(file, formats=readable_formats())
    except UnidentifiedImageError as error:
        if kind == "TIFF":
            return None
        if kind:
            raise DecodeError(f"a {kind} file whose header is damaged or of a kind that cannot be read") from error
        raise DecodeError(f"not an image that can be read (starts with {start[:8]!r})") from error
    except Exception as error:  # a damaged header can raise anything
        raise DecodeError(f"the header of the image is damaged ({printable(str(error))})") from error


def _seek_page(image: Image.Image, file: BinaryIO, page: int) -> Image.Image | None:
    """Move an open TIFF to one of its `full_pages`; None if Pillow does not know this page.

    Raises DecodeError if the page does not exist.
    """
    pages = full_pages(file)
    require_page(page, len(pages))
    try:
        image.seek(pages[page])
    except Exception:  # also for damaged pages, of which Pillow raises errors of many types; tifffile reports them
        return None
    return image


def _exceeds_8_bits(image: Image.Image, start: bytes) -> bool:
    """Whether an image, whose file begins with `start`, has more than 8 bits per channel."""
    if image.mode == "F" or image.mode.startswith("I"):
        return True
    if isinstance(image, TiffImageFile):
        return bool(max(image.tag_v2.get(BITSPERSAMPLE, (8,))) > 8)
    return image.format == "PNG" and start[12:16] == b"IHDR" and start[24] == 16


def _count_frames(image: Image.Image | None) -> int:
    """The number of frames of an animation; 1 if those after the first are damaged."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow searches all frames, and damaged ones raise errors of many types
        return 1


def _tiff_channels(image: Image.Image) -> int:
    assert isinstance(image, TiffImageFile)
    return int(image.tag_v2.get(SAMPLESPERPIXEL, 1))


def _is_thumbnail_or_mask(image: Image.Image) -> bool:
    """Whether the first page of a TIFF is no picture of its own."""
    assert isinstance(image, TiffImageFile)
    return bool(int(image.tag_v2.get(_PAGE_KIND_TAG, 0)) & _REDUCED_OR_MASK)


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    """The orientation in the EXIF data, 1 to 8; 1 if it is missing or cannot be read."""
    try:
        if isinstance(image, PngImageFile):  # its getexif would decode all pixels, to find EXIF data behind them
            image = _png_metadata(file)
        orientation = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data is no reason to refuse the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _png_metadata(file: BinaryIO) -> Image.Image:
    """A PNG with all metadata of this one, also of that behind its pixels, and without pixels. Keeps the position."""
    position = file.tell()
    file.seek(0)
    content = bytearray(file.read(_PNG_SIGNATURE_BYTES))
    offset = _PNG_SIGNATURE_BYTES
    while True:
        file.seek(offset)
        start = file.read(8)
        length = int.from_bytes(start[:4], "big")
        kind = start[4:]
        if len(start) < 8 or kind == b"IEND":
            break
        size = length + 12  # with its length, its kind and its checksum
        if kind in _PNG_METADATA:
            file.seek(offset)
            content += file.read(size)
        offset += size
    file.seek(position)
    return Image.open(io.BytesIO(content + b"\0\0\0\0IDAT"), formats=["PNG"])


_guard = threading.Lock()
_saved_settings: list[tuple[Any, int | None]] = []  # Pillow's settings before the first user, once per user inside


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Use Pillow without warnings and without its own size limit (ours is checked); safe in many threads at once.

    The warning filters and the limit belong to the process: the first user sets them, the last one restores them.
    """
    with _guard:
        if not _saved_settings:
            catcher = warnings.catch_warnings()
            catcher.__enter__()
            warnings.simplefilter("ignore")
            _saved_settings.append((catcher, Image.MAX_IMAGE_PIXELS))
            Image.MAX_IMAGE_PIXELS = None
        else:
            _saved_settings.append(_saved_settings[0])
    try:
        yield
    finally:
        with _guard:
            catcher, limit = _saved_settings.pop()
            if not _saved_settings:
                catcher.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = limit


def _check_jpeg_metadata(file: BinaryIO) -> None:
    """Refuse a JPEG with more than _MAX_METADATA bytes before its first scan."""
    offset = 2
    while offset < _MAX_METADATA:
        file.seek(offset)
        segment = file.read(4)
        is_marker = len(segment) == 4 and segment[0] == 0xFF
        if not is_marker or segment[1] == 0xDA:  # if anything is wrong, the decoders report it
            return
        offset += 2 + int.from_bytes(segment[2:], "big")
    raise DecodeError(f"a JPEG with more than {_MAX_METADATA / 2**20:.0f} MB of metadata")
