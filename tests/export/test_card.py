"""The model card: filled from the run, names escaped, no private path, and a warning where weights may not be free."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from tests.checkpoints import save_detector
from tests.export.runs import names, saved_run

import plrc
from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint
from plrc.engine.provenance import RANDOM, start_of
from plrc.export import export_backbone
from plrc.export.card import card_path
from plrc.model import build_backbone


def cards(run: Path) -> str:
    return (run / "exported" / "backbone.safetensors.card.md").read_text(encoding="utf-8")


def test_a_card_lies_beside_every_export_and_is_filled_from_the_run(trained_run: plrc.Run, scenes: Path) -> None:
    run = trained_run
    card, manifest = cards(run.path), json.loads((run.path / "manifest.json").read_text())
    receipt = json.loads((run.path / "exported" / "backbone.safetensors.receipt.json").read_text())
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in metrics if line["kind"] == "train"][-1]
    for title in ("Training data", "Recipe", "Results", "Intended use and limits", "Starting weights and licence"):
        assert f"\n## {title}\n\n" in card
    for row in (
        "| training images | `44` |",
        "| held out for health checks | `4` |",
        "| kind of source | `folder` |",
        f"| SHA-256 of names and sizes | `{manifest['sha256']}` |",
        "| steps | `2` |",
        "| images seen | `16 (8 per step)` |",
        "| preset | `debug_cpu` |",
        "- `optim.lr`: `0.002` (preset: `0.001`)",
        *(f"| {term}_loss | `{last[f'{term}_loss']:.4f}` |" for term in ("image", "point", "distill")),
        f"| sha256 | `{receipt['sha256']}` |",
        f"| tensors | `{receipt['tensors']}` |",
        f"| mean | `{receipt['settings']['mean']}` |",
        f"- `{receipt['settings']['set'][0]}`",
        f"| torchvision, at export | `{torchvision.__version__}` |",
        f"| feature_std | `{run.health[0].feature_std:.3f} -> {run.health[-1].feature_std:.3f}` |",
        "| level that was trained | `stride 32, with layer4 at stride 1 (the same tensors as at stride 2)` |",
        "Random initial weights: no licence of others is inherited from them.",
    ):
        assert row in card, row
    assert "Warning" not in card and "not finished" not in card
    for private in (str(scenes), str(run.path), str(Path.home())):
        assert private not in card


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., str]:
    """exported(folder, **dotted settings) -> the card of a run of these settings, which lies in that folder."""
    net = build_backbone("resnet18")
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 64, 64))

    def export(folder: str, **settings: object) -> str:
        run = saved_run(tmp_path / folder, names(net))
        file = run / "checkpoints" / "step_00000007.pt"
        saved = load_checkpoint(file)
        config = Config.from_dict(saved["config"]).with_values({k.replace("__", "."): v for k, v in settings.items()})
        config.save(run / "config.toml")
        torch.save(saved | {"config": config.to_dict()}, file)
        export_backbone(run)
        return cards(run)

    return export


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("resnet18-f37072fd.pth", "images of ImageNet are licensed for non-commercial research only"),
        ("PLRC_resnet18.pth", "`facebookresearch/PLRC`: that is CC-BY-NC 4.0"),
        ("mobilenetv3_small_100.lamb_in1k.safetensors", "images of ImageNet are licensed for non-commercial research"),
        ("mine.pth", "plrc does not know their licence"),
    ],
)
def test_starting_weights_that_may_not_be_free_are_warned_of(
    name: str, warned: str, exported: Callable[..., str]
) -> None:
    card = exported("run", model__init=f"/home/private place/{name}")
    assert "**Warning: these starting weights may not be free for your use.**" in card
    assert f"Started from `{name}`." in card
    assert warned in " ".join(card.split())
    assert "private place" not in card
    assert "no readable manifest beside this checkpoint" in card


@pytest.mark.slow
def test_the_start_of_a_start_is_followed(exported: Callable[..., str], tmp_path: Path) -> None:
    init = "elsewhere/resnet18-f37072fd.pth"
    exported("first", model__init=init)
    file = str(tmp_path / "first" / "exported" / "backbone.safetensors")
    card = exported("second", model__init=file)
    assert start_of(str(tmp_path / "second"), {}) == [str(tmp_path / "second"), file, init]
    assert "Started from `backbone.safetensors`, which started from `resnet18-f37072fd.pth`." in card
    assert "**Warning" in card
    assert "**Warning" not in exported("free")
    card = exported("third", model__init=str(tmp_path / "free" / "checkpoints" / "step_00000007.pt"))
    assert start_of(str(tmp_path / "free"), {}) == [str(tmp_path / "free"), RANDOM]
    assert "which started from `random weights`" in card and "Warning" not in card
    card = exported("turns", model__init=str(tmp_path / "turns"))
    assert "Started from `turns`." in card  # a run that names itself ends the search, and is no proof of freedom
    assert "**Warning" in card


def test_the_frozen_teacher_is_named_and_warned_of(exported: Callable[..., str], tmp_path: Path) -> None:
    frozen = {"teacher__kind": "frozen", "teacher__backbone": "timm:tf_efficientnet_lite0"}
    receipt = {"file": "/home/private place/lite0.pth", "sha256": "f" * 64, "content_sha256": "0123456789abcdef"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "teacher.json").write_text(json.dumps(receipt))
    card = exported(
        "run", **frozen, teacher__init="/home/private place/lite0.pth", teacher__cache="/home/private place/cache"
    )
    assert "Random initial weights: no licence of others is inherited from them." in card
    assert (
        "a frozen teacher: `timm:tf_efficientnet_lite0` with the weights `lite0.pth` (SHA-256 of the tensors "
        "`0123456789ab`).\n\n**Warning: the weights of this teacher may not be free for your use.** plrc does not know"
    ) in card
    assert "private place" not in card
    card = exported("second", model__init=str(tmp_path / "run"))  # what an earlier run learned is followed
    assert "**Warning: these starting weights" not in card
    assert "An earlier run, `run`, learned from the features of a frozen teacher" in card
    assert "**Warning: the weights of this teacher may not be free for your use.**" in card
    free = frozen | {"teacher__backbone": "resnet18", "teacher__init": str(tmp_path / "free")}
    exported("free")
    card = exported("third", **free)
    assert "weights `free`, which started from `random weights`. No licence of others is inherited" in card
    assert "**Warning" not in card


@pytest.mark.parametrize("target", ["safetensors", "transformers"])
def test_the_folder_of_a_detector_is_not_published(target: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra transformers")
    folder = save_detector("d_fine", tmp_path / "private place" / "my-d-fine")
    backbone = f"transformers:{folder}"
    run = saved_run(tmp_path / "run", names(build_backbone(backbone)), backbone=backbone)
    receipt = export_backbone(run, target)
    assert receipt.backbone == backbone
    card = card_path(Path(receipt.file)).read_text(encoding="utf-8")
    assert "| backbone | `my-d-fine` |" in card
    assert "private place" not in card


def test_the_folder_of_a_timm_network_is_not_published(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    folder = tmp_path / "private place" / "my-net"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": {}}))
    backbone = f"timm:local-dir:{folder}"
    run = saved_run(tmp_path / "run", names(build_backbone(backbone)), backbone=backbone)
    receipt = export_backbone(run, "timm")
    assert str(folder) in receipt.settings["set"][0]
    card = card_path(Path(receipt.file)).read_text(encoding="utf-8")
    assert "| backbone | `my-net` |" in card
    assert "private place" not in card


def test_an_anchor_is_warned_of_once(exported: Callable[..., str], tmp_path: Path) -> None:
    card = exported("run", teacher__kind="frozen", model__init="mine.pth")
    assert "`resnet18` with the weights `mine.pth`. They are the starting weights above." in card
    assert card.count("**Warning") == 1


def test_pretrained_weights_have_the_name_that_their_library_gives(
    exported: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    receipt = {"file": "timm's own weights timm/resnet18.a1_in1k", "content_sha256": "0123456789abcdef"}
    (tmp_path / "run" / "weights.json").write_text(json.dumps(receipt))
    card = exported("run", model__init="pretrained")
    licence = "images of ImageNet are licensed for non-commercial research only"
    assert "Started from `resnet18.a1_in1k` (SHA-256 of the tensors `0123456789abcdef`)." in card
    assert licence in card
    card = exported("second", model__init=str(tmp_path / "run"))
    assert "Started from `run`, which started from `resnet18.a1_in1k`." in card and licence in card
    card = exported("third", teacher__kind="frozen", teacher__backbone="resnet18", teacher__init=str(tmp_path / "run"))
    assert "weights `run`, which started from `resnet18.a1_in1k`" in card and licence in card
    (tmp_path / "run" / "weights.json").unlink()
    assert licence in exported("fourth", model__init=str(tmp_path / "run"))


def test_names_cannot_be_read_as_markdown(exported: Callable[..., str], tmp_path: Path) -> None:
    exported("run")
    name = "``a|b` [x](javascript:y) <img> # \n- c.safetensors"
    export_backbone(tmp_path / "run", out=tmp_path / name)
    card = card_path(tmp_path / name).read_text()
    assert card.splitlines()[0] == "# Model card: ``` ``a|b` [x](javascript:y) <img> # - c.safetensors ```"
    assert r"| file | ``` ``a\|b` [x](javascript:y) <img> # - c.safetensors ``` |" in card


def test_the_card_of_a_run_that_is_not_finished_says_so(exported: Callable[..., str]) -> None:
    card = exported("run", optim__steps=20, model__strides=(8,))
    assert "| level that was trained | `stride 8` |" in card
    assert "- Layers after stride 8 were not trained." in card
    assert "| steps | `7 of 20: the run is not finished` |" in card
    assert "- The run was not finished when this was exported." in card
    assert "not finished" not in exported("other", optim__steps=7)
