"""Generated detection scenes: the data set that comes with the package, for the demo, the studies and the tests.

Layer 1; NumPy, and Pillow to write files. A scene is a function of (seed, index). Two to five objects of varied size,
rotation and color lie on, and partly hide, each other; a class is a shape AND a texture. What could be learned instead
of objects is kept out: the background is one of six materials that all scenes share, seen at a random place, quarter
turn and brightness, so it does not tell which image it is; both colors of an object are drawn from palettes that all
classes share, in random order, so they do not tell its class.

Shapes: H = W = size, n objects, K = 9 classes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plrc.errors import PlrcError
from plrc.rng import generator

SHAPES = ("disc", "square", "triangle")
TEXTURES = ("striped", "checked", "dotted")
MATERIALS = ("sand", "tiles", "wood", "grass", "marble", "cloth")

_LIGHT = np.array([(244, 236, 216), (247, 206, 70), (142, 202, 230), (246, 168, 150)], dtype=np.float32)
_DARK = np.array([(29, 53, 87), (150, 30, 50), (20, 92, 72), (78, 44, 110)], dtype=np.float32)
_RADIUS = (0.11, 0.27)  # of the circle of a disc's area, as a share of the side
_PERIOD = (0.5, 0.72)  # of the texture, as a share of the radius
_VISIBLE = 0.5  # share of its drawn pixels that every object keeps
_LIGHTING = 0.18  # largest brightness change from the centre to the border
_NOISE = 5.0  # standard deviation, in grey levels
_EXTENT = 2  # sides of a material, in sides of a scene


@dataclass(frozen=True)
class Scene:
    """One picture and its labels.

    image: uint8 [H, W, 3] RGB. masks: int32 [H, W], 0 background, i the visible pixels of object i (1 to n).
    classes: int64 [n], indices into `scene_names()`. boxes: float32 [n, 4], the visible part in pixels (x0, y0, x1, y1)
    with x1 and y1 exclusive. material: index into MATERIALS.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.int32]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    material: int

    @property
    def semantic(self) -> NDArray[np.uint8]:
        """Class map [H, W]: 0 background, class + 1 elsewhere."""
        return np.concatenate([[0], self.classes + 1]).astype(np.uint8)[self.masks]


def scene_names() -> list[str]:
    """The nine class names, such as "striped disc": class = texture * 3 + shape."""
    return [f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES]


