"""Initial weights: what the command line names, where weights come from, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.export.runs import names, saved_run

import plrc
from plrc.compare.inits import build_comparison, fingerprint, weights_origin
from plrc.compare.plan import ComparisonPlan
from plrc.errors import DataError, PlrcError, WeightsError
from plrc.model.backbone import build_backbone
from plrc.presets import preset
from plrc.scenes import write_scenes
from plrc.transfer.presets import protocol


def asked(weights: Path, *inits: str, **settings: object) -> ComparisonPlan:
    base = protocol("coco_fpn_1x", "detection")
    values = {"data.source": str(weights.with_name("labels")), "run.out": "out", "evaluations": 1, **settings}
    return build_comparison(base.with_values(values), inits, (1.0,), (), 3, (0.02, 0.01, 0.02), 1)


def test_what_the_command_line_takes(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    odd = weights.with_name("a=b,c.safetensors")
    odd.hardlink_to(weights)
    comparison = asked(weights, str(weights), "mine=theirs.safetensors,./theirs.safetensors", "random", odd.name)
    assert comparison.inits == {
        "random": ("random",),
        "theirs.safetensors": (str(weights),),
        "mine": ("theirs.safetensors", "./theirs.safetensors"),
        "a=b,c.safetensors": ("a=b,c.safetensors",),
    }
    assert next(iter(comparison.inits)) == "random"
    assert (comparison.lrs, comparison.out, comparison.seeds) == ((0.01, 0.02), Path("out"), 3)
    assert comparison.base.model.backbone == "resnet18"  # all inits share the backbone of the weights, also random


def test_weights_of_another_network_than_the_protocols_decide(weights: Path) -> None:
    base = protocol("small_detection", "detection")
    file = weights.with_name("resnet34.pt")
    torch.save(build_backbone("resnet34").net.state_dict(), file)
    values = {"data.source": str(weights.with_name("labels")), "run.out": "out"}
    comparison = build_comparison(base.with_values(values), [str(file)], (1.0,), (), 1, (0.01,), 1)
    assert comparison.base.model.backbone == "resnet34"


def test_a_comparison_names_the_none_that_it_does_not_use(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert asked(weights, str(weights)).base.data.val == ""  # the protocol's "none" is not the user's
        assert "--data.val none" not in caplog.text
        assert asked(weights, str(weights), **{"data.val": "none"}).base.data.val == ""
    assert "--data.val none is not used: a comparison chooses learning rates on validation images" in caplog.text


@pytest.mark.parametrize(
    ("inits", "settings", "message"),
    [
        (["{w}", "{w}"], {}, r"two of the initial weights are called theirs\.safetensors"),
        (["{w}", "theirs.safetensors"], {}, r"two of the initial weights are called theirs\.safetensors"),
        (["random={w}"], {}, "two of the initial weights are called random"),
        (["absent"], {}, "absent"),
        (["mine={w},"], {}, "names no weights; write random, pretrained"),
        (["={w}"], {}, "names no weights; write random, pretrained"),
        (["{w}"], {"model.backbone": "resnet50"}, "resnet18.*resnet50|resnet50.*resnet18"),
        (["{w}"], {"run.out": ""}, "write --out FOLDER"),
        (["{w}"], {"data.source": ""}, "write --data FOLDER"),
        ([], {}, "nothing to compare with random weights"),
    ],
)
def test_initial_weights_that_are_refused_before_anything_runs(
    inits: list[str], settings: dict[str, object], message: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    with pytest.raises(PlrcError, match=message):
        asked(weights, *(init.format(w=weights) for init in inits), **settings)


@pytest.mark.slow
def test_a_run_that_has_seen_test_images_is_refused(tmp_path: Path) -> None:
    """Two steps of real pre-training on the test images, and two on the training images."""
    write_scenes(tmp_path / "scenes", {"train": 8, "test": 8}, seed=0, size=64)
    runs = {}
    for split in ("test", "train"):
        given = {
            "data.source": str(tmp_path / "scenes" / split / "images"),
            "data.held_out": 0,
            "optim.steps": 2,
            "optim.batch_size": 4,
            "run.out": str(tmp_path / split),
            "run.workers": 0,
            "run.device": "cpu",
        }
        plrc.pretrain(preset("debug_cpu").with_values(given | {"model.bn_groups": 1}))
        runs[split] = str(tmp_path / split)
    base = protocol("small_detection", "detection").with_values(
        {"data.source": str(tmp_path / "scenes"), "run.out": str(tmp_path / "out")}
    )
    with pytest.raises(DataError, match=r"test was pre-trained on 8 of the 8 test images, such as .*--data\.exclude"):
        build_comparison(base, [runs["test"]], (1.0,), (), 1, (0.01,), 1)
    assert list(build_comparison(base, [runs["train"]], (1.0,), (), 1, (0.01,), 1).inits) == ["random", "train"]


def test_origins_and_fingerprints_of_initial_weights(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, ours, {"format": "plrc"})
    safetensors.torch.save_file({"a": torch.zeros(1)}, theirs)
    (tmp_path / "plain.pt").write_bytes(b"anything")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    inits = ["random", "torchvision", str(ours), str(theirs), str(tmp_path / "plain.pt"), str(run)]
    assert [weights_origin(init) for init in inits] == ["random", "torchvision", "plrc", "file", "file", "plrc"]
    with pytest.raises(WeightsError, match="holds no checkpoint; name the folder of a run that has saved one"):
        fingerprint(str(run))
    for step in ("step_00000010.pt", "step_00000020.pt"):
        (run / "checkpoints" / step).write_text(step)
    assert fingerprint(str(run)) == fingerprint(str(run / "checkpoints" / "step_00000020.pt"))


@pytest.mark.parametrize(
    ("target", "ending"),
    [
        ("torchvision", ".pt"),
        ("safetensors", ".pt"),
        ("detectron2", ".pth"),
        ("detectron2", ".pkl"),
        ("mmdetection", ".pth"),
    ],
)
def test_every_export_of_a_run_is_of_plrc(target: str, ending: str, tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", names(build_backbone("resnet18")))
    file = tmp_path / f"exported{ending}"
    plrc.export_backbone(run, target, file)
    (checkpoint,) = (run / "checkpoints").glob("*.pt")
    assert [weights_origin(str(path)) for path in (file, checkpoint)] == ["plrc", "plrc"]


def test_a_receipt_counts_for_its_own_file_only(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", names(build_backbone("resnet18")))
    ours = tmp_path / "ours.pt"
    plrc.export_backbone(run, "torchvision", ours)
    elsewhere = tmp_path / "elsewhere" / "ours.pt"
    elsewhere.parent.mkdir()
    shutil.copyfile(ours, elsewhere)
    assert weights_origin(str(elsewhere)) == "file"
    torch.save(build_backbone("resnet18").net.state_dict(), ours)
    assert weights_origin(str(ours)) == "file"
    for content in ("[]", "{", '{"sha256": 3}'):
        ours.with_name("ours.pt.receipt.json").write_text(content)
        assert weights_origin(str(ours)) == "file"
