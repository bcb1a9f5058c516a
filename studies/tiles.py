"""Cut a COCO data set into tiles, so that a detector with a small input size sees small objects at a useful size.

    python studies/tiles.py $PLRC_DATA/aquarium TILES/aquarium --size 240

The data set has images/ and annotations/instances_{train,val,test}.json; the tiles have the same layout. Tiles of a
split come from images of this split alone. Tiles without an object are left out. No two images may have the same name
but for folder and ending, because a tile is called after its image.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SPLITS = ("train", "val", "test")
LEAST_VISIBLE = 0.3
"""Share of an object's box that a tile must show; otherwise the object is not annotated in this tile."""

Box = tuple[float, float, float, float]  # left, top, width, height, as in COCO
Tile = tuple[int, int, int, int]  # left, top, right, bottom


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tiles of each split and print their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the data set")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=240, help="side of a tile, pixels of the image")
    options = parser.parse_args(arguments)
    contents = {}
    for split in SPLITS:
        name = f"annotations/instances_{split}.json"
        contents[name] = json.loads((options.source / name).read_text(encoding="utf-8"))
    stems = Counter(Path(entry["file_name"]).stem for content in contents.values() for entry in content["images"])
    repeated = [stem for stem, count in stems.items() if count > 1]
    if repeated:
        parser.error(
            f"several images are called {repeated[0]}, so that their tiles would overwrite each other; rename them"
        )
    (options.out / "images").mkdir(parents=True, exist_ok=True)
    (options.out / "annotations").mkdir(exist_ok=True)
    for name, content in contents.items():
        tiles = cut(content, options.source / "images", options.out / "images", options.size)
        (options.out / name).write_text(json.dumps(tiles), encoding="utf-8")
        counts = f"{len(tiles['images'])} tiles, {len(tiles['annotations'])} boxes"
        print(f"{name}: {len(content['images'])} images, {counts}")


def cut(content: dict[str, Any], source: Path, out: Path, size: int) -> dict[str, Any]:
    """Write the tiles of all images of a COCO file; returns the content of the tiles' COCO file.

    Args:
        content: The content of the COCO file.
        source: Folder of the images.
        out: Folder to write the tiles to.
        size: Side of a tile in pixels.
    """
    annotations_of = defaultdict(list)  # by the id of the image
    for annotation in content["annotations"]:
        annotations_of[annotation["image_id"]].append(annotation)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for entry in content["images"]:
        with Image.open(source / entry["file_name"]) as file:
            image = file.convert("RGB")
        for left, top in itertools.product(starts(image.width, size), starts(image.height, size)):
            right = min(left + size, image.width)
            bottom = min(top + size, image.height)
            tile = (left, top, right, bottom)
            objects = objects_in(tile, annotations_of[entry["id"]])
            if not objects:
                continue
            name = f"{Path(entry['file_name']).stem}_{left}_{top}.jpg"
            image.crop(tile).save(out / name, quality=95)
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": name, "width": right - left, "height": bottom - top})
            for annotation in objects:
                annotations.append(annotation | {"id": len(annotations) + 1, "image_id": image_id})
    return {"images": images, "annotations": annotations, "categories": content["categories"]}


def objects_in(tile: Tile, annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return annotations of the objects that a tile shows: the boxes of their visible parts, without ids."""
    objects = []
    for annotation in annotations:
        box = visible(annotation["bbox"], tile)
        if box is None:
            continue
        _, _, width, height = box
        objects.append(
            {
                "category_id": annotation["category_id"],
                "bbox": list(box),
                "area": width * height,
                "iscrowd": annotation.get("iscrowd", 0),
            }
        )
    return objects


def starts(length: int, size: int) -> list[int]:
    """Return the first pixels of the tiles along a side of the image.

    The last tile ends where the image ends, so it may overlap the one before.
    """
    if length <= size:
        return [0]
    last = length - size
    return [*range(0, last, size), last]


def visible(box: Sequence[float], tile: Tile) -> Box | None:
    """Return the visible part of a box, in the tile's pixels; None if it is less than LEAST_VISIBLE of the box."""
    x, y, width, height = box
    tile_left, tile_top, tile_right, tile_bottom = tile
    left = max(x, tile_left)
    top = max(y, tile_top)
    visible_width = min(x + width, tile_right) - left
    visible_height = min(y + height, tile_bottom) - top
    if visible_width <= 0 or visible_height <= 0:
        return None
    if visible_width * visible_height < LEAST_VISIBLE * width * height:
        return None
    return left - tile_left, top - tile_top, visible_width, visible_height


if __name__ == "__main__":
    main()
