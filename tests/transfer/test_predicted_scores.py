"""pycocotools, with the user's own COCO file as truth, gives the file of `plrc predict` the scores of the run."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from plrc.cli import main
from plrc.scenes import write_scenes
from plrc.transfer.finetune import transfer
from plrc.transfer.presets import protocol

SIDE = 64
SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
LEARN = {
    "data.train": "train",
    "data.val": "none",
    "data.test": "test",
    "input.train_size": (float(SIDE), float(SIDE)),
    "input.test_size": float(SIDE),
    "input.max_size": 96,
    "input.flip_prob": 0.0,
    "model.width": 64,
    "model.hidden": 64,
    "optim.batch_size": 3,
    "optim.weight_decay": 0.0,
    "optim.warmup_steps": 10,
    "optim.lr_milestones": (0.8, 0.95),
    "run.log_every_steps": 20,
    "run.threads": 1,
    "run.device": "cpu",
    "evaluations": 0,
}
OF_A_TRANSFORMER = {"model.queries": 16, "model.decoder_layers": 2, "optim.lr": 1e-3, "optim.backbone_lr_factor": 1.0}


def write_photos(out: Path, boxes_alone: bool) -> Path:
    """Three scenes as a user's file has them: ids with gaps in another order, a class without objects, a crowd.

    Without masks, one image is stretched, so that resizing is not the same for both of its sides.
    """
    write_scenes(out, {"train": 3}, seed=3, size=SIDE)
    (out / "test").symlink_to("train")
    file = out / "train" / "annotations.json"
    table = json.loads(file.read_text())
    for image in table["images"]:
        image["id"] = 900 - 7 * image["id"]
    for category in table["categories"]:
        category["id"] = 100 - 3 * category["id"]
    table["categories"].append({"id": 4, "name": "unicorn"})
    for thing in table["annotations"]:
        thing["image_id"] = 900 - 7 * thing["image_id"]
        thing["category_id"] = 100 - 3 * thing["category_id"]
    if boxes_alone:
        wide = table["images"][1]
        wide["width"] = 3 * SIDE // 2
        path = file.parent / wide["file_name"]
        Image.open(path).resize((wide["width"], SIDE)).save(path)
        for thing in table["annotations"]:
            del thing["segmentation"]
            if thing["image_id"] == wide["id"]:
                thing["bbox"][0] *= 1.5
                thing["bbox"][2] *= 1.5
                thing["area"] *= 1.5
        table["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(table))
    return file


def reference_scores(file: Path, rows: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """pycocotools' scores of predictions in percent; nan where it gives -1."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(file))
        scorer = evaluation.COCOeval(truth, truth.loadRes(rows), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    shares = scorer.stats.tolist()[: len(SCORES)]
    return dict(zip(SCORES, [100 * share if share >= 0 else math.nan for share in shares], strict=True))


@pytest.mark.parametrize(
    ("detector", "task", "changes"),
    [
        ("faster_rcnn", "detection", {"model.rois_per_image": 32, "optim.steps": 50}),
        pytest.param(
            "faster_rcnn", "instances", {"model.rois_per_image": 32, "optim.steps": 60}, marks=pytest.mark.slow
        ),
        pytest.param("rt_detr_v2", "detection", OF_A_TRANSFORMER | {"optim.steps": 120}, marks=pytest.mark.slow),
    ],
)
def test_the_scores_of_the_file_are_those_of_the_run(
    detector: str, task: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    if detector != "faster_rcnn":
        pytest.importorskip("transformers")
    file = write_photos(tmp_path / "photos", boxes_alone=task == "detection")
    run = tmp_path / "run"
    name = f"small_{task}" if detector == "faster_rcnn" else f"small_{detector}"
    places = {"data.source": str(tmp_path / "photos"), "run.out": str(run)}
    result = transfer(protocol(name, task).with_values(LEARN | changes | places))
    assert result is not None
    assert result.metrics["AP50"] > 20  # so that a wrong id, box or order shows
    # the ids of the user's own file
    assert main(["predict", str(run), "--images", str(file), "--out", str(tmp_path / "boxes.json")]) == 0
    rows = json.loads((tmp_path / "boxes.json").read_text())
    # a folder: its images are numbered, and boxes.images.json names them
    assert (
        main(["predict", str(run), "--images", str(file.parent / "images"), "--out", str(tmp_path / "own.json")]) == 0
    )
    named = json.loads((tmp_path / "own.images.json").read_text())
    truth = json.loads(file.read_text())
    ids = {Path(image["file_name"]).name: image["id"] for image in truth["images"]}
    classes = {category["name"]: category["id"] for category in truth["categories"]}
    image_id = {image["id"]: ids[image["file_name"]] for image in named["images"]}
    category_id = {category["id"]: classes[category["name"]] for category in named["categories"]}
    own_rows = [
        row | {"image_id": image_id[row["image_id"]], "category_id": category_id[row["category_id"]]}
        for row in json.loads((tmp_path / "own.json").read_text())
    ]
    for kind, ending in (("bbox", ""), ("segm", "_mask"))[: 1 + (task == "instances")]:
        expected = {name: result.metrics[f"{name}{ending}"] for name in SCORES}
        for written in (rows, own_rows):
            assert reference_scores(file, written, kind) == pytest.approx(expected, abs=1e-9, nan_ok=True)
