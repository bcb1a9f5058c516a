"""JPEG files that are damaged inside: decoders make what is missing gray, and report nothing."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from plrc.data.image_header import quiet_pillow
from plrc.data.jpeg_markers import RESTARTS, START_OF_SCAN, walk_markers

_TOLERATED = 0.005  # share of a picture that may be missing: some encoders leave out the last bits
_FILLER = b"\x5a\xa5" * 2048
_BLOCK = 8  # pixels per side of what is coded together
_GRAY = 128  # value in all channels where data are missing


def find_missing_pixels(data: bytes, image: Tensor) -> str:
    """Check whether data of the pixels are missing inside a JPEG file that can be decoded.

    Decoders make such places gray. If there are any, the file is decoded as it is and with further data at the end of
    each stretch of pixel data. A decoder does not use them if nothing is missing, so that both pictures are equal. What
    only the later scans of a progressive file lack is not noticed.

    Args:
        data: The contents of the file.
        image: What it is decoded to, uint8 [C, H, W].

    Returns:
        The reason why the file is damaged; empty if nothing is missing.
    """
    is_gray = (image[:, ::_BLOCK, ::_BLOCK] == _GRAY).all(dim=0)
    if float(is_gray.float().mean()) <= _TOLERATED:
        return ""
    picture = _decode_reduced(data)
    filled = _decode_reduced(_with_filler(data))
    if picture is None or filled is None or picture.shape != filled.shape:
        return ""
    is_undefined = (picture != filled).any(axis=-1)
    return "damaged JPEG data (pixels are missing)" if is_undefined.mean() > _TOLERATED else ""


def _decode_reduced(data: bytes) -> np.ndarray | None:
    """The picture at 1/8 of its size, [h, w, C]; None if it cannot be decoded."""
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.draft(None, (image.width // _BLOCK, image.height // _BLOCK))
            pixels = np.asarray(image)
    except Exception:  # the decoders raise almost every type there is on damaged data
        return None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _with_filler(data: bytes) -> bytes:
    """The file with further data before each marker that ends a stretch of pixel data."""
    pieces: list[bytes] = []
    copied = 0
    in_pixels = False
    for offset, code in walk_markers(data):
        if in_pixels:
            pieces += [data[copied:offset], _FILLER]
            copied = offset
        if code not in RESTARTS:
            in_pixels = code == START_OF_SCAN
    return b"".join([*pieces, data[copied:]])
