"""Pixel statistics: a run has those of its start weights or of its settings, and everything that reads it obeys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.engine.runs import metrics
from tests.export.runs import small_config

import plrc
from plrc.config import Config
from plrc.data.photometric import augment, normalize
from plrc.engine.learner import Learner
from plrc.engine.pretrain import pretrain
from plrc.errors import ConfigError, RunError, WeightsError
from plrc.export import export_backbone
from plrc.export.targets import TARGETS
from plrc.model import build_backbone
from plrc.model.start_pixels import start_pixels
from plrc.model.weights import read_weights
from plrc.pixels import IMAGENET, PixelStatistics
from plrc.transfer.detectors import build_detector
from plrc.transfer.initial import initial_backbone
from plrc.transfer.probe import extract_features
from plrc.transfer.protocols import DetectorConfig, InputConfig, LabelledConfig

HALF = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SET = {"data.mean": HALF.mean, "data.std": HALF.std}
CLIP = PixelStatistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module")
def half_run(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """A ResNet-18 after two small steps on pixels from -1 to 1, exported by `plrc.pretrain`."""
    out = tmp_path_factory.mktemp("half") / "run"
    return plrc.pretrain(small_config(scenes, out, "resnet18", **SET)).path


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [
        (
            (0.5, 0.5),
            (0.5, 0.5, 0.5),
            r"data\.mean must be three numbers from 0 to 1 \(red, green, blue\), got 0.5 0.5$",
        ),
        ((0.5, 0.5, 0.5), (), r"data\.std must be three numbers .* got none$"),
        ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5), r"data\.std must be three numbers above 0 .* got 0.5 0 0.5$"),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), r"got 123.675 116.28 103.53; .* divide them by 255$"),
        ((-0.1, 0.5, 0.5), (0.5, 0.5, 0.5), r"data\.mean must be three numbers from 0 to 1"),
        ("0.5", (0.5, 0.5, 0.5), r"data\.mean must be a list of numbers, got '0.5'$"),
    ],
)
def test_numbers_that_are_no_statistics_end_in_a_sentence(mean: Any, std: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Config().with_values({"data.mean": mean, "data.std": std})
    if not isinstance(mean, str):
        with pytest.raises(ConfigError, match=sentence):
            LabelledConfig(mean=mean, std=std)


def test_a_run_sees_and_states_its_statistics(half_run: Path, scenes: Path, tmp_path: Path) -> None:
    config = Config.load(half_run / "config.toml")
    assert config.data.pixels == HALF
    line = "pixels are normalized with mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (data.mean and data.std)"
    assert line in (half_run / "log.txt").read_text()
    usual = pretrain(small_config(scenes, tmp_path / "usual", "resnet18"))
    assert "pixels are normalized" not in (usual.path / "log.txt").read_text()
    assert Config.load(usual.path / "config.toml").data.mean == ()  # ImageNet's
    assert metrics(half_run)[0]["point_loss"] != metrics(usual.path)[0]["point_loss"]


def test_the_student_sees_normalized_views(half_run: Path, pixels: torch.Tensor) -> None:
    config = Config.load(half_run / "config.toml").with_values(
        {"views.jitter_prob": 0.0, "views.gray_prob": 0.0, "views.blur_prob": 0.0}
    )
    learner = Learner(config, torch.device("cpu"))
    assert learner.student.backbone.pixels == learner.teacher.backbone.pixels == HALF
    views = augment(pixels, torch.rand(2, 8), config.views, learner.student.backbone.pixels)
    torch.testing.assert_close(views, pixels / 127.5 - 1, atol=2e-6, rtol=1e-6)


SLOW = ("onnx", "transformers")


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=pytest.mark.slow if target in SLOW else ()) for target in TARGETS]
)
def test_every_export_says_its_statistics(target: str, half_run: Path) -> None:
    receipt = export_backbone(half_run, target)
    card = Path(f"{receipt.file}.card.md").read_text()
    size = 127.5 if target in ("detectron2", "mmdetection") else 0.5
    assert receipt.settings["mean"] == receipt.settings["std"] == [size] * 3
    assert "then mean 0.5 0.5 0.5, std 0.5 0.5 0.5. Another order" in card
    assert "then ImageNet's" not in card
    assert f"| mean | `{[size] * 3}` |" in card
    recipe = "\n".join(receipt.settings["set"])
    if target == "detectron2":
        assert "MODEL.PIXEL_MEAN: [127.5, 127.5, 127.5]\nMODEL.PIXEL_STD: [127.5, 127.5, 127.5]" in recipe
    if target == "mmdetection":
        assert "mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]" in recipe
    if target == "torchvision":
        assert "image_mean and image_std of the detector: [0.5, 0.5, 0.5] and [0.5, 0.5, 0.5]" in recipe
    if target != "onnx":
        assert initial_backbone(receipt.file, "resnet18")[0].pixels == HALF
        assert plrc.load_backbone(receipt.file, backbone="resnet18").pixels == HALF


def test_a_file_of_tensors_alone_has_the_statistics_of_its_receipt(half_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "plain.pt"
    export_backbone(half_run, "torchvision", file)
    assert read_weights(file).metadata == {}
    assert initial_backbone(str(file), "resnet18")[0].pixels == HALF
    state = build_backbone("resnet18").net.state_dict()
    torch.save(state, file)  # another file under the same name: the receipt is not its own
    assert initial_backbone(str(file), "resnet18")[0].pixels == IMAGENET


def test_statistics_survive_an_export_with_all_digits(scenes: Path, tmp_path: Path) -> None:
    values = {"data.mean": CLIP.mean, "data.std": CLIP.std, "optim.steps": 1}
    run = pretrain(small_config(scenes, tmp_path / "run", "resnet18", **values)).path
    for name in ("a.safetensors", "a.pt"):
        export_backbone(run, "torchvision", tmp_path / name)
        assert initial_backbone(str(tmp_path / name))[0].pixels == CLIP
    assert initial_backbone(str(run))[0].pixels == CLIP


def test_what_reads_a_run_uses_its_statistics(half_run: Path, pixels: torch.Tensor) -> None:
    backbone, initial = initial_backbone(str(half_run))
    assert "pixels are normalized with mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in initial.lines()
    net = backbone.eval()
    with torch.no_grad():
        expected = net(pixels / 127.5 - 1)[8]
        torch.testing.assert_close(extract_features(net, pixels, 8), expected, atol=1e-5, rtol=1e-4)
        loaded = plrc.load_backbone(half_run, normalize=True)
        torch.testing.assert_close(loaded(pixels)[8], expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(net(normalize(pixels, IMAGENET))[8], expected, atol=1e-2)
    detector = build_detector(backbone, DetectorConfig(width=16, hidden=16), InputConfig((64, 64), 64, 96), 2, False, 0)
    seen = detector.eval().transform([torch.full((3, 64, 64), 0.25)])[0].tensors  # type: ignore[operator]
    assert bool((seen == -0.5).all())
    given, _ = initial_backbone(str(half_run), pixels=CLIP)
    assert given.pixels == CLIP


def test_a_resumed_run_keeps_its_statistics(scenes: Path, tmp_path: Path) -> None:
    values = SET | {"optim.steps": 3}
    whole = pretrain(small_config(scenes, tmp_path / "whole", "resnet18", **values)).path
    again = small_config(scenes, tmp_path / "parts", "resnet18", **{"optim.steps": 1})
    pretrain(again.with_values(SET))
    rest = {"run.resume": True, "run.allow_changes": True, "optim.steps": 3}
    pretrain(again.with_values(rest))  # without the statistics, as they are stored
    changed = again.with_values(rest | {"run.allow_changes": False, "data.mean": CLIP.mean, "data.std": CLIP.std})
    with pytest.raises(RunError, match=r"data\.mean: stored \(0\.5, 0\.5, 0\.5\), now \(0\.48145466"):
        pretrain(changed)
    assert Config.load(tmp_path / "parts" / "config.toml").data.pixels == HALF
    assert final_weights_equal(whole, tmp_path / "parts")


def final_weights_equal(a: Path, b: Path) -> bool:
    first, second = (read_weights(next((run / "checkpoints").glob("*3.pt"))).state for run in (a, b))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("backbone", "metadata", "expected", "source"),
    [
        ("resnet18", {}, IMAGENET, "ImageNet"),
        ("timm:test_resnet", {}, HALF, "timm's configuration of test_resnet"),
        ("timm:vit_tiny_patch16_224", {}, HALF, "timm's configuration of vit_tiny_patch16_224"),
        ("timm:vit_base_patch16_clip_224.openai", {}, CLIP, "timm's configuration of vit_base_patch16_clip_224.openai"),
        ("timm:resnet18", {}, IMAGENET, "timm's configuration of resnet18"),
        ("timm:no_such_network", {}, IMAGENET, "ImageNet"),
        ("timm:test_resnet", {"plrc_version": "0.1.0", "format": "pt"}, IMAGENET, "w"),  # an export without them
        ("timm:test_resnet", {"config": {"data": {"source": "x"}, "objectives": {}}}, IMAGENET, "w"),
        ("timm:test_resnet", {"config": {"data": {"mean": [], "std": []}, "objectives": {}}}, IMAGENET, "w"),
        ("resnet18", {"config": {"data": {"mean": [0.5] * 3, "std": [0.5] * 3}}}, HALF, "w"),
        ("resnet18", {"pixel_mean": "[0.5, 0.5, 0.5]", "pixel_std": "[0.5, 0.5, 0.5]"}, HALF, "w"),
        ("timm:test_resnet", IMAGENET.metadata(), IMAGENET, "w"),
        ("resnet18", {"meta": HALF.metadata()}, HALF, "w"),
    ],
)
def test_statistics_of_start_weights(
    backbone: str, metadata: dict[str, Any], expected: PixelStatistics, source: str
) -> None:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    assert start_pixels(backbone, metadata, "w") == (expected, source)


@pytest.mark.parametrize("mean", ["[0.5, 0.5]", "half", "[123.675, 116.28, 103.53]", "3"])
def test_a_file_with_statistics_that_cannot_be_used_is_refused(mean: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    state = build_backbone("resnet18").net.state_dict()
    safetensors.torch.save_file(state, file, {"pixel_mean": mean, "pixel_std": "[0.5, 0.5, 0.5]"})
    with pytest.raises(WeightsError, match=r"^the pixel statistics in .*w\.safetensors cannot be used: "):
        initial_backbone(str(file), "resnet18")


def test_a_warm_start_honours_timms_configuration(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    backbone = "timm:test_resnet"  # timm: mean and std 0.5
    file = tmp_path / "given.safetensors"
    safetensors.torch.save_file(build_backbone(backbone).net.state_dict(), file)
    values = {"model.init": str(file), "optim.steps": 1, "model.layer4_stride": 2}
    run = pretrain(small_config(scenes, tmp_path / "run", backbone, **values)).path
    line = "pixels are normalized with mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (timm's configuration of test_resnet)"
    assert line in (run / "log.txt").read_text()
    assert Config.load(run / "config.toml").data.pixels == HALF
    assert initial_backbone(str(run))[0].pixels == HALF

    own = values | {"data.mean": IMAGENET.mean, "data.std": IMAGENET.std}
    run = pretrain(small_config(scenes, tmp_path / "own", backbone, **own)).path
    line = f"pixels are normalized with {IMAGENET} (as you set; timm's configuration of test_resnet says {HALF})"
    assert line in (run / "log.txt").read_text()
    assert initial_backbone(str(run))[0].pixels == IMAGENET  # the run says it, so timm's configuration does not count

    random = pretrain(small_config(scenes, tmp_path / "random", backbone, **(values | {"model.init": ""}))).path
    assert "pixels are normalized" not in (random / "log.txt").read_text()
    assert initial_backbone(str(random))[0].pixels == IMAGENET

    values["model.init"] = str(tmp_path / "own")  # a warm start from a run has the run's statistics
    run = pretrain(small_config(scenes, tmp_path / "second", backbone, **values)).path
    assert Config.load(run / "config.toml").data.pixels == IMAGENET


def test_a_frozen_teacher_sees_the_statistics_of_its_weights(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    backbone = "timm:test_resnet"
    file = tmp_path / "given.safetensors"
    safetensors.torch.save_file(build_backbone(backbone).net.state_dict(), file)
    values = {"teacher.kind": "frozen", "teacher.backbone": backbone, "teacher.init": str(file), "teacher.size": 64}
    run = pretrain(small_config(scenes, tmp_path / "run", "resnet18", **values)).path
    log = (run / "log.txt").read_text()
    assert f"pixels of the frozen teacher are normalized with {HALF}" in log
    assert Config.load(run / "config.toml").data.pixels == IMAGENET  # the student has its own
    own = values | {"teacher.mean": IMAGENET.mean, "teacher.std": IMAGENET.std}
    other = pretrain(small_config(scenes, tmp_path / "own", "resnet18", **own)).path
    assert "pixels of the frozen teacher" not in (other / "log.txt").read_text()
    assert metrics(run)[0]["frozen_loss"] != metrics(other)[0]["frozen_loss"]
    assert [path.name for path in run.glob("teacher/*.features")] != [
        path.name for path in other.glob("teacher/*.features")
    ]