def render_scene(seed: int, index: int, size: int = 96) -> Scene:
    """Scene `index` of the endless data set `seed`, size x size pixels (about 2 ms at 96 on one core)."""
    rng = generator(seed, "scenes", index=index)
    material = int(rng.integers(len(MATERIALS)))
    image = _background(rng, material, size)
    masks = np.zeros((size, size), dtype=np.int32)
    classes: list[int] = []
    drawn: list[int] = [0]  # pixels of each object when it was drawn; entry 0 is the background
    count, shrink = int(rng.integers(2, 6)), 1.0
    while len(classes) < count:
        kind = int(rng.integers(len(SHAPES) * len(TEXTURES)))
        window, x, y, radius = _place(rng, size, shrink)
        inside = _shape(kind % len(SHAPES), x, y, radius, float(rng.uniform(0, 2 * np.pi)))
        texture = _texture(kind // len(SHAPES), x, y, radius, rng)
        colors = _colours(rng)
        after = masks[window].copy()
        after[inside] = len(classes) + 1
        if not _keeps_all_visible(masks, window, after, drawn):
            shrink = max(0.9 * shrink, 0.5)  # a smaller one finds a place
            continue
        masks[window] = after
        image[window][inside] = np.where(texture[inside][:, None], colors[0], colors[1])
        classes.append(kind)
        drawn.append(int(inside.sum()))
    return Scene(_develop(rng, image), masks, np.array(classes, dtype=np.int64), _boxes(masks, count), material)


def write_scenes(out: str | Path, splits: Mapping[str, int], seed: int = 0, size: int = 96) -> None:
    """Write scenes with labels, one self-contained folder a split, e.g. splits = {"train": 800, "test": 200}.

    OUT/SPLIT/images/000000.jpg, OUT/SPLIT/annotations.json (COCO: boxes, areas, uncompressed RLE masks, categories 1 to
    9; file names relative to the json) and OUT/SPLIT/semantic/000000.png (class maps, see `Scene.semantic`). Splits
    share no scene: the index runs on from one to the next. OUT gets its name when all is written. PlrcError if it holds
    anything.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PlrcError(f"{out} is not an empty folder; name a new one to write the scenes into")
    partial, first = out.with_name(f".{out.name}.partial"), 0
    shutil.rmtree(partial, ignore_errors=True)
    for split, count in splits.items():
        _write_split(partial / split, range(first, first + count), seed, size)
        first += count
    partial.rename(out)


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask [H, W]: down the columns, starting with the run of zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [mask.size]])
    return {"counts": np.diff(starts).tolist(), "size": list(mask.shape)}


def _write_split(out: Path, indices: range, seed: int, size: int) -> None:
    (out / "images").mkdir(parents=True)
    (out / "semantic").mkdir()
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, index in enumerate(indices):
        scene, name = render_scene(seed, index, size), f"{number:06d}"
        Image.fromarray(scene.image).save(out / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(scene.semantic).save(out / "semantic" / f"{name}.png")
        images.append({"id": number + 1, "file_name": f"images/{name}.jpg", "width": size, "height": size})
        for i, (kind, (x0, y0, x1, y1)) in enumerate(zip(scene.classes.tolist(), scene.boxes.tolist(), strict=True)):
            mask = scene.masks == i + 1
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number + 1,
                    "category_id": kind + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "segmentation": encode_rle(mask),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name, "supercategory": name.split()[1]} for i, name in enumerate(scene_names())]
    table = {"images": images, "annotations": objects, "categories": categories}
    (out / "annotations.json").write_text(json.dumps(table), encoding="utf-8")


def _background(rng: np.random.Generator, material: int, size: int) -> NDArray[np.float32]:
    """A piece of a shared material [H, W, 3]: random place, quarter turn, mirror and brightness."""
    y, x = rng.integers((_EXTENT - 1) * size + 1, size=2)
    piece = np.rot90(_materials(size)[material][y : y + size, x : x + size], int(rng.integers(4)))
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    return np.multiply(piece, np.float32(rng.uniform(0.92, 1.08)), order="C", dtype=np.float32)


def _place(
    rng: np.random.Generator, size: int, shrink: float
) -> tuple[tuple[slice, slice], NDArray[np.float32], NDArray[np.float32], float]:
    """A radius in pixels, a window that holds any object of it, and the window's pixel centers from the middle."""
    radius = size * max(float(rng.uniform(*_RADIUS)) * shrink, _RADIUS[0])
    cx, cy = size * rng.uniform(0.08, 0.92, size=2)
    reach = 1.6 * radius
    rows = slice(max(int(cy - reach), 0), min(int(cy + reach) + 1, size))
    columns = slice(max(int(cx - reach), 0), min(int(cx + reach) + 1, size))
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - cy))[:, None]
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - cx))[None, :]
    return (rows, columns), x, y, radius


