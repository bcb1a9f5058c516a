"""Use a fine-tuned detector: predictions for a source of images, in COCO's results format, and pictures of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from plrc.data.coco_categories import read_categories
from plrc.data.coco_names import find_images as find_coco_images
from plrc.data.coco_names import image_folders, split_of_file
from plrc.data.coco_values import read_id
from plrc.data.image_errors import DecodeError
from plrc.data.layouts import read_coco_json, relative_name
from plrc.data.reading import ReadingReport
from plrc.data.sources import detect_layout, find_images
from plrc.errors import ConfigError, DataError
from plrc.files import write_atomic, write_json, write_text
from plrc.machine import plrc_version
from plrc.progress import OnProgress, ignore_progress
from plrc.text import some
from plrc.transfer.detector_file import load_detector
from plrc.transfer.metrics import Prediction
from plrc.transfer.pictures import draw_prediction

logger = logging.getLogger(__name__)

SHOWN_SCORE = 0.5  # smallest score in a picture, unless the user names another one


@dataclass(frozen=True)
class PredictionReport:
    """What `predict` has written.

    Attributes:
        out: The predictions: a list of {"image_id", "category_id", "bbox", "score"} and, for masks, "segmentation".
        images_file: The COCO file that names the images and categories of these ids.
        images: Number of images that were read.
        predictions: Number of predictions.
        unreadable: (name, reason) of the images that could not be read.
        pictures: Number of pictures.
    """

    out: Path
    images_file: Path
    images: int
    predictions: int
    unreadable: tuple[tuple[str, str], ...]
    pictures: int


def predict(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    png: str | Path | None = None,
    score_threshold: float | None = None,
    device: str = "auto",
    backbone: str = "",
    on_progress: OnProgress = ignore_progress,
) -> PredictionReport:
    """Find the objects in images with the detector of a transfer run.

    `out` gets COCO's results format: a list with an entry for each prediction, its box as x, y, width and height in
    pixels of the image as shown. Next to it, NAME.images.json is a COCO file without annotations, whose `images` and
    `categories` name the files and classes of the ids; the unreadable images are in its `info`. Ids count from 1, in
    the order of the names of the images and of the classes. If `images` is a COCO file, they are those of that file.

    Args:
        run: Folder of a run of `plrc transfer detection` or `instances`, or its model.safetensors.
        images: Folder, glob, .txt list, COCO .json, Pascal VOC folder, or tar shards.
        out: The .json file to write.
        png: Folder for a picture of each image with its predictions.
        score_threshold: Smallest score of a prediction. None: all that the detector gives (at most 100 for an image) in
            `out`, and 0.5 in pictures.
        device: auto, cpu, cuda, cuda:N or mps.
        backbone: The function that builds a backbone of your own; see `load_detector`.
        on_progress: Called after each image.

    Returns:
        The files, and how many images, predictions and unreadable images there are.

    Raises:
        PlrcError: The run, the images or the files cannot be used, or no image can be read.

    Examples:
        >>> import plrc
        >>> report = plrc.predict("transfer/first", "photos/", "boxes.json")  # doctest: +SKIP
        >>> report.images, report.predictions, report.unreadable  # doctest: +SKIP
        (63, 481, ())
    """
    out = Path(out)
    _check_places(str(images), out, png, score_threshold)
    detector = load_detector(run, device, backbone)
    data = replace(detector.config.data.decoding, source=str(images))
    table = read_coco_json(data.source) if detect_layout(data) == "coco" else None
    listed = find_images(data, table)
    for line in listed.notes:
        logger.info(line)
    image_ids: dict[str, int | str] = {name: number for number, name in enumerate(listed.names, start=1)}
    category_ids: list[int | str] = list(range(1, len(detector.classes) + 1))
    if table is not None:
        image_ids |= _image_ids_of(table, data.source, set(listed.names))
        category_ids = _category_ids_of(table, data.source, detector.classes) or category_ids
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    unreadable: list[tuple[str, str]] = []
    pictures = 0
    for position, name in enumerate(listed.names):
        try:
            image = listed.decode(position, data)
        except DecodeError as error:
            unreadable.append((name, error.reason))
        else:
            prediction = detector.predict(image)
            height, width = image.shape[1:]
            entries.append({"id": image_ids[name], "file_name": name, "width": width, "height": height})
            rows += _result_rows(above(prediction, score_threshold or 0.0), image_ids[name], category_ids)
            if png is not None:
                shown = above(prediction, SHOWN_SCORE if score_threshold is None else score_threshold)
                _save_picture(Path(png), name, image, shown, detector.classes)
                pictures += 1
        on_progress(position + 1, len(listed))
    if not entries:
        name, reason = unreadable[0]
        raise DataError(f"none of the {len(unreadable)} images of {images} can be read; the first, {name}: {reason}")
    if unreadable:
        logger.warning(f"unreadable images, left out: {len(unreadable)} ({some(map(': '.join, unreadable), 3)})")
    images_file = _images_file(out)
    write_text(out, _one_row_a_line(rows))
    info = {
        "description": f"images and categories of the predictions in {out.name}",
        "model": str(run),
        "source": data.source,
        "score_threshold": score_threshold or 0.0,
        "plrc_version": plrc_version(),
        "unreadable": [{"file_name": name, "reason": reason} for name, reason in unreadable],
    }
    categories = [{"id": key, "name": name} for key, name in zip(category_ids, detector.classes, strict=True)]
    write_json(images_file, {"info": info, "images": entries, "annotations": [], "categories": categories})
    return PredictionReport(out, images_file, len(entries), len(rows), tuple(unreadable), pictures)


def above(prediction: Prediction, threshold: float) -> Prediction:
    """Return the predictions whose score is at least `threshold`."""
    kept = np.flatnonzero(prediction.scores >= threshold)
    masks: tuple[dict[str, Any], ...] = ()
    if prediction.masks:
        masks = tuple(prediction.masks[i] for i in kept)
    return Prediction(prediction.boxes[kept], prediction.scores[kept], prediction.classes[kept], masks)


def _images_file(out: Path) -> Path:
    """The file of images and categories that is written next to the predictions."""
    return out.with_suffix(".images.json")


def _check_places(images: str, out: Path, png: str | Path | None, threshold: float | None) -> None:
    """Raise ConfigError, before anything is computed, for files that cannot be written and scores that cannot be."""
    if out.is_dir() or out.suffix != ".json":
        raise ConfigError(f"--out is {out}; name a file that ends in .json, such as boxes.json")
    for path in (out, _images_file(out)):
        if path.is_file() and Path(images).is_file() and path.samefile(images):
            raise ConfigError(f"--out {out} would overwrite {images}, which lists the images; name another file")
    if png is not None and Path(png).exists() and not Path(png).is_dir():
        raise ConfigError(f"--png is {png}, a file; name a folder for the pictures")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--score-threshold must be from 0 to 1, got {threshold:g}")


def _image_ids_of(table: Mapping[str, Any], source: str, names: Collection[str]) -> dict[str, int | str]:
    """Name of an image -> its id in a COCO file. Raises DataError if an image has none."""
    entries = [
        entry for entry in table["images"] if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    ]
    folders = image_folders(source, split_of_file(source))
    places = find_coco_images([entry["file_name"] for entry in entries], folders)
    ids: dict[str, int | str] = {}
    for entry in entries:
        name = relative_name(places.root, places.paths[entry["file_name"]])
        key = read_id(entry.get("id"))
        if key is not None:
            ids.setdefault(name, key)
    without = sorted(set(names).difference(ids))
    if without:
        raise DataError(f"{source} lists {some(without, 3)} without an id; give each image one")
    return ids


def _category_ids_of(table: Mapping[str, Any], source: str, classes: Sequence[str]) -> list[int | str]:
    """The id of the category with the name of each class; empty if the file does not have all of them."""
    if not table.get("categories"):
        return []
    categories = read_categories(source, table, ReadingReport())
    id_of: dict[str, int | str] = {}
    for key in categories:
        id_of.setdefault(categories[key], key)
    missing = [name for name in classes if name not in id_of]
    if missing:
        logger.warning(f"{source} has no category {some(missing, 3)}, so category ids are the run's own, from 1")
        return []
    return [id_of[name] for name in classes]


def _result_rows(
    prediction: Prediction, image_id: int | str, category_ids: Sequence[int | str]
) -> list[dict[str, Any]]:
    """COCO's results for an image, the most confident first."""
    rows = []
    corners = prediction.boxes.astype(np.float64)
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
    for i in np.argsort(-prediction.scores, kind="stable"):
        row: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[prediction.classes[i]],
            "bbox": boxes[i],
            "score": float(prediction.scores[i]),
        }
        if prediction.masks:
            row["segmentation"] = _with_text(prediction.masks[i])
        rows.append(row)
    return rows


def _with_text(run_lengths: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths as JSON can hold them."""
    return {"size": list(run_lengths["size"]), "counts": run_lengths["counts"].decode()}


def _one_row_a_line(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "[]\n"
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def _save_picture(folder: Path, name: str, image: Tensor, prediction: Prediction, classes: Sequence[str]) -> None:
    """Write FOLDER/NAME.png, where the name of an image outside of the source loses what leads out of the folder."""
    parts = [part for part in Path(name).parts if part not in ("..", os.sep)]
    picture = draw_prediction(image, prediction, classes)
    path = folder.joinpath(*parts)
    write_atomic(path.with_name(f"{path.name}.png"), partial(picture.save, format="PNG"))
