"""`plrc predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.cli.options import about, positional, read_options
from plrc.cli.output import progress


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    run: Path = positional("RUN")
    """Folder of a run of plrc transfer detection or instances, or its model.safetensors."""
    images: str
    """Folder, glob, .txt list, COCO .json, Pascal VOC folder, or tar shards. With a COCO file, ids are those of it."""
    out: Path
    """.json file for the predictions in COCO's results format. NAME.images.json names the images and classes."""
    png: Path | None = None
    """Folder for a picture of each image with its predictions."""
    score_threshold: float | None = None
    """Smallest score of a prediction. Not set: all predictions in the file, 0.5 in pictures."""
    backbone: str = ""
    """A run with a backbone of your own: its function once more, as package.module:function or file.py:function. A run
    on the backbone of a detector's folder that has moved: transformers:FOLDER."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def run(arguments: Sequence[str]) -> int:
    """Find objects in images with a fine-tuned detector, and write them in COCO's results format.

    examples:
      plrc predict transfer/first --images photos/ --out boxes.json
      plrc predict transfer/first --images photos/ --out boxes.json --png pictures/
      plrc predict transfer/first --images val/annotations.json --out val.json
      plrc predict transfer/first --images 'a/*.jpg' --out a.json --score-threshold 0.3
    """
    options = read_options("predict", PredictOptions, arguments, about(run))
    from plrc.transfer.predict import predict

    with progress("images") as on_progress:
        report = predict(
            options.run,
            options.images,
            options.out,
            png=options.png,
            score_threshold=options.score_threshold,
            device=options.device,
            backbone=options.backbone,
            on_progress=on_progress,
        )
    unreadable = f"{len(report.unreadable)} unreadable"
    print(f"{report.predictions} predictions for {report.images} images, {unreadable}: {report.out}")
    print(f"the images and categories of its ids: {report.images_file}")
    if options.png:
        print(f"{report.pictures} pictures: {options.png}")
    return 0
