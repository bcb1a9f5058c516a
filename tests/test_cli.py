"""The command line: every error ends in a sentence and an exit status, and the options arrive in the run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plrc.cli import main
from plrc.cli.commands import COMMANDS
from plrc.cli.pretrain import parse_config
from plrc.config import Config
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint
from plrc.errors import ConfigError
from plrc.export import load_backbone
from plrc.presets import PRESETS

TINY = """--preset debug_cpu --views.size 32 --optim.batch-size 8 --optim.steps 2 --model.bn-groups 2
    --model.contrast-hidden 16 --model.distill-hidden 16 --objectives.queue 16 --objectives.points 16
    --objectives.distill-points 16 --data.held-out 4 --run.device cpu --run.workers 0""".split()
Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: object) -> str:
    """The sentence that the command ends in, with exit status 2 and nothing else printed."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    sentence = re.fullmatch(r"plrc: (.+)\n", err)
    assert sentence, err
    return sentence[1]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# What needs no image

UNNAMED = (
    ("transfer detection --out x", "no labelled images named: write --data FOLDER"),
    ("transfer semantic --data x", "no folder for the result named: write --out FOLDER"),
    ("compare --task detection --init a --out x", "no labelled images named: write --data FOLDER"),
    ("compare --task detection --init a --data x", "no folder for the result named: write --out FOLDER"),
    ("compare --task detection --data x --out x", "no initial weights named: write --init RUN or --init FILE"),
)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("pretrian --data x", "there is no command 'pretrian'; did you mean plrc pretrain?"),
        (
            "pretrain",
            f"write --preset NAME ({', '.join(PRESETS)}) or --config FILE",
        ),
        ("pretrain --preset paper", "there is no preset 'paper'; write one of paper_r50, coco_r50"),
        ("pretrain --preset", "--preset: expected one argument; see: plrc pretrain --help"),
        (
            "pretrain --preset debug_cpu --method moco",
            "write one of image, pixel, region, points, plrc",
        ),
        ("pretrain --preset debug_cpu --optm.lr 3", "unknown option --optm.lr; did you mean --optim.lr?"),
        ("pretrain --preset debug_cpu --lr=3", "unknown option --lr; did you mean --optim.lr?"),
        ("pretrain --preset debug_cpu --batchsize 8", "did you mean --optim.batch-size?"),
        ("pretrain --preset debug_cpu --optim.learning-rate 1", "did you mean --optim.lr?"),
        ("transfer detection --learning-rate 1", "did you mean --optim.lr?"),
        ("transfer detection --optim.wd 1", "did you mean --optim.weight-decay?"),
        ("pretrain --preset debug_cpu --no-adopt", "did you mean --no-adapt?"),
        ("pretrain --preset debug_cpu --presett x", "did you mean --preset?"),
        ("pretrain --preset debug_cpu --dat x", "did you mean --data?"),
        ("pretrain --preset debug_cpu --optim.lr fast", "--optim.lr: invalid float value: 'fast'"),
        ("pretrain --preset debug_cpu --optim.lr", "--optim.lr: expected one argument"),
        (
            "pretrain --preset debug_cpu --optim.name adam",
            "--optim.name: invalid choice: 'adam' (choose from ",
        ),
        ("pretrain --preset debug_cpu --views.scale 0.5", "--views.scale: expected 2 arguments"),
        ("pretrain --preset debug_cpu --views.size 8", "views.size must be >= 16, got 8"),
        ("pretrain --preset debug_cpu --resume=yes", "ignored explicit argument 'yes'"),
        ("pretrain --preset debug_cpu photos", "unexpected argument 'photos'; see: plrc pretrain --help"),
        ("pretrain --config absent.toml", "cannot read the configuration absent.toml"),
        ("pretrain --preset debug_cpu --config", "--config: expected one argument"),
        ("pretrain --preset debug_cpu --data photos", "no run folder named: write --out FOLDER"),
        ("pretrain --preset debug_cpu --out x", "no images named: write --data FOLDER"),
        ("pretrain --preset debug_cpu --data absent/photos --out x", "absent/photos does not exist"),
        ("pretrain --out absent --resume", "there is no run in absent to resume; to start one, write"),
        ("scan", "plrc scan needs SOURCE; see: plrc scan --help"),
        ("scan absent", "absent does not exist"),
        ("scan . --splt test", "unknown option --splt; did you mean --split?"),
        ("scan . --workers many", "--workers: invalid int value: 'many'"),
        ("scan . --workers -2", "--workers must be >= 0 (0: one per core), got -2"),
        ("export . --to", "--to: expected one argument"),
        ("export . --to caffe", "--to: invalid choice: 'caffe' (choose from "),
        ("export .", "plrc export needs --to {torchvision,timm,"),
        ("export . --to torchvision", "holds no checkpoint; name the folder of a run that has saved one"),
        ("export absent --to torchvision", "no checkpoint at absent"),
        ("export . --check-in det.py:build", "now a command of its own: plrc verify RUN detector.py:build"),
        ("verify .", "plrc verify needs FILE:FUNCTION; see: plrc verify --help"),
        ("pretrain --preset debug_cpu --optim.lr_batch 8", "--optim.lr-batch is now called --optim.base-batch-size"),
        ("transfer detection --optim.iterations=9", "--optim.iterations is now called --optim.steps"),
        ("demo --steps 0", "--steps must be >= 1, got 0"),
        ("doctor --commandose", "unknown option --commandose"),
        ("compare --task detection --data.shots 3", "--data.shots is for a single run; a comparison takes --shots"),
        ("compare --task detection --optim.lr 3", "--optim.lr is for a single run; a comparison takes --lrs"),
        ("compare --task detection --resume", "a comparison continues when its command is repeated"),
        *UNNAMED,
    ],
)
def test_an_error_is_one_sentence(
    arguments: str, sentence: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


def test_a_complaint_is_one_sentence_on_any_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    complaint = refused(capsys, "pretrain", "--preset", "debug_cpu", "--optim.name", "adam")
    wanted = r"--optim.name: invalid choice: 'adam' \(choose from '?sgd'?, '?adamw'?\); see: plrc pretrain --help"
    assert re.fullmatch(wanted, complaint)


def test_the_real_command_ends_with_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plrc", "scna", "x"], check=False, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "plrc: there is no command 'scna'; did you mean plrc scan?\n"


def test_help_and_what_is_not_named_are_answered_without_pytorch() -> None:
    calls = [[], ["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    unnamed = [arguments.split() for arguments, _ in UNNAMED]
    code = f"""
import sys
from plrc.cli import main
print([main(call) for call in {calls + unnamed!r}])
print("torch" in sys.modules, "torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    *_, statuses, imported = done.stdout.splitlines()
    assert statuses == str([0] * len(calls) + [2] * len(unnamed))
    assert imported == "False False"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_line_by_line(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = [line for line in lines if line.startswith(f"  plrc {command}")]
    assert examples
    assert lines[lines.index("examples:") + 1] == examples[0]
    assert all(line.count("plrc ") == 1 and len(line) <= 88 for line in examples)


def test_help_explains_presets_and_every_setting(capsys: Capture) -> None:
    assert main(["pretrain", "-h"]) == 0
    out = capsys.readouterr().out
    for name in PRESETS:
        assert re.search(rf"^  {name} +\w.{{20,}}\.$", out, re.MULTILINE)
    flags = set(re.findall(r"--[\w.-]+", out))
    settings = {f"--{name.replace('_', '-')}" for name in Config().flat()}
    assert settings | {"--config", "--data", "--out", "--resume", "--devices"} <= flags
    assert "Peak learning rate." in out


def test_the_overview_names_every_command(capsys: Capture) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {command} +[A-Z].*\.$", out, re.MULTILINE) for command in COMMANDS)


def test_an_interrupt_ends_with_status_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(arguments: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
        raise AssertionError

    monkeypatch.setitem(COMMANDS, "doctor", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell leaves it ignored
    try:
        assert main(["doctor"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "plrc: interrupted\n"


# Real runs


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, started with --resume on a folder that is not there yet."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["pretrain", *TINY, "--data", str(scenes), "--out", str(out), "--resume"]) == 0
    return out


def test_a_run_leaves_a_verified_export(run: Path) -> None:
    assert load_checkpoint(newest_checkpoint(run) or run)["step"] == 2
    receipt = json.loads((run / "exported" / "backbone.safetensors.receipt.json").read_text())
    assert receipt["step"] == 2
    assert receipt["target"].startswith("torchvision ")


def test_a_finished_run_resumes_to_the_same_end(run: Path, capsys: Capture) -> None:
    before = torch.load(newest_checkpoint(run) or run, weights_only=True)["student"]
    assert main(["pretrain", "--out", str(run), "--resume"]) == 0
    assert str(run / "exported" / "backbone.safetensors") in capsys.readouterr().out
    after = torch.load(newest_checkpoint(run) or run, weights_only=True)["student"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_refusals_lose_nothing(run: Path, scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    before = files(run)
    start = ["pretrain", *TINY, "--data", scenes, "--out"]
    assert "is not empty; add --resume" in refused(capsys, *start, run)
    changed = refused(capsys, *start, run, "--resume", "--optim.lr", "0.5")
    assert "(optim.lr: stored 0.001, now 0.5)" in changed
    assert "--run.allow-changes" in changed
    assert "method: stored plrc, now image" in refused(
        capsys, "pretrain", "--out", run, "--resume", "--method", "image"
    )
    assert files(run) == before

    image = next(scenes.glob("*.jpg"))
    content = image.read_bytes()
    assert "is a file; --out must name a folder" in refused(capsys, *start, image)
    assert f"cannot use {image}/run: Not a directory" in refused(capsys, *start, image / "run")
    assert image.read_bytes() == content

    new = tmp_path / "new"
    few = ["--optim.batch-size", "64", "--no-adapt"]
    assert "44 training images are fewer than one batch of 64" in refused(capsys, *start, new, *few)
    assert "run.device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'" in refused(
        capsys, *start, new, "--run.device", "tpu"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("x")
    nothing = refused(capsys, "pretrain", *TINY, "--data", tmp_path / "empty", "--out", new)
    assert "no image in" in nothing
    assert "1 .md" in nothing
    assert "no image in" in refused(capsys, "scan", tmp_path / "empty")
    assert not new.exists()
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["notes.md"]


def test_the_advice_for_few_images_can_be_followed(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "few").mkdir()
    for image in sorted(scenes.glob("*.jpg"))[:6]:
        shutil.copy(image, tmp_path / "few")
    start = ["pretrain", "--preset", "debug_cpu", "--data", tmp_path / "few", "--out", tmp_path / "run"]
    advice = refused(capsys, *start).partition("add images or write ")[2].split()
    assert advice == ["--optim.batch-size", "3", "--model.bn-groups", "1"]
    assert main([*map(str, start), *advice, "--optim.steps", "1", "--run.device", "cpu", "--run.workers", "0"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    for device in ("cuda", "cuda:1"):
        sentence = refused(
            capsys, "pretrain", *TINY, "--data", scenes, "--out", tmp_path / "run", "--run.device", device
        )
        assert (
            sentence
            == f"run.device is {device} but PyTorch finds no GPU here; write --run.device cpu, or see: plrc doctor"
        )
    assert not (tmp_path / "run").exists()


def test_export(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "handed" / "over.pt"
    capsys.readouterr()
    assert main(["export", str(run), "--to", "torchvision", "--out", str(out)]) == 0
    assert f"{out}: 120 tensors of resnet18 at step 2, all equal in torchvision" in capsys.readouterr().out
    assert load_backbone(out, backbone="resnet18").channels[32] == 512
    assert "let --out end in .safetensors or .pt" in refused(
        capsys, "export", run, "--to", "torchvision", "--out", "a.bin"
    )
    assert f"cannot write {out}/b.pt" in refused(capsys, "export", run, "--to", "torchvision", "--out", out / "b.pt")
    assert "cannot write b.pt; let --out end in .pth or .pkl" in refused(
        capsys, "export", run, "--to", "detectron2", "--out", "b.pt"
    )


def test_a_damaged_checkpoint(run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    checkpoint = newest_checkpoint(copy)
    assert checkpoint is not None
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    before = files(copy / "checkpoints")
    for arguments in (["pretrain", "--out", copy, "--resume"], ["export", copy, "--to", "torchvision"]):
        sentence = refused(capsys, *arguments)
        assert f"{checkpoint} cannot be read" in sentence
        assert "resume from the one before it" in sentence or "restore one from a copy" in sentence
    assert files(copy / "checkpoints") == before


def test_scan_names_what_cannot_be_used(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    for image in sorted(scenes.glob("*.jpg"))[:6]:
        (tmp_path / image.name).write_bytes(image.read_bytes())
    broken = min(tmp_path.iterdir())
    broken.write_bytes(broken.read_bytes()[:900])
    assert main(["scan", str(tmp_path), "--workers", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "6, of which usable 5, unusable 1" in out
    assert re.search(rf"^unusable +{re.escape(broken.name)}: \w", out, re.MULTILINE)


@pytest.mark.slow
def test_two_processes_by_one_command_give_what_one_gives(run: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    shared = ["--data", str(scenes), "--out", str(out), "--devices", "2", "--model.bn-groups", "1"]
    command = [sys.executable, "-m", "plrc", "pretrain", *TINY, *shared]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished; the backbone is") == 1
    lines = ([json.loads(text) for text in (p / "metrics.jsonl").read_text().splitlines()] for p in (run, out))
    one, two = (next(line for line in each if line["kind"] == "train") for each in lines)
    for term in ("image", "point", "distill"):
        assert two[f"{term}_loss"] == pytest.approx(one[f"{term}_loss"], rel=0.05)  # BatchNorm: two groups either way
    again = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert again.returncode == 2
    assert [line for line in again.stderr.splitlines() if line.startswith("plrc: ")] == [
        f"plrc: the run folder {out} is not empty; add --resume to continue it, or name another --out"
    ]
    assert "Traceback" not in again.stderr


# Real images


def test_scan_of_a_voc_folder(real_data: Path, tmp_path: Path, capsys: Capture) -> None:
    for part in ("JPEGImages", "ImageSets"):
        (tmp_path / part).symlink_to(real_data / "bccd" / part)
    lists = real_data / "bccd" / "ImageSets" / "Main"
    wanted, test = ({line for line in (lists / f"{n}.txt").read_text().split() if line} for n in ("trainval", "test"))
    arguments = ["--split", "trainval", "--exclude", str(lists / "test.txt")]
    assert main(["scan", str(tmp_path), *arguments]) == 0
    out = capsys.readouterr().out
    count = len(wanted - test)
    assert f"{count}, of which usable {count}, unusable 0" in out
    assert re.search(r"^source .*\(voc\)$", out, re.MULTILINE)
    assert re.search(r"^width +640 to 640", out, re.MULTILINE)


def test_three_steps_on_real_photos(real_data: Path, tmp_path: Path) -> None:
    photos, out = real_data / "coco128" / "train2017", tmp_path / "run"
    assert main(["pretrain", *TINY, "--optim.steps", "3", "--data", str(photos), "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert last["step"] == 3
    assert last["skipped_steps"] == 0
    assert all(0 < last[f"{term}_kl"] < 20 for term in ("image", "point", "distill"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["train"]) == 124
    assert len(manifest["held_out"]) == 4


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step_on_real_photos(real_data: Path, tmp_path: Path) -> None:
    photos, out = real_data / "coco128" / "train2017", tmp_path / "run"
    small = "--optim.batch-size 4 --optim.steps 2 --data.held-out 4 --run.device cpu --run.workers 0".split()
    assert main(["pretrain", "--preset", "paper_r50", *small, "--data", str(photos), "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert last["step"] == 2
    assert last["skipped_steps"] == 0
    assert all(0 < last[f"{term}_loss"] < 20 for term in ("image", "point", "distill"))
    assert load_backbone(out).channels == {4: 256, 8: 512, 16: 1024, 32: 2048}


def test_a_second_source_is_refused_and_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    start = ["--preset", "debug_cpu", "--out=~/runs/first"]
    with pytest.raises(ConfigError, match=r"^--data names photos and more; name a single source; see: plrc pretrain"):
        parse_config([*start, "--data", "photos", "--data", "more"])
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/somebody")
    config = parse_config([*start, "--data=~/photos"])
    assert Path(config.run.out) == Path("/home/somebody/runs/first")
    assert Path(config.data.source) == Path("/home/somebody/photos")
