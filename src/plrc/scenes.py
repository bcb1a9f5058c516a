"""Generated detection scenes: the data set that comes with the package, for the demo, the studies and the tests.

A scene is a function of (seed, index). Two to five objects of different size, rotation and color lie on the background
and partly hide each other. The class of an object is its shape and its texture. Two shortcuts are prevented:

- The background is a random place of one of six materials that all scenes share, with random quarter turn, mirroring
  and brightness, so it does not identify the image.
- The two colors of an object come from palettes that all classes share, in random order, so they do not identify its
  class.

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

from plrc.errors import DataError
from plrc.rng import generator

SHAPES = ("disc", "square", "triangle")
TEXTURES = ("striped", "checked", "dotted")
MATERIALS = ("sand", "tiles", "wood", "grass", "marble", "cloth")

Window = tuple[slice, slice]  # rows and columns of a part of an image
Offsets = NDArray[np.float32]  # pixels from the center of an object: x as [1, columns], y as [rows, 1]

_LIGHT = np.array([(244, 236, 216), (247, 206, 70), (142, 202, 230), (246, 168, 150)], dtype=np.float32)
_DARK = np.array([(29, 53, 87), (150, 30, 50), (20, 92, 72), (78, 44, 110)], dtype=np.float32)
_RADIUS = (0.11, 0.27)  # of the circle of a disc's area, as a share of the side
_PERIOD = (0.5, 0.72)  # of the texture, as a share of the radius
_VISIBLE = 0.5  # share of its drawn pixels that every object keeps
_LIGHTING = 0.18  # largest change of brightness from the center to the border
_NOISE = 5.0  # standard deviation, in gray levels
_EXTENT = 2  # sides of a material, in sides of a scene


@dataclass(frozen=True)
class Scene:
    """A picture and its labels.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        masks: int32 [H, W]: 0 on the background, i on the visible pixels of object i (1 to n).
        classes: int64 [n], indices into `scene_names()`.
        boxes: float32 [n, 4], bounds of the visible pixels (x0, y0, x1, y1); x1 and y1 are exclusive.
        material: Index of the background in MATERIALS.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.int32]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    material: int

    @property
    def semantic(self) -> NDArray[np.uint8]:
        """Class map [H, W]: 0 on the background, class + 1 on objects."""
        value_of_object = np.concatenate([[0], self.classes + 1]).astype(np.uint8)
        return value_of_object[self.masks]


def scene_names() -> list[str]:
    """Return the nine names of classes, such as "striped disc": class = texture * 3 + shape."""
    return [f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES]


def render_scene(seed: int, index: int, size: int = 96) -> Scene:
    """Render a scene.

    Args:
        seed: Names an endless data set.
        index: Number of the scene in it.
        size: Side in pixels.

    Returns:
        The scene, a function of the arguments alone.
    """
    rng = generator(seed, "scenes", index=index)
    material = int(rng.integers(len(MATERIALS)))
    image = _background(rng, material, size)
    masks = np.zeros((size, size), dtype=np.int32)
    classes: list[int] = []
    drawn_pixels = [0]  # pixels of each object when it was drawn; entry 0 is the background
    count = int(rng.integers(2, 6))
    shrink = 1.0
    while len(classes) < count:
        class_index = int(rng.integers(len(SHAPES) * len(TEXTURES)))
        texture, shape = divmod(class_index, len(SHAPES))
        window, x, y, radius = _place(rng, size, shrink)
        inside = _shape_mask(SHAPES[shape], x, y, radius, float(rng.uniform(0, 2 * np.pi)))
        in_first_color = _texture_mask(TEXTURES[texture], x, y, radius, rng)
        colors = _draw_colors(rng)
        new_masks = masks[window].copy()
        new_masks[inside] = len(classes) + 1
        if not _keeps_all_visible(masks, window, new_masks, drawn_pixels):
            shrink = max(0.9 * shrink, 0.5)  # there is more room for a smaller object
            continue
        masks[window] = new_masks
        image[window][inside] = np.where(in_first_color[inside][:, None], colors[0], colors[1])
        classes.append(class_index)
        drawn_pixels.append(int(inside.sum()))
    final_image = _add_light_and_noise(rng, image)
    return Scene(final_image, masks, np.array(classes, dtype=np.int64), _boxes(masks, count), material)


