"""COCO's scores equal pycocotools'; VOC's equal a slow loop and hand-counted cases."""

import contextlib
import io
import json
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.reference.voc_ap import Detection, Object, average_precision

from plrc.data.masks import decode_masks, encode_mask
from plrc.errors import MissingPackageError
from plrc.transfer.labels.annotations import LabelledImage
from plrc.transfer.labels.splits import LabelledSet, read_labelled
from plrc.transfer.metrics import Prediction, coco_metrics, voc_metrics
from plrc.transfer.protocols import LabelledConfig

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIDE = 200


def labelled(boxes, classes=None, ignored=None, areas=None, segments=()):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    count = len(boxes)
    return LabelledImage(
        "x.jpg",
        "x.jpg",
        SIDE,
        SIDE,
        boxes,
        np.array(classes if classes is not None else [0] * count, dtype=np.int64),
        np.array(ignored if ignored is not None else [False] * count, dtype=np.bool_),
        np.array(areas if areas is not None else np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), dtype=np.float64),
        tuple(segments),
    )


def predicted(boxes, scores, classes=None, masks=()):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    classes = np.array(classes if classes is not None else [0] * len(boxes), dtype=np.int64)
    return Prediction(boxes, np.array(scores, dtype=np.float32), classes, tuple(masks))


def ellipse(box):
    """The mask [SIDE, SIDE] of the ellipse that fills a box, at least one pixel."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
    inside[int(y0 + y1) // 2, int(x0 + x1) // 2] = True
    return inside


def random_case(seed, images=12, masks=False):
    """Objects of 3 classes in all sizes, some ignored, and a middling detector's output.

    Class 3 is never there but predicted, class 4 is only there as ignored. Some images have no object, some no
    prediction; boxes are whole pixels; scores are tied often.
    """
    draw = np.random.default_rng(seed)

    def clipped(boxes):
        low = np.clip(np.round(boxes[:, :2]), 0, SIDE - 2)
        return np.hstack([low, np.clip(np.round(boxes[:, 2:]), low + 1, SIDE)])

    truth, predictions = [], []
    for number in range(images):
        count = 0 if number % 5 == 0 else int(draw.integers(1, 9))
        corner = draw.uniform(0, 0.8 * SIDE, (count, 2))
        boxes = clipped(np.hstack([corner, corner + np.exp(draw.uniform(1.5, 5, (count, 2)))]))
        classes, ignored = draw.choice([0, 1, 2, 4], count), draw.random(count) < 0.2
        ignored |= classes == 4
        copies = np.repeat(np.arange(count), draw.integers(0, 4, count))
        sides = np.tile(boxes[copies, 2:] - boxes[copies, :2], 2)
        moved = boxes[copies] + sides * draw.normal(0, 0.08, (len(copies), 4))
        stray = draw.uniform(0, SIDE, (0 if number % 4 == 0 else 6, 4))
        stray[:, 2:] += stray[:, :2] / 2
        found = clipped(np.vstack([moved, stray]))
        kinds = np.append(classes[copies], draw.integers(0, 5, len(stray)))
        kinds = np.where(draw.random(len(kinds)) < 0.1, draw.integers(0, 5, len(kinds)), kinds)
        scores = np.round(draw.random(len(found)) * 0.6 + 0.4 * (np.arange(len(found)) < len(copies)), 1)
        areas = draw.uniform(0.5, 1, count) * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        segments = [encode_mask(ellipse(box)) for box in boxes] if masks else []
        truth.append(labelled(boxes, classes, ignored, areas, segments))
        shapes = [encode_mask(ellipse(box)) for box in found] if masks else []
        predictions.append(predicted(found, scores, kinds, shapes))
    return LabelledSet(tuple(truth), ("a", "b", "c", "d", "e")), predictions


def xywh(box):
    x0, y0, x1, y1 = map(float, box)
    return [x0, y0, x1 - x0, y1 - y0]


def reference_scores(dataset, results, kind):
    """pycocotools' six precisions in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = dataset
        known.createIndex()
        scorer = COCOeval(known, known.loadRes(results), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return {name: 100 * s if s >= 0 else math.nan for name, s in zip(NAMES, scorer.stats, strict=False)}


def pycocotools_scores(truth, predictions, kind):
    objects, results = [], []
    for number, (image, prediction) in enumerate(zip(truth.images, predictions, strict=True)):
        for i, box in enumerate(image.boxes):
            crowd, area = int(image.ignored[i]), float(image.areas[i])
            shape = {"segmentation": image.segments[i]} if kind == "segm" else {}
            entry = {"id": len(objects) + 1, "image_id": number, "category_id": int(image.classes[i]) + 1}
            objects.append({**entry, "bbox": xywh(box), "area": area, "iscrowd": crowd, **shape})
        for i, box in enumerate(prediction.boxes):
            shape = {"segmentation": prediction.masks[i]} if kind == "segm" else {"bbox": xywh(box)}
            entry = {"image_id": number, "category_id": int(prediction.classes[i]) + 1}
            results.append({**entry, **shape, "score": float(prediction.scores[i])})
    images = [{"id": i, "height": SIDE, "width": SIDE} for i in range(len(truth.images))]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(truth.classes)]
    return reference_scores({"images": images, "categories": categories, "annotations": objects}, results, kind)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_scores_equal_pycocotools(seed, kind):
    truth, predictions = random_case(seed, masks=kind == "segm")
    scores = coco_metrics(truth, predictions, kind)
    assert scores == pytest.approx(pycocotools_scores(truth, predictions, kind), abs=1e-9, nan_ok=True)
    assert tuple(scores) == NAMES
    assert 10 < scores["AP"] < scores["AP50"] < 95
    assert scores == coco_metrics(truth, predictions, kind)  # nothing that was passed has changed


