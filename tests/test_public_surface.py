"""The names that users and other tests rely on. A change here is a change of the interface: note it in CHANGELOG.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

import plrc
from plrc import cli, objectives
from plrc.cli.commands import COMMANDS
from plrc.cli.export import ExportOptions
from plrc.export import TARGETS
from plrc.presets import PRESETS, preset
from plrc.progress import ignore_progress
from plrc.transfer.presets import PROTOCOLS, protocol

FLAGS = """
--help --preset --method --config --seed --adapt --no-adapt --data --out --resume --no-resume --devices
--data.source --data.layout --data.split --data.exclude --data.held-out --data.rescale-percentiles --data.max-megapixels
--data.group --data.pages --data.max-unreadable-fraction --data.channels --data.mean --data.std
--views.size --views.tiles --views.scale --views.ratio --views.flip-prob --views.overlap --views.overlap-tries
--views.jitter-prob --views.brightness --views.contrast --views.saturation --views.hue --views.gray-prob
--views.blur-prob --views.blur-sigma --views.teacher-color --views.no-teacher-color
--regions.source --regions.grid --regions.count --regions.scale --regions.maps --regions.map-size --regions.merge
--regions.split --regions.jitter --regions.reassign
--model.backbone --model.strides --model.layer4-stride --model.init --model.trainable-stages
--model.contrast-hidden --model.contrast-dim
--model.distill-hidden --model.distill-dim --model.bn-groups --model.sync-bn --model.no-sync-bn
--teacher.kind --teacher.backbone --teacher.init --teacher.stride --teacher.size --teacher.components --teacher.form
--teacher.cache --teacher.cache-gigabytes --teacher.mean --teacher.std
--objectives.image-weight --objectives.point-weight --objectives.distill-weight --objectives.frozen-weight
--objectives.image-temperature
--objectives.point-temperature --objectives.student-temperature --objectives.teacher-temperature
--objectives.teacher-temperature-start --objectives.temperature-warmup --objectives.queue --objectives.negatives
--objectives.contrast --objectives.points --objectives.distill-points --objectives.reference-grid --objectives.center
--objectives.no-center
--optim.name --optim.lr --optim.layer-decay
--optim.base-batch-size --optim.momentum --optim.weight-decay --optim.batch-size
--optim.gradient-accumulation-steps
--optim.epochs --optim.steps --optim.hours --optim.clock --optim.warmup-epochs --optim.max-grad-norm
--optim.teacher-momentum
--optim.teacher-schedule
--optim.precision --optim.channels-last --optim.no-channels-last --optim.compile --optim.no-compile
--run.out --run.resume --run.no-resume --run.allow-changes --run.cache --run.no-allow-changes --run.device --run.devices
--run.workers --run.threads --run.log-every-steps --run.loggers --run.health-every-steps --run.checkpoint-every-steps
--run.keep-checkpoints --run.stop-on-collapse --run.no-stop-on-collapse --run.report-every-minutes --run.stall-seconds
"""

TRANSFER = """
--detector --model.detector --model.queries --model.decoder-layers --optim.optimizer
--optim.gradient-accumulation-steps --optim.backbone-lr-factor
--help --preset --config --data --out --resume --no-resume --schedule --partial --no-partial --evaluations
--data.source --data.layout --data.train --data.val --data.test --data.fraction --data.shots --data.merge-classes
--data.group --data.no-merge-classes --data.test-fraction --data.unlabelled --data.four-point-polygons
--data.no-four-point-polygons --data.difficult --data.no-difficult --data.channels --data.mean --data.std
--data.max-megapixels --data.rescale-percentiles
--input.train-size --input.test-size --input.max-size --input.crop --input.flip-prob
--model.backbone --model.neck --model.norm --model.head-norm --model.trainable-layers --model.width --model.min-stride
--model.hidden --model.rois-per-image --model.proposals --model.anchors --model.dilation --model.layer4-dilation
--optim.lr --optim.batch-size --optim.steps --optim.schedule --optim.lr-milestones --optim.warmup-steps --optim.momentum
--optim.weight-decay --optim.norm-decay --optim.max-grad-norm --optim.precision
--run.out --run.resume --run.no-resume --run.device --run.workers --run.threads --run.log-every-steps
--run.checkpoint-every-steps --run.keep-model --run.no-keep-model
"""

PAPER = {  # METHOD section 4, and the objectives' settings of section 3
    "model.backbone": "resnet50",
    "model.strides": (32,),
    "model.layer4_stride": 2,
    "model.bn_groups": 8,
    "model.contrast_hidden": 2048,
    "model.contrast_dim": 128,
    "model.distill_hidden": 2048,
    "model.distill_dim": 256,
    "views.size": 224,
    "views.scale": (0.2, 1.0),
    "views.ratio": (3 / 4, 4 / 3),
    "views.flip_prob": 0.5,
    "views.overlap": 0.5,
    "views.overlap_tries": 100,
    "views.jitter_prob": 0.8,
    "views.brightness": 0.4,
    "views.contrast": 0.4,
    "views.saturation": 0.4,
    "views.hue": 0.1,
    "views.gray_prob": 0.2,
    "views.blur_prob": 0.5,
    "views.blur_sigma": (0.1, 2.0),
    "views.teacher_color": True,
    "regions.source": "grid",
    "regions.grid": 4,
    "optim.name": "sgd",
    "optim.lr": 0.03,
    "optim.base_batch_size": 256,
    "optim.batch_size": 256,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.epochs": 100.0,
    "optim.steps": 0,
    "optim.hours": 0.0,
    "optim.clock": "wall",
    "optim.warmup_epochs": 0.0,
    "optim.max_grad_norm": 0.0,
    "optim.teacher_momentum": 0.999,
    "optim.teacher_schedule": "constant",
    "objectives.image_weight": 0.7,
    "objectives.point_weight": 0.3,
    "objectives.distill_weight": 0.3,
    "objectives.image_temperature": 0.2,
    "objectives.point_temperature": 0.2,
    "objectives.student_temperature": 0.1,
    "objectives.teacher_temperature_start": 0.04,
    "objectives.teacher_temperature": 0.07,
    "objectives.temperature_warmup": 0.3,
    "objectives.queue": 65536,
    "objectives.points": 256,
    "objectives.distill_points": 256,
    "objectives.reference_grid": 56,
    "objectives.center": False,
    "adapt": True,
}


def test_the_package() -> None:
    assert plrc.__all__ == [
        "Comparison",
        "Config",
        "ConfigError",
        "DataError",
        "ExportError",
        "LayoutError",
        "MissingPackageError",
        "PlrcError",
        "Run",
        "RunError",
        "WeightsError",
        "compare_weights",
        "export_backbone",
        "export_detector",
        "load_backbone",
        "load_detector",
        "objectives",
        "predict",
        "preset",
        "pretrain",
        "protocol",
    ]
    assert plrc.__version__ == version("plrc-pretrain")
    for name in plrc.__all__:
        assert getattr(plrc, name) is not None
    assert plrc.objectives is objectives
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        plrc.train  # noqa: B018


def parameters(function: Callable[..., object]) -> dict[str, object]:
    """{parameter: default}; those without one have the value `inspect.Parameter.empty`."""
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


REQUIRED = inspect.Parameter.empty


def test_functions() -> None:
    assert parameters(plrc.pretrain) == {"config": REQUIRED, "on_progress": None}
    assert parameters(plrc.compare_weights) == {
        "config": REQUIRED,
        "inits": REQUIRED,
        "fractions": (1.0,),
        "shots": (),
        "seeds": 5,
        "lrs": (),
        "processes": 1,
    }
    assert parameters(plrc.protocol) == {"name": REQUIRED, "task": REQUIRED}
    assert parameters(plrc.load_backbone) == {
        "path": REQUIRED,
        "layer4_stride": 2,
        "backbone": "",
        "normalize": False,
        "dtype": torch.float32,
        "device": "cpu",
        "channels_last": False,
    }
    export = {"run": REQUIRED, "target": "torchvision", "out": None, "backbone": "", "into": None}
    assert parameters(plrc.export_backbone) == export
    assert parameters(plrc.export_detector) == {"run": REQUIRED, "out": None, "backbone": ""}
    assert parameters(plrc.load_detector) == {"run": REQUIRED, "device": "auto", "backbone": ""}
    assert parameters(plrc.predict) == {
        "run": REQUIRED,
        "images": REQUIRED,
        "out": REQUIRED,
        "png": None,
        "score_threshold": None,
        "device": "auto",
        "backbone": "",
        "on_progress": ignore_progress,
    }
    assert parameters(plrc.preset) == {"name": REQUIRED, "method": "plrc"}
    assert list(get_type_hints(plrc.Run)) == ["path", "step", "finished", "health"]


def test_objectives() -> None:
    assert parameters(objectives.image_contrast) == {
        "query": REQUIRED,
        "key": REQUIRED,
        "queue": REQUIRED,
        "temperature": 0.2,
    }
    assert parameters(objectives.point_region_contrast) == {
        "query": REQUIRED,
        "keys": REQUIRED,
        "query_regions": REQUIRED,
        "key_regions": REQUIRED,
        "temperature": 0.2,
        "backend": "auto",
    }
    assert parameters(objectives.affinity_distillation) == {
        "student": REQUIRED,
        "teacher": REQUIRED,
        "reference": REQUIRED,
        "student_temperature": 0.1,
        "teacher_temperature": 0.07,
        "center": None,
        "valid": None,
        "backend": "auto",
    }
    assert {"auto", "dense", "fused"} <= set(get_args(objectives.Backend))


def test_commands() -> None:
    assert " ".join(COMMANDS) == (
        "demo doctor scan shard regions pretrain export verify transfer predict compare study visualize"
    )


def test_flags_of_pretrain(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--help"]) == 0
    assert set(re.findall(r"--[a-z0-9_.-]*[a-z0-9]", capsys.readouterr().out)) == set(FLAGS.split())


def flags(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    assert cli.main([*arguments, "--help"]) == 0
    return set(re.findall(r"(?<![\w-])--[a-z0-9_.-]*[a-z0-9]", capsys.readouterr().out))


@pytest.mark.parametrize("task", ["detection", "instances", "semantic"])
def test_flags_of_transfer(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flags(["transfer", task], capsys) == {*TRANSFER.split(), "--init", "--seed"}


def test_flags_of_the_probe_and_of_compare(capsys: pytest.CaptureFixture[str]) -> None:
    probe = "--help --data --init --out --backbone --layout --size --images --seeds --channels --mean --std"
    probe += " --max-megapixels --rescale-percentiles"
    splits = "--train --test --test-fraction --group --fraction --unlabelled --four-point-polygons"
    splits += " --no-four-point-polygons"
    assert flags(["transfer", "probe"], capsys) == {*probe.split(), *splits.split()}
    grid = "--task --init --fractions --shots --seeds --lrs --processes"
    single = "--data.fraction --data.shots --optim.lr --resume --no-resume --run.resume --run.no-resume"
    assert flags(["compare"], capsys) == {*TRANSFER.split(), *grid.split()} - {*single.split()}


def test_protocols() -> None:
    assert list(PROTOCOLS) == [
        "voc_c4_24k",
        "coco_c4_1x",
        "coco_fpn_1x",
        "coco_rt_detr",
        "coco_rt_detr_v2",
        "coco_d_fine",
        "coco_rf_detr",
        "cityscapes_instances",
        "cityscapes_semantic",
        "voc_semantic",
        "small_detection",
        "small_rt_detr",
        "small_rt_detr_v2",
        "small_d_fine",
        "small_rf_detr",
        "small_instances",
        "small_semantic",
    ]
    voc = protocol("voc_c4_24k", "detection").flat()
    expected = {
        "optim.steps": 24_000,
        "optim.batch_size": 16,
        "optim.lr": 0.02,
        "input.train_size": (480.0, 800.0),
        "input.test_size": 800.0,
        "model.neck": "c4",
        "data.train": "trainval07+12",
        "data.test": "test07",
        "model.norm": "sync",
        "model.head_norm": "sync",
        "model.trainable_layers": 5,
    }
    assert {name: voc[name] for name in expected} == expected


def test_flags_of_the_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "demo": "--out --steps",
        "doctor": "",
        "scan": "--layout --split --exclude --channels --workers --pages --max-megapixels",
        "export": "--to --out --backbone --into",
        "verify": "--out",
        "predict": "--images --out --png --score-threshold --backbone --device",
        "study": "--out --show --no-show --plot --metric",
        "visualize": "--images --out --with --stride --size --width --steps --limit --samples --megabytes --png "
        "--points --backbone --device",
        "shard": "--out --layout --split --exclude --channels --maps --megabytes",
    }
    for command, flags in expected.items():
        assert cli.main([command, "--help"]) == 0
        written = set(re.findall(r"--[a-z0-9_.-]*[a-z0-9]", capsys.readouterr().out))
        assert written == {"--help", *flags.split()}


def test_flags_of_regions(capsys: pytest.CaptureFixture[str]) -> None:
    shared = {flag for flag in FLAGS.split() if flag.startswith(("--help", "--seed", "--data", "--regions."))}
    shared -= {"--data.group", "--data.held-out", "--data.max-unreadable-fraction", "--data.mean", "--data.std"}
    own = {"preview": "--out --images", "quality": "--truth --images", "precompute": "--out --workers"}
    for task, others in own.items():
        assert flags(["regions", task], capsys) == {*shared, *others.split()}


def test_export_targets() -> None:
    assert get_args(get_type_hints(ExportOptions)["to"]) == tuple(TARGETS)


def test_presets() -> None:
    assert list(PRESETS) == [
        "paper_r50", "coco_r50", "small_r18", "debug_cpu", "distill_r18", "distill_r50", "adapt"
    ]  # fmt: skip
    assert {name: preset(name).preset for name in PRESETS} == {name: name for name in PRESETS}


def test_the_papers_recipe() -> None:
    flat = preset("paper_r50").flat()
    assert {name: flat[name] for name in PAPER} == PAPER
    assert "AP 58.2, AP50 82.7, AP75 65.1" in (PRESETS["paper_r50"].__doc__ or "")


def test_the_recipe_on_coco_differs_only_in_its_length() -> None:
    differences = preset("coco_r50").differences(preset("paper_r50"))
    assert differences == [("optim.epochs", 800.0, 100.0), ("preset", "coco_r50", "paper_r50")]


@pytest.mark.parametrize("name", PRESETS)
def test_methods_are_weights_of_terms_and_nothing_else(name: str) -> None:
    whole = preset(name)
    for method, changed in {"image": ("image", "point", "distill"), "points": ("distill",)}.items():
        differences = {key: value for key, value, _ in preset(name, method).differences(whole)}
        image = {"objectives.image_weight": 1.0} if method == "image" else {}
        zeros = {f"objectives.{term}_weight": 0.0 for term in changed if term != "image"}
        expected = {"method": method} | image | zeros
        assert differences == {key: value for key, value in expected.items() if value != whole.flat()[key]}


def test_no_text_names_the_package_of_a_stranger() -> None:
    """On the public registry "plrc" belongs to somebody else, and this distribution is not published there."""
    root = Path(__file__).parents[1]
    folders = ("src", "docs", "tests", "examples", "benchmarks", "studies")
    files = [root / "README.md"]
    for folder in folders:
        files += [
            path for path in (root / folder).rglob("*") if path.suffix in (".py", ".md", ".sh", ".toml", ".j2", ".html")
        ]
    asked_to_install = re.compile(r"pip install[^\n|&;]*\bplrc\b|\bplrc(-pretrain)?\[(?!\^)")
    assert len(files) > 100
    assert [str(path) for path in files if asked_to_install.search(path.read_text(encoding="utf-8"))] == []