def write_scenes(out: str | Path, splits: Mapping[str, int], seed: int = 0, size: int = 96) -> None:
    """Write scenes with their labels, each split in a folder of its own.

    OUT/SPLIT/images/000000.jpg; OUT/SPLIT/annotations.json (COCO: boxes, areas, uncompressed RLE masks, categories 1 to
    9; file names relative to the file); OUT/SPLIT/semantic/000000.png (class maps, see `Scene.semantic`). Splits share
    no scene. The folder appears when everything is written.

    Args:
        out: Folder to create.
        splits: Number of scenes of each split, such as {"train": 800, "test": 200}.
        seed: Names the data set.
        size: Side of the images in pixels.

    Raises:
        DataError: The folder is not empty.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder; name a new one for the scenes")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    first = 0
    try:
        for split, count in splits.items():
            _write_split(partial / split, range(first, first + count), seed, size)
            first += count
    except BaseException:  # KeyboardInterrupt, too
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(out)


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Encode a mask [H, W] as COCO's uncompressed run lengths.

    Returns:
        {"counts", "size"}: runs down the columns, of zeros and ones in turn, starting with zeros; and [H, W].
    """
    flat = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [mask.size]])
    return {"counts": np.diff(starts).tolist(), "size": list(mask.shape)}


def _write_split(out: Path, indices: range, seed: int, size: int) -> None:
    (out / "images").mkdir(parents=True)
    (out / "semantic").mkdir()
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, index in enumerate(indices):
        scene = render_scene(seed, index, size)
        name = f"{number:06d}"
        Image.fromarray(scene.image).save(out / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(scene.semantic).save(out / "semantic" / f"{name}.png")
        images.append({"id": number + 1, "file_name": f"images/{name}.jpg", "width": size, "height": size})
        for i, class_index in enumerate(scene.classes.tolist()):
            mask = scene.masks == i + 1
            x0, y0, x1, y1 = scene.boxes[i].tolist()
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number + 1,
                    "category_id": class_index + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "segmentation": encode_rle(mask),
                    "iscrowd": 0,
                }
            )
    categories = []
    for i, name in enumerate(scene_names()):
        categories.append({"id": i + 1, "name": name, "supercategory": name.split()[1]})
    table = {"images": images, "annotations": objects, "categories": categories}
    (out / "annotations.json").write_text(json.dumps(table), encoding="utf-8")


def _background(rng: np.random.Generator, material: int, size: int) -> NDArray[np.float32]:
    """A part of a material, [H, W, 3]: random place, quarter turn, mirroring and brightness."""
    y, x = rng.integers((_EXTENT - 1) * size + 1, size=2)
    part = np.rot90(_materials(size)[material][y : y + size, x : x + size], int(rng.integers(4)))
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return np.multiply(part, np.float32(rng.uniform(0.92, 1.08)), order="C", dtype=np.float32)


def _place(rng: np.random.Generator, size: int, shrink: float) -> tuple[Window, Offsets, Offsets, float]:
    """A window that holds an object of a random radius, the offsets x and y of its pixels, and the radius in pixels."""
    radius = size * max(float(rng.uniform(*_RADIUS)) * shrink, _RADIUS[0])
    center_x, center_y = size * rng.uniform(0.08, 0.92, size=2)
    reach = 1.6 * radius
    rows = slice(max(int(center_y - reach), 0), min(int(center_y + reach) + 1, size))
    columns = slice(max(int(center_x - reach), 0), min(int(center_x + reach) + 1, size))
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - center_y))[:, None]
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - center_x))[None, :]
    return (rows, columns), x, y, radius


def _rotate(x: Offsets, y: Offsets, angle: float) -> tuple[Offsets, Offsets]:
    cosine = np.float32(np.cos(angle))
    sine = np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _shape_mask(shape: str, x: Offsets, y: Offsets, radius: float, angle: float) -> NDArray[np.bool_]:
    """The pixels inside an object. All shapes of a radius have the disc's area, so size does not identify the shape."""
    u, v = _rotate(x / np.float32(radius), y / np.float32(radius), angle)
    if shape == "disc":
        return np.asarray(u * u + v * v < 1.0)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) < np.sqrt(np.pi) / 2)
    # An equilateral triangle of area pi; the limit is the radius of its inscribed circle.
    distance = np.maximum(np.abs(u) * np.float32(np.sqrt(3) / 2) + v / 2, -v)
    return np.asarray(distance < np.sqrt(np.pi / (3 * np.sqrt(3))))


