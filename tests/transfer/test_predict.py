"""A fine-tuned detector in use: its predictions in files and pictures, what is refused, and its form in ONNX."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.checkpoints import save_detector
from tests.transfer.test_finetune import config
from torch import Tensor

import plrc
from plrc.cli import main
from plrc.data import coco_table, layouts
from plrc.data.decode import decode
from plrc.errors import ExportError, PlrcError
from plrc.files import FolderLock, parse_json
from plrc.model.backbone import build_backbone
from plrc.pixels import IMAGENET
from plrc.scenes import render_scene, scene_names, write_scenes
from plrc.transfer import onnx_detector
from plrc.transfer.detector_file import load_detector, model_metadata
from plrc.transfer.detectors import build_detector
from plrc.transfer.detectors.batched import batched_detector
from plrc.transfer.finetune import transfer
from plrc.transfer.onnx_detector import prepare_batch
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import TransferConfig

SIDE = 96
CLASSES = len(scene_names())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "s"
    write_scenes(folder, {"train": 4, "test": 3}, seed=0, size=SIDE)
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that keeps its model."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert transfer(config("instances", scenes, out, **{"optim.steps": 2, "data.val": "none"})) is not None
    return out


def random_detector(
    changes: dict[str, Any], detector: str = "faster_rcnn", task: Any = "detection", classes: int = CLASSES
) -> Any:
    """A detector with random weights whose scores differ: (configuration, network in evaluation mode)."""
    name = f"small_{task}" if detector == "faster_rcnn" else f"small_{detector}"
    values = {
        "input.train_size": (64.0, 64.0),
        "input.test_size": 64.0,
        "input.max_size": 96,
        "model.backbone": "timm:test_vit" if detector == "rf_detr" else "resnet18",
        "model.width": 32,
        "model.hidden": 64,
    }
    if detector != "faster_rcnn":
        values |= {"model.width": 64, "model.queries": 16, "model.decoder_layers": 2}
    settings = protocol(name, task).with_values(values | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(settings.model.backbone)
        network: Any = build_detector(
            backbone, settings.model, settings.input, classes, task == "instances", seed=0
        ).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.02 if parameter.ndim > 1 else 0.1))
    return settings, network


def keep(folder: Path, settings: TransferConfig, network: Any) -> Path:
    """Write what a finished run keeps."""
    folder.mkdir(parents=True)
    settings.save(folder / "config.toml")
    metadata = model_metadata(settings, scene_names(), settings.model.backbone, IMAGENET)
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata)
    (folder / "result.json").write_text("{}")
    return folder


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    images = []
    for index, (height, width) in enumerate(sizes):
        scene = torch.from_numpy(render_scene(5, index, max(height, width)).image).permute(2, 0, 1)
        images.append(scene[:, :height, :width].contiguous())
    return images


def test_the_files_hold_what_the_detector_predicts(run: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "boxes.json"
    report = plrc.predict(run, scenes / "test" / "images", out, png=tmp_path / "png", score_threshold=0.08)
    rows = json.loads(out.read_text())
    table = json.loads((tmp_path / "boxes.images.json").read_text())
    assert (report.images, report.predictions, report.unreadable, report.pictures) == (3, len(rows), (), 3)
    assert [category["name"] for category in table["categories"]] == scene_names()
    assert [category["id"] for category in table["categories"]] == list(range(1, 10))
    assert [image["id"] for image in table["images"]] == [1, 2, 3]
    detector = load_detector(run)
    number = 0
    for entry in table["images"]:
        prediction = detector.predict(decode(scenes / "test" / "images" / entry["file_name"]))
        own_rows = [row for row in rows if row["image_id"] == entry["id"]]
        for row in own_rows:
            i = prediction.scores.tolist().index(row["score"])
            x0, y0, x1, y1 = prediction.boxes[i].astype(float).tolist()
            assert row["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert row["category_id"] == prediction.classes[i] + 1
            assert row["segmentation"] == {"size": [SIDE, SIDE], "counts": prediction.masks[i]["counts"].decode()}
        assert len(own_rows) == (prediction.scores >= 0.08).sum()
        number += len(own_rows)
        assert decode(tmp_path / "png" / f"{entry['file_name']}.png").shape == (3, SIDE, SIDE)
    assert number == len(rows) > 0


def test_a_coco_file_is_read_once_and_gives_the_ids(
    run: Path, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scenes / "test" / "images", tmp_path / "images")
    table = json.loads((scenes / "test" / "annotations.json").read_text())
    for image in table["images"]:
        image["id"] += 100
    table["categories"] = [{"id": 50 - i, "name": name} for i, name in enumerate(scene_names())]
    table["annotations"] = []
    (tmp_path / "coco.json").write_text(json.dumps(table))
    texts: list[str] = []
    for module in (layouts, coco_table):
        monkeypatch.setattr(module, "parse_json", lambda text: texts.append(text) or parse_json(text))
    plrc.predict(run, tmp_path / "coco.json", tmp_path / "out.json")
    assert texts == [(tmp_path / "coco.json").read_text()]
    written = json.loads((tmp_path / "out.images.json").read_text())
    assert {image["id"] for image in written["images"]} == {image["id"] for image in table["images"]}
    assert written["categories"] == [{"id": 50 - i, "name": name} for i, name in enumerate(scene_names())]
    rows = json.loads((tmp_path / "out.json").read_text())
    assert {row["image_id"] for row in rows} <= {image["id"] for image in table["images"]}
    assert {row["category_id"] for row in rows} <= set(range(42, 51))

    del table["categories"][3]
    (tmp_path / "coco.json").write_text(json.dumps(table))
    with caplog.at_level("WARNING", logger="plrc"):
        plrc.predict(run, tmp_path / "coco.json", tmp_path / "out.json")
    assert f"has no category {scene_names()[3]}, so category ids are the run's own" in caplog.text
    assert json.loads((tmp_path / "out.images.json").read_text())["categories"][0]["id"] == 1


def test_unreadable_images_are_counted(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(scenes / "test" / "images", photos)
    first, second, third = sorted(photos.iterdir())
    second.write_bytes(second.read_bytes()[:300])
    command = ["predict", str(run), "--images", str(photos), "--out", str(tmp_path / "boxes.json")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"warning: unreadable images, left out: 1 ({second.name}: " in shown
    assert re.search(r"\d+ predictions for 2 images, 1 unreadable: ", shown)
    table = json.loads((tmp_path / "boxes.images.json").read_text())
    assert [image["id"] for image in table["images"]] == [1, 3]
    assert [entry["file_name"] for entry in table["info"]["unreadable"]] == [second.name]
    for path in (first, third):
        path.write_bytes(b"")
    assert main(command) == 2
    assert "none of the 3 images" in capsys.readouterr().err


def test_mistakes_end_in_one_sentence(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    unkept, unfinished, old, semantic, diverged = (tmp_path / name for name in ("a", "b", "c", "d", "e"))
    for copy in (unkept, unfinished, old, semantic, diverged):
        shutil.copytree(run, copy)
    (unkept / "model.safetensors").unlink()
    for name in ("model.safetensors", "result.json"):
        (unfinished / name).unlink()
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    safetensors.torch.save_file(tensors, old / "model.safetensors")
    settings = protocol("small_semantic", "semantic")
    metadata = model_metadata(settings, ["a", "b"], "resnet18", IMAGENET)
    safetensors.torch.save_file(tensors, semantic / "model.safetensors", metadata)
    metadata = model_metadata(load_detector(run).config, scene_names(), "resnet18", IMAGENET)
    tensors |= {"rpn.head.cls_logits.bias": torch.full_like(tensors["rpn.head.cls_logits.bias"], torch.nan)}
    safetensors.torch.save_file(tensors, diverged / "model.safetensors", metadata)
    pretrain = tmp_path / "pretrain"
    pretrain.mkdir()
    plrc.preset("debug_cpu").save(pretrain / "config.toml")
    images = str(scenes / "test" / "images")
    out = str(tmp_path / "o.json")
    labels = tmp_path / "labels.json"
    pictures_of = tmp_path / "boxes.images.json"
    for path in (labels, pictures_of):
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    for arguments, sentence in [
        ([tmp_path / "absent", "--images", images, "--out", out], "absent does not exist; name the folder of a run"),
        ([tmp_path / "empty", "--images", images, "--out", out], "is not a run folder (no config.toml)"),
        ([pretrain, "--images", images, "--out", out], "is a run of plrc pretrain, which has no detector"),
        ([unkept, "--images", images, "--out", out], "keeps no model (model.safetensors)"),
        ([unfinished, "--images", images, "--out", out], "is not finished and has no model yet"),
        ([old, "--images", images, "--out", out], "does not name its classes and settings"),
        ([semantic, "--images", images, "--out", out], "is a run of the task semantic, which predicts no boxes"),
        ([diverged, "--images", images, "--out", out], "holds values that are not finite in rpn.head.cls_logits.bias"),
        ([tmp_path / "file", "--images", images, "--out", out], "is no readable safetensors file"),
        ([run, "--images", tmp_path / "empty", "--out", out], "no image in"),
        ([run, "--images", labels, "--out", labels], "labels.json would overwrite"),
        ([run, "--images", pictures_of, "--out", tmp_path / "boxes.json"], "boxes.json would overwrite"),
        ([run, "--images", images, "--out", "o.txt"], "--out is o.txt; name a file that ends in .json"),
        ([run, "--images", images, "--out", out, "--png", tmp_path / "file"], "file, a file; name a folder"),
        ([run, "--images", images, "--out", out, "--score-threshold", "2"], "must be from 0 to 1, got 2"),
        ([run, "--images", images, "--out", out, "--backbone", "resnet50"], "has a resnet18, not a resnet50"),
        ([run, "--out", out], "plrc predict needs --images"),
    ]:
        assert main(["predict", *map(str, arguments)]) == 2
        complaint = capsys.readouterr().err
        assert sentence in complaint
        assert complaint.count("\n") == 1
    assert main(["export", str(run), "--to", "timm"]) == 2
    assert "whose fine-tuned detector is exported as ONNX only" in capsys.readouterr().err
    assert not Path(out).exists()


def test_an_image_must_have_the_channels_of_the_run(run: Path) -> None:
    detector = load_detector(run)
    assert detector.classes == tuple(scene_names())
    with pytest.raises(TypeError, match="is of float32; give uint8"):
        detector.predict(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"has the shape \[1, 8, 8\]; give \[3, H, W\]"):
        detector.predict(torch.zeros(1, 8, 8, dtype=torch.uint8))


def test_code_that_a_run_names_is_imported_only_if_the_user_names_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from plrc.model.backbone import build_backbone\n"
        "class Net(type(build_backbone('resnet18').net)):\n"
        "    strides = (4, 8, 16, 32)\n"
        "def build():\n"
        "    net = build_backbone('resnet18').net\n"
        "    net.__class__ = Net\n"
        "    return net\n"
    )
    name = f"{tmp_path}/net.py:build"
    settings, network = random_detector({"model.backbone": name})
    folder = keep(tmp_path / "run", settings, network)
    with pytest.raises(PlrcError, match=r"a network of user code .*net.py:build\).* add --backbone "):
        load_detector(folder)
    assert load_detector(folder, backbone=name).classes == tuple(scene_names())


@pytest.mark.parametrize("kind", ["d_fine", "rf_detr", "faster_rcnn"])
def test_a_run_on_the_backbone_of_a_folder_needs_that_folder(
    kind: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    folder = save_detector("d_fine" if kind == "faster_rcnn" else kind, tmp_path / "theirs", scene_names())
    name = f"transformers:{folder}"
    sizes = {"input.train_size": (float(SIDE), float(SIDE)), "input.test_size": float(SIDE)}
    settings, network = random_detector({"model.backbone": name, **sizes}, kind)
    run = keep(tmp_path / "run", settings, network)
    image = pictures((64, 80))[0]
    with torch.no_grad():
        expected = network([image.float() / 255])[0]["scores"]
    assert load_detector(run).predict(image).scores.tolist() == expected.tolist()
    command = ["predict", str(run), "--images", str(scenes / "test" / "images"), "--out", str(tmp_path / "o.json")]
    assert main(command) == 0

    moved = folder.rename(tmp_path / "moved")
    sentence = f"there is no folder {folder}; name a folder that save_pretrained wrote (if it has moved, name its new"
    with pytest.raises(PlrcError, match=re.escape(sentence)):
        load_detector(run)
    capsys.readouterr()
    for arguments in (command, ["export", str(run), "--to", "onnx", "--out", str(tmp_path / "d.onnx")]):
        assert main(arguments) == 2
        complaint = capsys.readouterr().err
        assert sentence in complaint
        assert complaint.count("\n") == 1
    assert main([*command, "--backbone", f"transformers:{moved}"]) == 0
    other = save_detector("rt_detr_v2", tmp_path / "other", scene_names())
    assert main([*command, "--backbone", f"transformers:{other}"]) == 2


@pytest.mark.slow
def test_onnx_of_a_run_on_the_backbone_of_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("transformers")
    folder = save_detector("d_fine", tmp_path / "theirs", scene_names())
    settings, network = random_detector({"model.backbone": f"transformers:{folder}"}, "d_fine")
    receipt = plrc.export_detector(keep(tmp_path / "run", settings, network), tmp_path / "d.onnx")
    assert receipt.predictions > 0
    assert receipt.unmatched <= 0.02 * receipt.predictions


# The form for ONNX


@pytest.mark.parametrize(("neck", "task"), [("fpn", "instances"), ("c4", "instances"), ("fpn", "detection")])
def test_all_images_at_once_give_what_torchvision_gives(neck: str, task: str) -> None:
    assert_same_predictions(neck, task)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_the_form_for_onnx_with_fewer_candidates_than_predictions(neck: str) -> None:
    assert_same_predictions(neck, "detection", 1, **{"model.proposals": 50})


def assert_same_predictions(neck: str, task: str, classes: int = CLASSES, **changes: object) -> None:
    _, network = random_detector({"model.neck": neck, **changes}, task=task, classes=classes)
    images = pictures((64, 80), (96, 60), (64, 96))
    for batch in (images, images[:1]):
        with torch.no_grad():
            expected = network([image.float() / 255 for image in batch])
            boxes, scores, classes, *masks = batched_detector(network)(**prepare_batch(network, batch))
        for i, image in enumerate(batch):
            number = int((scores[i] > 0).sum())
            resized = network.transform.resize(image.float() / 255, None)[0].shape[1:]
            scale = torch.tensor([image.shape[2] / resized[1], image.shape[1] / resized[0]]).repeat(2)
            assert number == len(expected[i]["scores"]) > 0
            # matched, because predictions of equal scores may come in another order
            outputs = ((boxes[i] * scale).numpy(), scores[i].numpy().copy(), classes[i].numpy())
            pairs = onnx_detector.match_predictions(expected[i], *outputs)
            assert len(pairs) == number
            assert max(pair.score_difference for pair in pairs) < 1e-5
            assert max(pair.box_difference for pair in pairs) < 1e-2
            for pair in pairs if masks else []:
                assert onnx_detector._mask_difference(expected[i], masks[0][i], pair) < 1e-4
            assert (classes[i, number:] == -1).all() and (boxes[i, number:] == 0).all()
        assert bool(masks) == (task == "instances")
        for values in masks:
            assert values.shape == (*scores.shape, *((28, 28) if neck == "fpn" else (14, 14)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "task", "neck"),
    [
        ("faster_rcnn", "instances", "fpn"),
        ("faster_rcnn", "detection", "c4"),
        ("rt_detr", "detection", "fpn"),
        ("rt_detr_v2", "detection", "fpn"),
        ("d_fine", "detection", "fpn"),
        ("rf_detr", "detection", "fpn"),
    ],
)
def test_onnx_runtime_predicts_what_pytorch_predicts(
    detector: str, task: str, neck: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    if detector != "faster_rcnn":
        pytest.importorskip("transformers")
    changes = {"model.neck": neck, "data.source": str(scenes / "test" / "images")}
    folder = keep(tmp_path / "run", *random_detector(changes, detector, task))
    file = tmp_path / "d.onnx"
    assert main(["export", str(folder), "--to", "onnx", "--out", str(file)]) == 0
    receipt = json.loads((tmp_path / "d.onnx.receipt.json").read_text())
    assert receipt["batches"] == [1, 3, 7]
    assert receipt["images"] == "the run's data"
    assert receipt["predictions"] > 11 * 5
    assert receipt["unmatched"] <= 0.02 * receipt["predictions"]
    assert receipt["classes"] == scene_names()
    assert "in ONNX Runtime with 1, 3, 7 images" in capsys.readouterr().out
    other = load_detector(folder, "cpu")
    changed: Any = other.model.model
    if detector == "faster_rcnn":  # as if ONNX Runtime predicted too much, or other masks
        changed.roi_heads.detections_per_img = 2
        comparison = onnx_detector.compare(file, other, pictures((64, 64)) * 7)
        assert comparison.unmatched > comparison.predictions > 0
        if task == "detection":
            return
        changed.roi_heads.detections_per_img = 100
        changed = changed.roi_heads.mask_predictor
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    comparison = onnx_detector.compare(file, other, pictures((64, 64)) * 7)
    assert comparison.unmatched > 0.02 * comparison.predictions


def test_a_file_that_predicts_something_else_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*arguments: Any) -> None:
        arguments[-1].write_bytes(b"x")

    monkeypatch.setattr(onnx_detector, "_write", write)
    monkeypatch.setattr(onnx_detector, "compare", lambda *_: onnx_detector.Comparison(100, 3, 0.0, 0.0))
    with pytest.raises(ExportError, match="3 of 100 predictions differ between PyTorch and ONNX Runtime"):
        plrc.export_detector(run, tmp_path / "d.onnx")
    monkeypatch.setattr(onnx_detector, "compare", lambda *_: onnx_detector.Comparison(0, 0, 0.0, 0.0))
    with pytest.raises(ExportError, match=r"predicts nothing on 7 images \(the run's data\), so ONNX"):
        plrc.export_detector(run, tmp_path / "d.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("plrc.unproven.LOCK_SECONDS", 0.3)
    lock = FolderLock()
    assert lock.take(tmp_path / ".unproven.d.onnx")
    with pytest.raises(ExportError, match=r"another process has been writing .*d\.onnx for 0 s"):
        plrc.export_detector(run, tmp_path / "d.onnx")
    lock.release()
    with pytest.raises(PlrcError, match=r"--out is .*d.pt; name a file that ends in .onnx"):
        plrc.export_detector(run, tmp_path / "d.pt")