def _turn(
    x: NDArray[np.float32], y: NDArray[np.float32], angle: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def _shape(
    shape: int, x: NDArray[np.float32], y: NDArray[np.float32], radius: float, angle: float
) -> NDArray[np.bool_]:
    """Which pixels lie inside; all shapes of one radius have the area of the disc, so size does not tell the shape."""
    u, v = _turn(x / np.float32(radius), y / np.float32(radius), angle)
    if SHAPES[shape] == "disc":
        distance, limit = u * u + v * v, 1.0
    elif SHAPES[shape] == "square":
        distance, limit = np.maximum(np.abs(u), np.abs(v)), np.sqrt(np.pi) / 2
    else:  # an equilateral triangle of area pi; the limit is the radius of its inscribed circle
        distance = np.maximum(np.abs(u) * np.float32(np.sqrt(3) / 2) + v / 2, -v)
        limit = np.sqrt(np.pi / (3 * np.sqrt(3)))
    return np.asarray(distance < limit)


def _texture(
    texture: int, x: NDArray[np.float32], y: NDArray[np.float32], radius: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which pixels have the first color: half of them for every texture."""
    period = radius * float(rng.uniform(*_PERIOD))
    u, v = _turn(x / np.float32(period), y / np.float32(period), float(rng.uniform(0, 2 * np.pi)))
    shift = rng.uniform(0, 1, size=2).astype(np.float32)
    u, v = (u + shift[0]) % 1, (v + shift[1]) % 1
    if TEXTURES[texture] == "striped":
        return np.asarray(u < 0.5)
    if TEXTURES[texture] == "checked":
        return np.asarray((u < 0.5) == (v < 0.5))
    return np.asarray((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.5 / np.pi)


def _colours(rng: np.random.Generator) -> NDArray[np.float32]:
    """A light and a dark color in random order [2, 3]."""
    light, dark = rng.integers(len(_LIGHT)), rng.integers(len(_DARK))
    return rng.permutation(np.stack([_LIGHT[light], _DARK[dark]])) * np.float32(rng.uniform(0.9, 1.05))


def _keeps_all_visible(
    masks: NDArray[np.int32], window: tuple[slice, slice], after: NDArray[np.int32], drawn: list[int]
) -> bool:
    """Whether every object drawn so far keeps its share of visible pixels when the window changes."""
    total = np.bincount(masks.ravel(), minlength=len(drawn))
    left = total - np.bincount(masks[window].ravel(), minlength=len(drawn))
    left = left + np.bincount(after.ravel(), minlength=len(drawn))[: len(drawn)]
    return bool((left[1:] >= _VISIBLE * np.array(drawn[1:])).all())


def _develop(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Light that falls off in a random direction, and noise."""
    size, angle, slope = len(image), float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, _LIGHTING))
    ramp = np.linspace(-1, 1, size, dtype=np.float32) * np.float32(slope)
    light = 1 + np.float32(np.cos(angle)) * ramp[None, :] + np.float32(np.sin(angle)) * ramp[:, None]
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(_NOISE)
    return np.clip(image * light[..., None] + noise, 0, 255).astype(np.uint8)


def _boxes(masks: NDArray[np.int32], count: int) -> NDArray[np.float32]:
    found = []
    for i in range(1, count + 1):
        mask = masks == i
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(found, dtype=np.float32)


@lru_cache(maxsize=2)
def _materials(size: int) -> list[NDArray[np.uint8]]:
    """The six materials for scenes of this size, each [2 H, 2 W, 3]; the same for every seed."""
    side = _EXTENT * size
    u = (np.arange(side) + 0.5) / side
    x, y = u[None, :], u[:, None]
    fine, coarse, grain = _noise(u, 24, 48, 1), _noise(u, 3, 8, 2), _noise(u, 8, 20, 3)
    bricks = np.minimum(_ridge(16 * y), _ridge(8 * x + 0.5 * np.floor(16 * y)))
    threads = np.sin(2 * np.pi * 32 * x) * np.sin(2 * np.pi * 32 * y)
    recipes = (
        ((176, 156, 122), (206, 190, 156), 0.5 + 0.22 * fine + 0.10 * coarse),
        ((88, 82, 80), (152, 120, 104), np.clip(bricks * 6 - 0.5, 0, 1) * (0.85 + 0.1 * grain)),
        ((116, 78, 48), (174, 126, 82), 0.5 + 0.5 * np.sin(2 * np.pi * 12 * y + 1.6 * coarse) + 0.12 * fine),
        ((62, 88, 48), (128, 152, 82), 0.5 + 0.2 * fine + 0.2 * grain),
        ((120, 126, 136), (196, 198, 202), np.abs(np.sin(2 * coarse + 0.5 * grain))),
        ((98, 88, 112), (146, 132, 152), 0.5 + 0.4 * threads + 0.1 * coarse),
    )
    return [_mix(*recipe) for recipe in recipes]


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], share: NDArray[np.float64]) -> NDArray[np.uint8]:
    a, b = np.array(low), np.array(high)
    return np.asarray(a + np.clip(share, 0, 1)[..., None] * (b - a), dtype=np.uint8)


def _ridge(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the nearest whole number."""
    return np.abs(t - np.round(t))


def _noise(u: NDArray[np.float64], low: int, high: int, key: int) -> NDArray[np.float64]:
    """Noise [side, side] of about unit variance: a sum of waves in all directions, low to high periods a side."""
    rng = generator(0, "scenes", epoch=1, index=key)
    angle, length = rng.uniform(0, np.pi, size=64), rng.uniform(low, high, size=64)
    columns = np.exp(2j * np.pi * np.outer(length * np.cos(angle), u))
    rows = np.exp(2j * np.pi * (np.outer(u, length * np.sin(angle)) + rng.uniform(size=64)))
    return np.asarray((rows @ columns).real * np.sqrt(2 / 64))