def test_coco_scores_count_a_hundred_predictions_of_an_image():
    boxes = [[10 * (i % 15), 10 * (i // 15), 10 * (i % 15) + 8, 10 * (i // 15) + 8] for i in range(120)]
    truth, predictions = LabelledSet((labelled(boxes),), ("a",)), [predicted(boxes, np.linspace(1, 0.1, 120))]
    scores = coco_metrics(truth, predictions, "bbox")
    assert scores == pytest.approx(pycocotools_scores(truth, predictions, "bbox"), nan_ok=True)
    assert scores["AP"] == pytest.approx(100 * 84 / 101)  # recall 0, .01 ... .83 of 101 points


@pytest.mark.parametrize("score", [lambda t, p: coco_metrics(t, p, "bbox"), lambda t, p: voc_metrics(t, p, True)])
def test_nothing_found_and_nothing_there(score):
    """Without a prediction the scores are 0; without an object there are none. No score of a size without objects."""
    there, empty, nothing = labelled([[0, 0, 20, 20]]), labelled([]), predicted([], [])
    blind = score(LabelledSet((there, empty), ("a", "b")), [nothing, nothing])
    assert (blind["AP"], blind["AP50"], blind["AP75"]) == (0, 0, 0)
    assert blind.get("APs", 0) == 0
    assert math.isnan(blind.get("APl", math.nan))
    for found in (nothing, predicted([[0, 0, 9, 9]], [0.5])):
        assert all(map(math.isnan, score(LabelledSet((empty, empty), ("a",)), [nothing, found]).values()))


def test_a_stray_class_costs_nothing_of_the_mean():
    """Class 1 has no object: its predictions count neither in COCO's nor in VOC's mean."""
    truth = LabelledSet((labelled([[0, 0, 20, 20]]),), ("a", "b"))
    predictions = [predicted([[0, 0, 20, 20], [50, 50, 80, 80]], [0.5, 0.9], [0, 1])]
    assert coco_metrics(truth, predictions, "bbox")["AP"] == pytest.approx(100)
    assert voc_metrics(truth, predictions, eleven_points=False)["AP"] == pytest.approx(100)


def test_scoring_prints_nothing(capfd):
    truth, predictions = random_case(0, images=3)
    coco_metrics(truth, predictions, "bbox")
    assert capfd.readouterr() == ("", "")


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingPackageError, match="need faster-coco-eval; install with: pip install faster-coco-eval"):
        coco_metrics(LabelledSet((labelled([]),), ("a",)), [predicted([], [])], "bbox")


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_real_annotations_score_as_pycocotools_reads_them(real_data, kind):
    """COCO's own file against what our reader made of it; the detector is the truth, shifted."""
    dataset = json.loads((real_data / "coco128/annotations/instances_val2017.json").read_text())
    truth = read_labelled(LabelledConfig(source=str(real_data / "coco128")), "instances").test
    ids = {image["file_name"]: image["id"] for image in dataset["images"]}
    categories = {one["name"]: one["id"] for one in dataset["categories"]}
    draw = np.random.default_rng(0)
    predictions, results = [], []
    for image in truth.images:
        count = len(image.boxes)
        found = predicted(image.boxes + draw.normal(0, 4, (count, 4)), draw.random(count), image.classes)
        shifts = draw.integers(-3, 4, (count, 2))
        shapes = zip(decode_masks(image.segments, image.height, image.width), shifts, strict=True)
        masks = tuple(encode_mask(np.roll(mask, shift, (0, 1))) for mask, shift in shapes if kind == "segm")
        predictions.append(Prediction(found.boxes, found.scores, found.classes, masks))
        for i in range(count):
            shape = {"segmentation": masks[i]} if kind == "segm" else {"bbox": xywh(found.boxes[i])}
            category = categories[truth.classes[image.classes[i]]]
            entry = {"image_id": ids[image.name.rpartition("/")[2]], "category_id": category}
            results.append({**entry, **shape, "score": float(found.scores[i])})
    scores = coco_metrics(truth, predictions, kind)
    assert scores == pytest.approx(reference_scores(dataset, results, kind), abs=1e-4)  # boxes are float32 with us
    assert 20 < scores["AP"] < 95


@pytest.mark.parametrize("eleven_points", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_voc_scores_equal_the_devkits_definition(seed, eleven_points):
    truth, predictions = random_case(seed)
    table = []
    for k in range(3):  # class 3 has no object, class 4 only ignored ones
        objects, detections = [], []
        for number, (image, found) in enumerate(zip(truth.images, predictions, strict=True)):
            for box, kind, difficult in zip(image.boxes, image.classes, image.ignored, strict=True):
                if kind == k:
                    objects.append(Object(number, tuple((box - [0, 0, 1, 1]).astype(int).tolist()), bool(difficult)))
            for box, kind, score in zip(found.boxes, found.classes, found.scores, strict=True):
                if kind == k:
                    detections.append(Detection(number, tuple((box - [0, 0, 1, 1]).astype(int).tolist()), score))
        table.append([average_precision(objects, detections, Fraction(t, 20), eleven_points) for t in range(10, 20)])
    expected = 100 * np.array(table, dtype=np.float64)
    scores = voc_metrics(truth, predictions, eleven_points)
    assert scores == pytest.approx(
        {"AP": expected.mean(), "AP50": expected[:, 0].mean(), "AP75": expected[:, 5].mean()}
    )
    assert 10 < scores["AP"] < scores["AP50"] < 95


def test_voc_curve_counted_by_hand():
    """Right, wrong, right for 2 objects: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    truth = LabelledSet((labelled([[0, 0, 20, 20], [50, 50, 90, 90]]),), ("a",))
    predictions = [predicted([[50, 50, 90, 90], [120, 0, 140, 20], [0, 0, 20, 20]], [0.7, 0.8, 0.9])]
    assert voc_metrics(truth, predictions, False)["AP50"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))
    assert voc_metrics(truth, predictions, True)["AP50"] == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)


def test_voc_recall_of_three_in_ten_reaches_the_fourth_point():
    boxes = [[18 * i, 0, 18 * i + 9, 9] for i in range(10)]
    scores = voc_metrics(LabelledSet((labelled(boxes),), ("a",)), [predicted(boxes[:3], [0.9, 0.8, 0.7])], True)
    assert scores["AP50"] == pytest.approx(100 * 4 / 11)


@pytest.mark.parametrize("share", range(50, 100, 5))
def test_voc_overlap_equal_to_the_threshold_is_enough(share):
    truth = LabelledSet((labelled([[0, 0, share, 1]]),), ("a",))
    scores = voc_metrics(truth, [predicted([[0, 0, 100, 1]], [0.5])], False)
    assert scores["AP"] == pytest.approx(10 * (1 + (share - 50) // 5))


def test_voc_prediction_belongs_to_its_nearest_object_even_if_that_is_taken():
    """COCO's rule gives the second prediction the object that is left; the devkit's calls it wrong."""
    truth = LabelledSet((labelled([[0, 0, 100, 100], [20, 0, 120, 100]]),), ("a",))
    predictions = [predicted([[0, 0, 100, 100], [5, 0, 105, 100]], [0.9, 0.8])]
    assert voc_metrics(truth, predictions, False)["AP50"] == pytest.approx(50)
    assert coco_metrics(truth, predictions, "bbox")["AP50"] == pytest.approx(100)


def test_voc_difficult_objects_count_neither_for_nor_against():
    """The surest predictions hit a difficult object, twice: the curve is that of the other object alone."""
    truth = LabelledSet((labelled([[0, 0, 20, 20], [50, 50, 90, 90]], ignored=[True, False]),), ("a",))
    boxes = [[0, 0, 20, 20], [0, 0, 20, 19], [50, 50, 90, 90]]
    assert voc_metrics(truth, [predicted(boxes, [0.9, 0.8, 0.7])], False)["AP50"] == pytest.approx(100)
    assert voc_metrics(truth, [predicted(boxes[:2], [0.9, 0.8])], False)["AP50"] == 0
