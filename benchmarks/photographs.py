"""Generated JPEGs that cost a decoder as much as photographs of their size and quality.

No user files are needed, so figures of several machines can be compared.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from plrc.scenes import render_scene

DISTINCT = 64  # different images per folder; decoding the same file twice costs as much as decoding two


def photograph(index: int, height: int = 480, width: int = 640) -> bytes:
    """Render scene `index` as a JPEG of quality 90 with 4:2:0 color (85 kB at 640 x 480)."""
    buffer = io.BytesIO()
    Image.fromarray(render_scene(0, index, max(height, width)).image[:height, :width]).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def write_photographs(folder: Path, count: int, height: int = 480, width: int = 640) -> None:
    """Write `count` JPEGs to a new folder; those after the first DISTINCT are hard links to these."""
    folder.mkdir(parents=True)
    for i in range(count):
        path = folder / f"{i:06d}.jpg"
        if i < DISTINCT:
            path.write_bytes(photograph(i, height, width))
        else:
            os.link(folder / f"{i % DISTINCT:06d}.jpg", path)
