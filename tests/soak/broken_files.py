"""Image files that are wrong in every way we know of, from generated scenes and a seed.

`broken(seed, index)` gives the bytes of one; `write_folder` a folder of them, with things that are no files at all.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plrc.scenes import render_scene

SOURCES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {}), ("JPEG", "L", {}),
    ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "I;16", {}), ("PNG", "1", {}),
    ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("WEBP", "RGB", {"save_all": True}),
    ("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}), ("TIFF", "I;16", {}), ("TIFF", "F", {}),
    ("BMP", "RGB", {}), ("BMP", "P", {}), ("GIF", "P", {}), ("GIF", "P", {"save_all": True}),
)  # fmt: skip
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}
ODD_NAMES = (
    b"\xff\xfe.jpg", b"new\nline.jpg", b"\x1b[31mred\x1b[0m.jpg", b"<script>alert(1)<.jpg", b"-rf.jpg",
    b"$(touch pwned).jpg", b"%s%n{0}.jpg", "\u202egnp.jpg".encode(), b"[bold]a[.jpg", b"a" * 240 + b".jpg",
)  # fmt: skip
HEALTHY_EVERY = 4  # one image in so many is sound
SIDE = 64


@lru_cache(maxsize=256)
def sound(number: int, source: int) -> bytes:
    """A sound image file: scene `number` as SOURCES[source]."""
    kind, mode, options = SOURCES[source]
    image: Image.Image = Image.fromarray(render_scene(7, number, SIDE).image)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 13)
    else:
        image = image.convert(mode)
    extra = {"append_images": [image.rotate(90), image.rotate(180)]} if "save_all" in options else {}
    file = BytesIO()
    image.save(file, kind, **options, **extra)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, rows: bytes, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose IDAT inflates to `rows`, whatever its header says; `extra` chunks stand before it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, tags: list[tuple[int, int, int, int]], body: bytes = b"\0" * 64) -> bytes:
    """A little-endian TIFF of one directory: 8-bit gray, one strip, and further (tag, type, count, value)."""
    base = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    base += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(body))]
    entries = sorted({tag[0]: tag for tag in base + tags}.values())
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    at = 8 + len(body)
    return b"II*\0" + struct.pack("<I", at) + body + struct.pack("<H", len(entries)) + directory + struct.pack("<I", at)


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG of `width` x `height` with `count` scans of nothing: each costs a pass over all blocks."""
    file = BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG", progressive=True)
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    refine = b"\xff\xda\x00\x08\x01\x01\x00\x01\x01\x00" + b"\0" * 4  # component 1, one coefficient
    return bytes(data[:-2]) + refine * count + b"\xff\xd9"


def exif_bomb(segments: int) -> bytes:
    """A JPEG with `segments` full EXIF segments, the first of which claims four billion values and points at itself."""
    directory = struct.pack("<HHHIII", 1, 0x0112, 3, 0xFFFFFFFF, 8, 8)
    first = b"Exif\0\0II*\0\x08\0\0\0" + directory
    data = sound(0, 0)
    parts = [first.ljust(65533, b"A")] + [b"Exif\0\0".ljust(65533, b"B")] * (segments - 1)
    return data[:2] + b"".join(b"\xff\xe1\xff\xff" + part for part in parts) + data[2:]


