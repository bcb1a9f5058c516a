"""Make benchmarks/gpu/data for `run.sh aquarium`: a COCO data set with smaller images, and the weights of a teacher.

    python benchmarks/gpu/prepare.py --data aquarium --weights tf_efficientnet_lite0_imagenet.safetensors

The data set has images/ and annotations/instances_{train,val,test}.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SPLITS = ("train", "val", "test")
LARGEST_BYTES = 48 * 2**20
"""What the folder may have, so that it fits into 64 MiB together with the checkout and the wheels."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--weights", type=Path, required=True, help="weights of timm's tf_efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write")
    parser.add_argument("--side", type=int, default=320, help="longer side of the images, pixels")
    options = parser.parse_args(arguments)
    shrink(options.data, options.out / "images", options.side)
    shutil.copyfile(options.weights, options.out / "teacher.safetensors")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB")
    if size > LARGEST_BYTES:
        parser.error(f"that is more than {LARGEST_BYTES / 2**20:.0f} MiB; write a smaller --side")


def shrink(source: Path, out: Path, side: int) -> None:
    """Write a copy of a COCO data set whose images have a longer side of at most `side` pixels."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    for split in SPLITS:
        name = f"annotations/instances_{split}.json"
        content = json.loads((source / name).read_text(encoding="utf-8"))
        scales = {}
        for image in content["images"]:
            scales[image["id"]] = _shrink_image(image, source / "images", out / "images", side)
        for annotation in content["annotations"]:
            scale = scales[annotation["image_id"]]
            annotation["bbox"] = [round(value * scale, 2) for value in annotation["bbox"]]
            annotation["area"] *= scale**2
            annotation.pop("segmentation", None)
        (out / name).write_text(json.dumps(content), encoding="utf-8")


def _shrink_image(entry: dict[str, Any], source: Path, out: Path, side: int) -> float:
    """Write a smaller image, and its size into its entry; returns the scale."""
    with Image.open(source / entry["file_name"]) as image:
        pixels = image.convert("RGB")
    scale = min(1.0, side / max(pixels.size))
    width = round(pixels.width * scale)
    height = round(pixels.height * scale)
    pixels.resize((width, height), Image.Resampling.LANCZOS).save(out / entry["file_name"], quality=90)
    entry["width"] = width
    entry["height"] = height
    return scale


if __name__ == "__main__":
    main()
