"""docs/HANDOVER.md does what it says: each recipe's commands and code are taken from the page and run."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import save_detector
from tests.export.runs import names, saved_run

from plrc.cli import main
from plrc.export import TARGETS
from plrc.export.targets import mmdetection
from plrc.model import build_backbone

PAGE = (Path(__file__).parents[2] / "docs" / "HANDOVER.md").read_text(encoding="utf-8")
FEWER = "--optim.steps 1 --optim.batch-size 8 --model.bn-groups 2 --views.size 32 --run.workers 0 --run.device cpu"


def blocks(recipe: str) -> dict[str, str]:
    """{language: text} of the blocks of a recipe."""
    _, found, rest = PAGE.partition(f"<!-- recipe: {recipe} -->\n")
    assert found, recipe
    section = re.split(r"\n## |\n<!-- recipe", rest)[0]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL))


def follow(recipe: str, more: str = "") -> Path | None:
    """Write the recipe's Python file under the name that its first line gives, then run its commands, in order."""
    found, file = blocks(recipe), None
    if "python" in found:
        head = re.match(r"# (\w+\.py)\n", found["python"])
        file = Path(head[1] if head else f"{recipe}.py")
        file.write_text(found["python"])
    for line in found.get("bash", "").splitlines():
        program, verb, *options = shlex.split(line)
        assert program == "plrc"
        if verb == "export" and "--to" in options and options[options.index("--to") + 1] not in TARGETS:
            pytest.skip(f"this version exports to {', '.join(TARGETS)} only")
        assert main([verb, *options, *(shlex.split(more) if verb == "pretrain" else [])]) == 0, line
    return file


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """runs(name, backbone) -> the run folder runs/NAME in the working folder, BatchNorm with statistics of its own."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, backbone: str) -> Path:
        torch.manual_seed(0)
        net = build_backbone(backbone)
        with torch.no_grad():
            net.train()(torch.randn(4, 3, 64, 64) + 1)
        return saved_run(Path("runs") / name, names(net), backbone=backbone)

    return make


def receipt(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{file}.receipt.json").read_text())
    return found


def test_torchvision(runs: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    runs("first", "resnet18")
    file = follow("torchvision")
    assert "100 of 100 tensors" in capsys.readouterr().out
    detector = runpy.run_path(str(file))["build"]()
    detector.transform.min_size, detector.transform.max_size = (96,), 96
    target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([3])}
    losses = detector([torch.rand(3, 96, 96), torch.rand(3, 96, 96)], [target, target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert float(detector.backbone.body.conv1.weight.grad.abs().max()) > 0  # the first layer is trained too
    assert detector.transform.image_mean == receipt("backbone.safetensors")["settings"]["mean"]


def test_transformers(runs: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs the extra transformers")
    runs("first", "resnet18")
    file = follow("transformers")
    assert "100 of 100 tensors" in capsys.readouterr().out
    detector = runpy.run_path(str(file))["build"]()
    target = {"class_labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}
    found = detector(torch.randn(1, 3, 64, 64), labels=[target])
    assert torch.isfinite(found.loss) and found.logits.shape[2] == 21


@pytest.mark.parametrize(
    ("recipe", "kind", "folder"), [("dfine", "d_fine", "my-d-fine"), ("rtdetr", "rt_detr_v2", "my-rt-detr")]
)
def test_detectors_of_transformers(
    recipe: str,
    kind: str,
    folder: str,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("transformers", reason="needs the extra transformers")
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(scenes)
    save_detector(kind, Path(folder))
    file = follow(recipe, FEWER.replace("--views.size 32", "--views.size 64"))
    assert re.search(r"(\d+) of \1 tensors", capsys.readouterr().out)
    detector = runpy.run_path(str(file))["build"]()
    target = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}
    output = detector(torch.rand(1, 3, 96, 96), labels=[target])
    assert torch.isfinite(output.loss)


def test_timm(runs: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    runs("timm", "timm:resnet10t")
    file = follow("timm")
    assert re.search(r"(\d+) of \1 tensors", capsys.readouterr().out)
    with torch.no_grad():
        maps = runpy.run_path(str(file))["build"]().eval()(torch.rand(1, 3, 64, 64))
    assert [found.shape[2] for found in maps] == [32, 16, 8, 4, 2]


def test_a_backbone_of_ones_own(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(scenes)
    follow("own", FEWER)
    assert "18 of 18 tensors" in capsys.readouterr().out
    card = Path("own.safetensors.card.md").read_text()
    assert "my_net.py:build" in card
    assert "Layers after stride 16, where the network has any, were not trained." in card  # this one has none


def test_features_in_python(runs: Callable[[str, str], Path]) -> None:
    runs("first", "resnet18")
    values = runpy.run_path(str(follow("python")))
    assert torch.allclose(values["close"].float(), values["levels"][8], atol=0.2, rtol=0.1)


def test_detectron2s_settings_are_those_of_the_receipt(runs: Callable[[str, str], Path]) -> None:
    """Everything that the receipt says to set, under the same key and with the same value."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    runs("first", "resnet18")
    follow("detectron2")
    config = yaml.safe_load(blocks("detectron2")["yaml"])
    told = [line.partition(": ") for line in receipt("detectron2.pth")["settings"]["set"]]
    keys = [(key, value) for line in told for key, value in [(line[0], line[2])] if re.fullmatch(r"[A-Z0-9_.]+", key)]
    assert {"MODEL.PIXEL_MEAN", "INPUT.FORMAT", "MODEL.RESNETS.STRIDE_IN_1X1"} <= {k for k, _ in keys}
    for key, value in keys:
        written = config
        for part in key.split("."):
            written = written[part]
        first = re.split(r" \(| or |, ", value)[0] if not value.startswith("[") else value
        wanted = "detectron2.pth" if first == "FILE" else yaml.safe_load(first)
        assert written == wanted, key
    assert config["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0
    state = torch.load("detectron2.pth", weights_only=True)["model"]
    assert state["stem.conv1.weight"].shape[0] == config["MODEL"]["RESNETS"]["RES2_OUT_CHANNELS"]


def test_mmdetections_configuration_is_that_of_the_export(runs: Callable[[str, str], Path]) -> None:
    runs("first", "resnet18")
    file = follow("mmdetection")
    config = runpy.run_path(str(file))
    model, found = config["model"], receipt("mmdetection.pth")["settings"]
    ours = model["backbone"]
    usual = mmdetection.backbone_config("resnet18")
    for key, value in usual.items():
        if key in ours and key != "norm_cfg":
            assert ours[key] == value, key
    assert {"depth", "frozen_stages", "norm_eval", "style"} <= ours.keys() & usual.keys()
    assert ours["norm_cfg"]["requires_grad"] is True
    assert (model["data_preprocessor"]["mean"], model["data_preprocessor"]["std"]) == (found["mean"], found["std"])
    assert model["data_preprocessor"]["bgr_to_rgb"] is True
    saved = torch.load(ours["init_cfg"]["checkpoint"], weights_only=True)["state_dict"]
    widths = [saved[f"layer{stage}.1.bn2.weight"].numel() for stage in range(1, 5)]
    assert widths == model["neck"]["in_channels"]


def test_every_recipe_on_the_page_is_one_of_these() -> None:
    found = re.findall(r"<!-- recipe: (\w+) -->", PAGE)
    assert found == [
        "torchvision",
        "transformers",
        "dfine",
        "rtdetr",
        "timm",
        "detectron2",
        "mmdetection",
        "own",
        "python",
    ]