@lru_cache(maxsize=1)
def bombs() -> dict[str, bytes]:
    """Small files with much behind them."""
    text = zlib.compress(b"\0" * 100_000_000, 9)
    row = b"\0" * (SIDE * 3 + 1)
    return {
        "png-60000x60000": png(60000, 60000, b"\0" * 7501 * 60000, depth=1, color=0),
        "png-no-data-behind-60000x60000": png(60000, 60000, b"", depth=16, color=6),
        "png-4-billion-wide": png(2**31 - 1, 2**31 - 1, b"", depth=16, color=6),
        "png-text": png(SIDE, SIDE, row * SIDE, extra=chunk(b"zTXt", b"Comment\0\0" + text)),
        "png-many-texts": png(SIDE, SIDE, row * SIDE, extra=chunk(b"zTXt", b"C\0\0" + text[:900] + b"\0" * 9) * 5000),
        "png-international-text": png(SIDE, SIDE, row * SIDE, extra=chunk(b"iTXt", b"C\0\x01\0\0\0" + text)),
        "png-profile": png(SIDE, SIDE, row * SIDE, extra=chunk(b"iCCP", b"p\0\0" + text)),
        "png-exif": png(SIDE, SIDE, row * SIDE, extra=chunk(b"eXIf", b"II*\0\x08\0\0\0" + b"\xff" * 20_000_000)),
        "png-more-data-than-pixels": png(SIDE, SIDE, b"\0" * 200_000_000),
        "png-49-megapixels": png(7000, 7000, b"\0" * (7000 * 2 + 1) * 7000, depth=16, color=0),
        "tiff-60000x60000": tiff(60000, 60000, []),
        "tiff-4-billion-wide": tiff(2**32 - 1, 2**32 - 1, []),
        "tiff-13000x13000-no-data-behind": tiff(13000, 13000, []),
        "tiff-huge-counts": tiff(SIDE, SIDE, [(700, 1, 0xFFFFFFF0, 8), (33432, 2, 0x7FFFFFFF, 8)]),
        "tiff-many-samples": tiff(SIDE, SIDE, [(277, 3, 1, 65535)]),
        "tiff-directory-loop": tiff(SIDE, SIDE, [(34665, 4, 1, 72), (330, 4, 1, 72)], b"\x80" * SIDE * SIDE),
        "gif-65535x65535": b"GIF89a\xff\xff\xff\xff\0\0\0" + sound(0, 20)[13:],
        "bmp-2-billion-wide": sound(0, 18)[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + sound(0, 18)[26:],
        "bmp-negative": sound(0, 18)[:18] + struct.pack("<ii", -5, -(2**31)) + sound(0, 18)[26:],
        "jpeg-scans": scans(8000, 8000, 20_000),
        "jpeg-exif": exif_bomb(1),
        "jpeg-exif-16-mb": exif_bomb(250),
        "jpeg-65535x65535": scans(65535, 65535, 1),
    }


OTHERS: dict[str, bytes] = {
    "html": b"<!DOCTYPE html><html><body>404 not found</body></html>", "empty": b"", "one-byte": b"\xff",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n", "zip": b"PK\x03\x04" + b"\0" * 200, "gzip": b"\x1f\x8b\x08" + b"\0" * 99,
    "elf": b"\x7fELF\x02\x01\x01" + b"\0" * 200, "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "psd": b"8BPS\0\x01" + b"\0" * 200, "mp4": b"\0\0\0\x20ftypisom" + b"\0" * 200, "heic": b"\0\0\0\x18ftypheic",
    "ppm": b"P6 4 4 255 " + b"x" * 48, "ico": b"\0\0\x01\0\x01\0\x10\x10" + b"\0" * 99, "text": b"hello\n" * 50,
    "pickle": pickle.dumps({"a": [1, 2, 3]}), "zeros": b"\0" * 5000, "ones": b"\xff" * 5000,
    "fits": b"SIMPLE  =                    T".ljust(2880), "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\n",
}  # fmt: skip


def _flip(rng: np.random.Generator, data: bytes, reach: int) -> bytes:
    damaged = bytearray(data)
    for position in rng.integers(0, min(reach, len(data)), int(rng.integers(1, 12))):
        damaged[position] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _wrong_head(rng: np.random.Generator, data: bytes) -> bytes:
    other = sound(int(rng.integers(20)), int(rng.integers(len(SOURCES))))
    size = int(rng.integers(2, 64))
    return other[:size] + data[size:]


def _numbers(rng: np.random.Generator, data: bytes) -> bytes:
    """Some of the header's numbers become extreme ones."""
    damaged = bytearray(data)
    for position in rng.integers(4, min(300, len(data) - 4), int(rng.integers(1, 4))):
        extreme = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xff\xff")
        damaged[position : position + 4] = extreme[rng.integers(len(extreme))]
    return bytes(damaged)


def _block(rng: np.random.Generator, data: bytes) -> bytes:
    """A stretch is lost, zeroed, doubled or random, as on a damaged disk."""
    start, end = sorted(int(at) for at in rng.integers(0, len(data), 2))
    middle = (b"", b"\0" * (end - start), data[start:end] * 2, rng.bytes(end - start))[rng.integers(4)]
    return data[:start] + middle + data[end:]


FAULTS: dict[str, Callable[[np.random.Generator, bytes], bytes]] = {
    "flipped-bits": lambda rng, data: _flip(rng, data, len(data)),
    "flipped-head": lambda rng, data: _flip(rng, data, 120),
    "truncated": lambda rng, data: data[: rng.integers(1, len(data))],
    "wrong-head": _wrong_head,
    "extreme-numbers": _numbers,
    "lost-block": _block,
    "random-behind-head": lambda rng, data: data[: rng.integers(4, 80)] + rng.bytes(2000),
}


def broken(seed: int, index: int) -> tuple[str, str, bytes]:
    """(fault, ending, bytes) of broken file `index` of the endless set `seed`."""
    rng = np.random.default_rng((seed, index))
    if index % 10 == 0:
        fault, data = list(OTHERS.items())[index // 10 % len(OTHERS)]
        return fault, list(ENDINGS.values())[rng.integers(len(ENDINGS))], data
    fault = list(FAULTS)[index % len(FAULTS)]
    source = int(rng.integers(len(SOURCES)))
    return fault, ENDINGS[SOURCES[source][0]], FAULTS[fault](rng, sound(int(rng.integers(20)), source))


def write_folder(folder: Path, files: int, seed: int, special: bool = True) -> None:
    """`files` broken files; sound ones between them, one for every HEALTHY_EVERY; with `special` also bombs, odd names,
    and things that are no files. A file's name says what is wrong with it."""
    folder.mkdir(parents=True)
    named = [(fault, ending, data) for fault, ending, data in (broken(seed, i) for i in range(files))]
    if special:
        few = [(f"bomb-{name}", name.partition("-")[0].replace("jpeg", "jpg"), data) for name, data in bombs().items()]
        named[: len(few)] = few
    for i, (fault, ending, data) in enumerate(named):
        (folder / f"{i:05d}_{fault}.{ending}").write_bytes(data)
        if i % HEALTHY_EVERY == 0:
            (folder / f"{i:05d}_sound.jpg").write_bytes(sound(i, 0))
    if special:
        for i, name in enumerate(ODD_NAMES):
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:
                file.write(sound(i, 0) if i % 2 else sound(i, 0)[:200])
        no_files(folder)


def no_files(folder: Path) -> None:
    """Folders, links, pipes and devices that are named like images, and a sparse file of 20 GB."""
    (folder / "folder.jpg").mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        place = os.getcwd()
        os.chdir(folder)  # the address of a socket is short
        listener.bind("socket.jpg")
        os.chdir(place)
    with open(folder / "sparse.jpg", "wb") as file:
        file.write(sound(0, 0))
        file.truncate(20 * 10**9)
    (folder / "forbidden.jpg").write_bytes(sound(0, 0))
    (folder / "forbidden.jpg").chmod(0)
