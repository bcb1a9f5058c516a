"""Which files are images: the formats that are read, their endings, and their first bytes."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

EXTENSIONS_OF_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb"),
    "PSD": (".psd",),
    "TGA": (".tga",),  # the last one: it has no signature
}
"""Format in Pillow's terms -> endings of its files."""

HEIC_EXTENSIONS = (".heic", ".heif", ".hif")
HEIC_PACKAGE = "pillow-heif"
HAS_HEIC = find_spec("pillow_heif") is not None
IMAGE_EXTENSIONS = (
    *(ending for endings in EXTENSIONS_OF_FORMAT.values() for ending in endings),
    *(HEIC_EXTENSIONS if HAS_HEIC else ()),
)
"""Endings of the files that are taken for images, in lower case."""

VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".mts")
RAW_EXTENSIONS = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
"""Files of cameras. Many begin like a TIFF, whose first page is only a thumbnail."""
OTHER_IMAGE_EXTENSIONS = (
    *(".ico", ".icns", ".cur", ".svg", ".eps", ".ps", ".pdf", ".ai", ".wmf", ".emf", ".dds", ".jxl", ".xcf", ".exr"),
    *(".hdr", ".fits", ".fit", ".dcm", ".nii", ".mha", ".czi", ".svs", ".ndpi"),
)
"""Kinds of images that are not read."""
NO_IMAGE_EXTENSIONS = (
    *(".txt", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".md", ".rst", ".html", ".htm", ".log"),
    *(".toml", ".cfg", ".ini", ".lst", ".names", ".cache", ".db", ".py", ".ipynb", ".sh", ".bat", ".m", ".mat"),
    *(".npy", ".npz", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".parquet", ".tar", ".zip", ".gz", ".tgz", ".bz2"),
    *(".7z", ".rar", ".doc", ".docx", ".xls", ".xlsx", ".wav", ".mp3", ".aae", ".xmp", ".url", ".lnk", ".pgw"),
    *(".tfw", ".jgw", ".prj", ".shp", ".shx", ".dbf", ".cpg", ".geojson", ".kml", ".gpx", ".ovr"),
)
"""Files that are certainly no images."""
NO_IMAGE_NAMES = ("license", "readme", "makefile", "dockerfile", "copying", "notice", "md5sums", "sha256sums")

START_BYTES = 64
"""Bytes of a file that tell its format."""
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftyphev", "HEIF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (0, b"qoif", "QOI"),
    (0, b"8BPS", "PSD"),
    *((0, b"P" + digit + space, "PPM") for digit in (b"1", b"2", b"3", b"4", b"5", b"6") for space in (b"\n", b" ")),
)
_SHARED_BRANDS = (b"mif1", b"msf1")  # AVIF and HEIC files can begin with them; the brands that follow decide
_AVIF_BRANDS = (b"avif", b"avis")


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats that can be read, in Pillow's terms; HEIF if its package is installed."""
    if not HAS_HEIC:
        return tuple(EXTENSIONS_OF_FORMAT)
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*EXTENSIONS_OF_FORMAT, "HEIF")


def file_extension(name: str) -> str:
    """Return the extension of a file in lower case, with its dot; "without an ending" if it has none."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def format_of_start(start: bytes) -> str:
    """Return the format that the first bytes of a file tell, in Pillow's terms; empty if they tell none."""
    for offset, signature, name in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return name
    if start[4:8] == b"ftyp" and start[8:12] in _SHARED_BRANDS:
        end = min(int.from_bytes(start[:4], "big"), len(start))
        has_avif = any(start[offset : offset + 4] in _AVIF_BRANDS for offset in range(16, end, 4))
        return "AVIF" if has_avif else "HEIF"
    return ""


def format_of_file(path: str) -> str:
    """Return the format that the first bytes of a file tell; empty if they tell none or cannot be read."""
    try:
        with open(path, "rb") as file:
            return format_of_start(file.read(START_BYTES))
    except OSError:
        return ""
