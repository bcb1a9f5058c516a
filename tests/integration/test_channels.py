"""Images of five channels all the way: pre-training, export, detector, comparison, pages; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.export.runs import small_config

import plrc
from plrc.compare.inits import build_comparison
from plrc.compare.run import run_comparison
from plrc.config import Config
from plrc.engine.pretrain import pretrain
from plrc.errors import ConfigError, DataError, PlrcError, RunError, WeightsError
from plrc.export import export_backbone
from plrc.export.targets import TARGETS
from plrc.files import read_json_lines
from plrc.model import build_backbone
from plrc.transfer.dense import dense_probe
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import LabelledConfig

CHANNELS = 5
SIDE = 64


def write_arrays(folder: Path, count: int = 12) -> Path:
    """Arrays of five channels with bright squares in one of them, their COCO labels, and lists of the splits."""
    draws = np.random.default_rng(0)
    folder.mkdir()
    for split, size in (("train", count), ("test", 3)):
        images = []
        things = []
        for i in range(size):
            values = draws.integers(0, 3000, (CHANNELS, SIDE, SIDE)).astype(np.uint16)
            x, y = draws.integers(4, 30, 2).tolist()
            values[i % 2, y : y + 24, x : x + 24] += 20_000
            name = f"{split}{i}.npy"
            (folder / split).mkdir(exist_ok=True)
            np.save(folder / split / name, values if i % 2 else np.moveaxis(values, 0, -1))
            images.append({"id": i, "file_name": name, "width": SIDE, "height": SIDE})
            box = {"bbox": [x, y, 24, 24], "area": 576, "iscrowd": 0}
            things.append({"id": i, "image_id": i, "category_id": 1 + i % 2, **box})
        categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        table = {"images": images, "annotations": things, "categories": categories}
        (folder / split / "annotations.json").write_text(json.dumps(table))
    (folder / "list.txt").write_text("".join(f"train/train{i}.npy\n" for i in range(count)))
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arrays(tmp_path_factory.mktemp("arrays") / "data")


def settings(arrays: Path, out: Path, **changes: Any) -> Config:
    values = {"data.channels": CHANNELS, "data.held_out": 2, **changes}
    return small_config(arrays / "list.txt", out, "resnet18", **values)


@pytest.fixture(scope="module")
def run(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plrc.pretrain(settings(arrays, tmp_path_factory.mktemp("five") / "run")).path


def test_a_run_of_five_channels_says_what_it_does(run: Path) -> None:
    log = (run / "log.txt").read_text()
    assert "(measured on 11 training images)" in log
    assert "images of 5 channels: brightness and contrast are changed channel by channel, and views are blurred" in log
    assert "views.saturation, views.hue and views.gray_prob are for RGB and change nothing" in log
    pixels = Config.load(run / "config.toml").data.pixels
    assert pixels.channels == CHANNELS
    assert len([line for line in read_json_lines(run / "metrics.jsonl") if line["kind"] == "train"]) >= 1
    assert "cannot be drawn" not in (run / "report.html").read_text()
    loaded = plrc.load_backbone(run, normalize=True)
    assert loaded.pixels == pixels
    assert loaded(torch.rand(1, CHANNELS, 64, 64))[8].shape == (1, 128, 8, 8)
    with pytest.raises(ValueError, match=r"images have the shape \[1, 3, 64, 64\]; give a batch \[B, 5, H, W\]"):
        loaded(torch.rand(1, 3, 64, 64))


SLOW = ("onnx", "transformers")
SAYS = {
    "torchvision": "net.conv1 = torch.nn.Conv2d(5, 64, 7, stride=2, padding=3, bias=False)",
    "timm": "in_chans=5",
    "transformers": "ResNetBackbone.from_pretrained(FOLDER)",
    "detectron2": "images: a mapper of your own gives [5, H, W]; PIXEL_MEAN sets the network's channels",
    "mmdetection": "'in_channels': 5",
    "safetensors": "",
    "onnx": "[B, 5, H, W]",
}


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=pytest.mark.slow if target in SLOW else ()) for target in TARGETS]
)
def test_every_export_is_proven_and_says_its_channels(target: str, run: Path, tmp_path: Path) -> None:
    receipt = export_backbone(run, target)
    assert receipt.largest_difference is not None or target in ("detectron2", "mmdetection")
    assert receipt.settings["channels"] == "5, as in the files"
    assert len(receipt.settings["mean"]) == CHANNELS
    assert SAYS[target] in "\n".join(receipt.settings["set"])
    card = Path(f"{receipt.file}.card.md").read_text()
    assert "- Input: 5 channels in the order of the training files" in card
    assert "`data.channels`: `5`" in card


@pytest.mark.slow
def test_a_run_of_five_channels_is_compared(run: Path, arrays: Path, tmp_path: Path) -> None:
    values: dict[str, object] = {
        "data.source": str(arrays),
        "data.channels": CHANNELS,
        "input.train_size": (64.0, 64.0),
        "input.test_size": 64.0,
        "input.max_size": 96,
        "optim.steps": 2,
        "optim.batch_size": 2,
        "model.backbone": "",
        "model.width": 16,
        "model.hidden": 16,
        "model.rois_per_image": 16,
        "run.device": "cpu",
        "run.threads": 1,
        "run.out": str(tmp_path / "out"),
    }
    base = protocol("small_detection", "detection").with_values(values)
    content = run_comparison(build_comparison(base, [str(run)], (1.0,), (), 1, (0.01,), 1)).content
    assert content is not None
    assert content["finished"]
    assert set(content["inits"]) == {"random", "run"}
    for result in (tmp_path / "out").rglob("result.json"):
        assert "pixels are normalized with mean" in (result.parent / "log.txt").read_text()


def test_frozen_features_of_five_channels_are_probed(run: Path, arrays: Path) -> None:
    data = LabelledConfig(source=str(arrays), channels=CHANNELS)
    results = dense_probe(data, [str(run), "random"], "", size=64, images=4, seed=0, levels=(8,))
    assert [set(result.miou) for result in results] == [{8}, {8}]
    sentence = r"image files of other channels \(an array of shape 64 x 64 x 5, but data.channels is 3\), dropped: 6"
    with pytest.raises(DataError, match=sentence):
        dense_probe(LabelledConfig(source=str(arrays)), [str(run)], "", size=64, images=4, seed=0)


def test_a_start_from_rgb_is_inflated_and_says_so(arrays: Path, tmp_path: Path) -> None:
    save_file(build_backbone("resnet18").net.state_dict(), tmp_path / "rgb.safetensors")
    config = settings(arrays, tmp_path / "run", **{"model.init": str(tmp_path / "rgb.safetensors")})
    folder = pretrain(config).path
    log = (folder / "log.txt").read_text()
    assert "the first convolution (conv1.weight) is inflated from three channels to 5" in log
    assert "(measured on 11 training images)" in log
    receipt = json.loads((folder / "weights.json").read_text())
    assert (receipt["inflated"], receipt["matched"]) == (["conv1.weight"], 120)


def test_what_cannot_take_five_channels_is_refused(run: Path, arrays: Path, tmp_path: Path) -> None:
    save_file(build_backbone("resnet18").net.state_dict(), tmp_path / "rgb.safetensors")
    frozen = {
        "teacher.kind": "frozen",
        "teacher.backbone": "resnet18",
        "teacher.init": str(tmp_path / "rgb.safetensors"),
        "objectives.frozen_weight": 1.0,
    }
    with pytest.raises(
        ConfigError, match=r"the frozen teacher \(.*rgb.safetensors\) was trained on RGB, but data.chan"
    ):
        pretrain(settings(arrays, tmp_path / "frozen", **frozen))
    three = {"teacher.mean": (0.5, 0.5, 0.5), "teacher.std": (0.5, 0.5, 0.5)}
    with pytest.raises(ConfigError, match=r"teacher.mean and teacher.std are for RGB, but data.channels is 5"):
        pretrain(settings(arrays, tmp_path / "statistics", **frozen, **three))
    with pytest.raises(WeightsError, match=r"run was trained on images of 5 channels, but data.channels is 4; write"):
        pretrain(settings(arrays, tmp_path / "four", **{"data.channels": 4, "model.init": str(run)}))
    with pytest.raises(RunError, match=r"run was started with data.channels 5, now 4: resume without changing it"):
        pretrain(settings(arrays, run, **{"data.channels": 4, "run.resume": True}))
    with pytest.raises(PlrcError, match=r"none of 11 images can be read .* 64 x 64 x 5, but data.channels is 4"):
        pretrain(settings(arrays, tmp_path / "other", **{"data.channels": 4}))


def test_a_teacher_that_takes_five_channels_is_used(run: Path, arrays: Path, tmp_path: Path) -> None:
    frozen = {"teacher.kind": "frozen", "teacher.init": str(run), "objectives.frozen_weight": 1.0, "teacher.size": 64}
    folder = pretrain(settings(arrays, tmp_path / "run", **frozen)).path
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    assert all(np.isfinite(line["frozen_loss"]) for line in lines)
