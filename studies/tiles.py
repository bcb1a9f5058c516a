"""Cut a COCO data set into tiles, so that a detector of few pixels sees small objects at a useful size.

    python studies/tiles.py $PLRC_DATA/aquarium TILES/aquarium --size 240

The data set has images/ and annotations/instances_{train,val,test}.json; the tiles have the same layout. Tiles of a
split come from images of this split alone. Tiles without an object are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SPLITS = ("train", "val", "test")
LEAST_VISIBLE = 0.3
"""Share of an object's box that a tile must show; a smaller piece is no object of this tile."""

Box = tuple[float, float, float, float]  # left, top, width, height
Tile = tuple[int, int, int, int]  # left, top, right, bottom


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tiles of each split and print their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the data set")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=240, help="side of a tile, pixels of the image")
    options = parser.parse_args(arguments)
    (options.out / "images").mkdir(parents=True, exist_ok=True)
    (options.out / "annotations").mkdir(exist_ok=True)
    for split in SPLITS:
        name = f"annotations/instances_{split}.json"
        content = json.loads((options.source / name).read_text(encoding="utf-8"))
        tiles = cut(content, options.source / "images", options.out / "images", options.size)
        (options.out / name).write_text(json.dumps(tiles), encoding="utf-8")
        counts = f"{len(tiles['images'])} tiles, {len(tiles['annotations'])} boxes"
        print(f"{split}: {len(content['images'])} images, {counts}")


def cut(content: dict[str, Any], source: Path, out: Path, size: int) -> dict[str, Any]:
    """Write the tiles of all images of a COCO file; returns the content of the tiles' COCO file."""
    boxes = defaultdict(list)
    for annotation in content["annotations"]:
        boxes[annotation["image_id"]].append(annotation)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for entry in content["images"]:
        with Image.open(source / entry["file_name"]) as file:
            image = file.convert("RGB")
        for left, top in itertools.product(starts(image.width, size), starts(image.height, size)):
            tile = (left, top, min(left + size, image.width), min(top + size, image.height))
            objects = objects_in(tile, boxes[entry["id"]])
            if not objects:
                continue
            name = f"{Path(entry['file_name']).stem}_{left}_{top}.jpg"
            image.crop(tile).save(out / name, quality=95)
            number = len(images) + 1
            images.append({"id": number, "file_name": name, "width": tile[2] - left, "height": tile[3] - top})
            for shown in objects:
                annotations.append(shown | {"id": len(annotations) + 1, "image_id": number})
    return {"images": images, "annotations": annotations, "categories": content["categories"]}


def objects_in(tile: Tile, annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Annotations of the objects that a tile shows, with their visible parts as boxes; without ids."""
    objects = []
    for annotation in annotations:
        box = visible(annotation["bbox"], tile)
        if box is not None:
            crowd = annotation.get("iscrowd", 0)
            category = annotation["category_id"]
            objects.append({"category_id": category, "bbox": list(box), "area": box[2] * box[3], "iscrowd": crowd})
    return objects


def starts(length: int, size: int) -> list[int]:
    """First pixels of the tiles along one side; the last tile ends with the image, so it may overlap the one before."""
    if length <= size:
        return [0]
    return sorted({*range(0, length - size, size), length - size})


def visible(box: Sequence[float], tile: Tile) -> Box | None:
    """The part of a COCO box in a tile, in the tile's pixels; None below LEAST_VISIBLE of its area."""
    x, y, width, height = box
    left, top = max(x, tile[0]), max(y, tile[1])
    right, bottom = min(x + width, tile[2]), min(y + height, tile[3])
    if right <= left or bottom <= top or (right - left) * (bottom - top) < LEAST_VISIBLE * width * height:
        return None
    return left - tile[0], top - tile[1], right - left, bottom - top


if __name__ == "__main__":
    main()
