"""The markers of a JPEG file, which divide it into headers and stretches of pixel data."""

from __future__ import annotations

import re
from collections.abc import Iterator

START_OF_SCAN = 0xDA
RESTARTS = range(0xD0, 0xD8)
_END_OF_IMAGE = 0xD9
_MARKER = re.compile(rb"\xff[\xc0-\xef\xfe]")  # 0xff00 and 0xffff are part of the pixels


def walk_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the offset and the code of each marker after the first, up to the end of the first image of the file.

    What follows (the video of a motion photo) is not searched, nor are the contents of headers (thumbnails).

    Args:
        data: The contents of the file.
    """
    marker = _MARKER.search(data, 2)
    while marker is not None:
        code = data[marker.start() + 1]
        yield marker.start(), code
        if code == _END_OF_IMAGE:
            return
        offset = marker.end()
        if code not in RESTARTS:
            offset += int.from_bytes(data[offset : offset + 2], "big")
        marker = _MARKER.search(data, offset)