def _texture_mask(texture: str, x: Offsets, y: Offsets, radius: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The pixels in the first color: half of them for every texture."""
    period = radius * float(rng.uniform(*_PERIOD))
    u, v = _rotate(x / np.float32(period), y / np.float32(period), float(rng.uniform(0, 2 * np.pi)))
    shift = rng.uniform(0, 1, size=2).astype(np.float32)
    u = (u + shift[0]) % 1
    v = (v + shift[1]) % 1
    if texture == "striped":
        return np.asarray(u < 0.5)
    if texture == "checked":
        return np.asarray((u < 0.5) == (v < 0.5))
    return np.asarray((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.5 / np.pi)


def _draw_colors(rng: np.random.Generator) -> NDArray[np.float32]:
    """A light and a dark color in random order, [2, 3]."""
    light = rng.integers(len(_LIGHT))
    dark = rng.integers(len(_DARK))
    colors = rng.permutation(np.stack([_LIGHT[light], _DARK[dark]]))
    return colors * np.float32(rng.uniform(0.9, 1.05))


def _keeps_all_visible(
    masks: NDArray[np.int32], window: Window, new_masks: NDArray[np.int32], drawn_pixels: list[int]
) -> bool:
    """Whether enough of every object stays visible if the masks in the window are replaced."""
    objects = len(drawn_pixels)
    visible = np.bincount(masks.ravel(), minlength=objects)
    visible = visible - np.bincount(masks[window].ravel(), minlength=objects)
    visible = visible + np.bincount(new_masks.ravel(), minlength=objects)[:objects]
    return bool((visible[1:] >= _VISIBLE * np.array(drawn_pixels[1:])).all())


def _add_light_and_noise(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Brightness that falls off in a random direction, and noise."""
    angle = float(rng.uniform(0, 2 * np.pi))
    slope = float(rng.uniform(0, _LIGHTING))
    ramp = np.linspace(-1, 1, len(image), dtype=np.float32) * np.float32(slope)
    light = 1 + np.float32(np.cos(angle)) * ramp[None, :] + np.float32(np.sin(angle)) * ramp[:, None]
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(_NOISE)
    return np.clip(image * light[..., None] + noise, 0, 255).astype(np.uint8)


def _boxes(masks: NDArray[np.int32], count: int) -> NDArray[np.float32]:
    """Bounds of the visible pixels of objects 1 to `count`, [n, 4]."""
    boxes = np.empty((count, 4), dtype=np.float32)
    for i in range(count):
        mask = masks == i + 1
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        boxes[i] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return boxes


@lru_cache(maxsize=2)
def _materials(size: int) -> list[NDArray[np.uint8]]:
    """The six materials for scenes of a size, each [2 H, 2 W, 3]; the same for every seed."""
    side = _EXTENT * size
    u = (np.arange(side) + 0.5) / side
    x = u[None, :]
    y = u[:, None]
    fine = _noise(u, 24, 48, 1)
    coarse = _noise(u, 3, 8, 2)
    grain = _noise(u, 8, 20, 3)
    bricks = np.minimum(_distance_to_integer(16 * y), _distance_to_integer(8 * x + 0.5 * np.floor(16 * y)))
    threads = np.sin(2 * np.pi * 32 * x) * np.sin(2 * np.pi * 32 * y)
    return [
        _mix((176, 156, 122), (206, 190, 156), 0.5 + 0.22 * fine + 0.10 * coarse),
        _mix((88, 82, 80), (152, 120, 104), np.clip(bricks * 6 - 0.5, 0, 1) * (0.85 + 0.1 * grain)),
        _mix((116, 78, 48), (174, 126, 82), 0.5 + 0.5 * np.sin(2 * np.pi * 12 * y + 1.6 * coarse) + 0.12 * fine),
        _mix((62, 88, 48), (128, 152, 82), 0.5 + 0.2 * fine + 0.2 * grain),
        _mix((120, 126, 136), (196, 198, 202), np.abs(np.sin(2 * coarse + 0.5 * grain))),
        _mix((98, 88, 112), (146, 132, 152), 0.5 + 0.4 * threads + 0.1 * coarse),
    ]


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], fraction: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colors between `low` (fraction 0) and `high` (fraction 1)."""
    low_color = np.array(low)
    high_color = np.array(high)
    return np.asarray(low_color + np.clip(fraction, 0, 1)[..., None] * (high_color - low_color), dtype=np.uint8)


def _distance_to_integer(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(t - np.round(t))


def _noise(u: NDArray[np.float64], low: int, high: int, key: int) -> NDArray[np.float64]:
    """Noise [side, side] of about unit variance: a sum of waves in all directions, `low` to `high` periods per side."""
    rng = generator(0, "scenes", epoch=1, index=key)
    angle = rng.uniform(0, np.pi, size=64)
    length = rng.uniform(low, high, size=64)
    columns = np.exp(2j * np.pi * np.outer(length * np.cos(angle), u))
    rows = np.exp(2j * np.pi * (np.outer(u, length * np.sin(angle)) + rng.uniform(size=64)))
    return np.asarray((rows @ columns).real * np.sqrt(2 / 64))
