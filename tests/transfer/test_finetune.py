"""The fine-tuning loop on generated scenes: it learns, resumes exactly, refuses what cannot be used, and says so."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.killed import kill_at_first_file
from tests.transfer.sources import POLYGON, coco_source, read, save, thing

from plrc.errors import ConfigError, PlrcError
from plrc.model.backbone import build_backbone
from plrc.scenes import write_scenes
from plrc.transfer.finetune import Result, transfer
from plrc.transfer.optim import learning_rate
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import TransferConfig

SMALL = {
    "input.train_size": (96.0, 96.0),
    "input.test_size": 96.0,
    "input.max_size": 128,
    "optim.steps": 4,
    "optim.batch_size": 2,
    "model.width": 32,
    "model.hidden": 64,
    "model.rois_per_image": 32,
    "run.log_every_steps": 1,
    "run.threads": 1,
    "run.device": "cpu",
}
SEMANTIC_INPUT = {"input.train_size": (1.0, 1.0), "input.test_size": 1.0, "input.crop": (96.0, 96.0)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "s", {"train": 10, "val": 3, "test": 3}, seed=0, size=96)
    return folder / "s"


def config(task: str, scenes: Path, out: Path, **changes: object) -> TransferConfig:
    values: dict[str, object] = dict(SMALL)
    if task == "semantic":
        del values["input.max_size"]
        values |= SEMANTIC_INPUT
    values |= {"data.source": str(scenes), "run.out": str(out)}
    return protocol(f"small_{task}", task).with_values(values | changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "neck", "images", "steps", "metrics"),
    [
        ("detection", "fpn", 2, 160, ["AP50"]),
        ("instances", "fpn", 2, 100, ["AP50", "AP50_mask"]),
        ("instances", "c4", 2, 130, ["AP50", "AP50_mask"]),
        ("semantic", "fpn", 4, 120, ["accuracy"]),
    ],
)
def test_a_few_images_are_learned_by_heart(
    task: str, neck: str, images: int, steps: int, metrics: list[str], tmp_path: Path
) -> None:
    write_scenes(tmp_path / "few", {"train": images}, seed=7, size=64)
    (tmp_path / "few" / "test").symlink_to("train")
    changes: dict[str, object] = {
        "data.train": "train",
        "data.val": "none",
        "data.test": "test",
        "model.neck": neck,
        "model.rois_per_image": 32,
        "model.width": 64,
        "optim.steps": steps,
        "optim.batch_size": images,
        "optim.weight_decay": 0.0,
        "optim.warmup_steps": 10,
        "optim.lr_milestones": (0.8, 0.95),
        "input.flip_prob": 0.0,
        "run.log_every_steps": 20,
    }
    if neck == "c4":
        # BatchNorm would see 16 regions a step, too few for its statistics; without it, SGD is slow to learn
        changes |= {
            "model.rois_per_image": 8,
            "model.head_norm": "none",
            "optim.optimizer": "adamw",
            "optim.lr": 5e-4,
        }
    if task == "semantic":
        changes["input.crop"] = (64.0, 64.0)
    else:
        changes |= {"input.train_size": (64.0, 64.0), "input.test_size": 64.0, "input.max_size": 64}
    result = transfer(config(task, tmp_path / "few", tmp_path / "out", **changes))
    assert result is not None
    assert min(result.metrics[metric] for metric in metrics) > 90, result.metrics


@pytest.mark.parametrize("task", ["detection", "instances", "semantic"])
def test_a_stopped_run_ends_with_the_same_weights(task: str, scenes: Path, tmp_path: Path) -> None:
    whole = transfer(config(task, scenes, tmp_path / "whole"))
    cut = config(task, scenes, tmp_path / "cut", **{"run.checkpoint_every_steps": 2})
    import plrc.transfer.finetune as finetune

    saved = finetune.write_atomic

    def stop_after_the_first_save(path: Path, write: object) -> None:
        saved(path, write)  # type: ignore[arg-type]
        if path.name == finetune.CHECKPOINT:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "write_atomic", stop_after_the_first_save)
        with pytest.raises(KeyboardInterrupt):
            transfer(cut)
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = transfer(cut.with_values({"run.resume": True}))
    assert whole is not None and resumed is not None
    assert resumed.metrics == pytest.approx(whole.metrics, nan_ok=True)
    a, b = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_is_read_and_not_repeated(scenes: Path, tmp_path: Path) -> None:
    given = config("semantic", scenes, tmp_path / "out")
    first = transfer(given)
    before = (tmp_path / "out" / "result.json").stat().st_mtime_ns
    with pytest.raises(PlrcError, match="--resume"):
        transfer(given)
    assert transfer(given.with_values({"run.resume": True})) == first
    assert (tmp_path / "out" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(PlrcError, match=r"other settings \(optim.lr: stored 0.02, now 0.5\)"):
        transfer(given.with_values({"run.resume": True, "optim.lr": 0.5}))


def test_a_finished_run_does_not_need_its_initial_weights(scenes: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(build_backbone("resnet18").net.state_dict(), weights)
    given = config("detection", scenes, tmp_path / "out", init=str(weights))
    first = transfer(given)
    weights.unlink()
    again = transfer(given.with_values({"run.resume": True}))
    assert first is not None and again is not None
    assert again.metrics == pytest.approx(first.metrics, nan_ok=True)


def test_the_result_tells_what_was_done(scenes: Path, tmp_path: Path) -> None:
    given = config("detection", scenes, tmp_path / "out", evaluations=2, **{"data.fraction": 0.5})
    found = transfer(given)
    assert found is not None
    assert Result.load(tmp_path / "out" / "result.json").metrics == pytest.approx(found.metrics, nan_ok=True)
    assert (found.train_images, found.steps, found.diverged) == (5, 4, 0)
    assert [point["step"] for point in found.curve] == [2, 4]
    assert {"AP", "AP50", "AP75", "AP_VOC", "AP50_VOC07"} <= found.metrics.keys()
    assert TransferConfig.from_dict(found.config).differences(given) == []
    assert found.labels == read(scenes).digest()
    assert "120 of 120" not in found.inside  # random weights: there is no file to compare with


def test_weights_from_a_file_arrive(scenes: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = build_backbone("resnet18").net.state_dict()
    safetensors.torch.save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "mine.safetensors")
    found = transfer(config("detection", scenes, tmp_path / "out", init=str(tmp_path / "mine.safetensors")))
    assert found is not None
    assert "120 of 120 backbone tensors" in found.inside
    assert "conv1.weight" not in (tmp_path / "out" / "log.txt").read_text()
    assert "prefix in the file: module." in found.init_report


def test_a_diverged_run_ends_with_scores_of_zero(scenes: Path, tmp_path: Path) -> None:
    given = config("semantic", scenes, tmp_path / "out", **{"optim.lr": 1e30, "optim.max_grad_norm": 0.0})
    found = transfer(given)
    assert found is not None
    assert found.diverged > 0
    assert found.metrics["mIoU"] == 0
    assert "diverged" in (tmp_path / "out" / "log.txt").read_text()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["diverged"] == found.diverged


def test_the_learning_rate(tmp_path: Path) -> None:
    plan = TransferConfig().optim
    plan = type(plan)(lr=1.0, steps=100, lr_milestones=(0.5, 0.75), warmup_steps=1000)
    rates = [learning_rate(plan, step) for step in (0, 4, 9, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(type(plan)(lr=1.0, steps=100, schedule="2x", warmup_steps=0), 0) == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data.source": ""}, "no labelled images named: write --data FOLDER"),
        ({"run.out": ""}, "no folder for the result named: write --out FOLDER"),
        ({"run.device": "cuda:99"}, "PyTorch finds no GPU here"),
    ],
)
def test_mistakes_end_in_one_sentence(changes: dict[str, object], complaint: str, scenes: Path, tmp_path: Path) -> None:
    if "run.device" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(PlrcError, match=complaint):
        transfer(config("semantic", scenes, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_fails_while_training_is_named_in_one_sentence(workers: int, tmp_path: Path) -> None:
    """A photograph whose second half is damaged and whose end is right, so that nothing shows before it is decoded."""
    write_scenes(tmp_path / "s", {"train": 4, "val": 1, "test": 1}, seed=0, size=96)
    path = tmp_path / "s" / "train" / "images" / "000002.jpg"
    save(path, np.random.default_rng(0).integers(0, 256, (96, 96, 3)))
    content, half = path.read_bytes(), len(path.read_bytes()) // 2
    path.write_bytes(content[:half] + (b"\xff\xc0" * half)[: len(content) - half - 2] + content[-2:])
    with pytest.raises(PlrcError) as error:
        transfer(config("semantic", tmp_path / "s", tmp_path / "out", **{"run.workers": workers}))
    sentence = rf"{path}: damaged or unusual JPEG data \(.*\); fix or remove this file and start again"
    assert re.fullmatch(sentence, str(error.value))


def test_a_run_that_was_killed_while_it_wrote_its_first_file_can_be_started_again(scenes: Path, tmp_path: Path) -> None:
    settings = config("semantic", scenes, tmp_path / "out", **{"optim.steps": 1})
    settings.save(tmp_path / "settings.toml")
    code = (
        "import sys; from plrc.transfer.finetune import transfer; from plrc.transfer.protocols import TransferConfig\n"
        "transfer(TransferConfig.load(sys.argv[1]))"
    )
    kill_at_first_file(code, tmp_path / "settings.toml")
    (partial,) = (tmp_path / "out").iterdir()
    assert partial.name.startswith(".config.toml.")
    assert transfer(settings) is not None


def test_a_folder_with_something_else_is_left_alone(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(PlrcError, match="not empty"):
        transfer(config("semantic", scenes, tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["diary.txt"]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_and_the_run_goes_on(scenes: Path, tmp_path: Path) -> None:
    """As a scheduler stops a job: the loader's worker gets the signal too."""
    given = config("semantic", scenes, tmp_path / "out", **{"run.workers": 1, "optim.steps": 400})
    given.save(tmp_path / "given.toml")
    code = (
        "import sys; from plrc.transfer.finetune import transfer; from plrc.transfer.protocols import TransferConfig\n"
        "def show(done, total, line=''): print(line, flush=True)\n"
        "if __name__ == '__main__': sys.exit(75 if transfer(TransferConfig.load(sys.argv[1]), show) is None else 0)"
    )
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "given.toml")]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("5/400"))
        os.killpg(process.pid, signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 75
    assert (tmp_path / "out" / "checkpoint.pt").exists() and not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.fraction": 0.1, "seed": 0}, "data.fraction = 0.1 chooses 1 training images, and none of their labels"),
        ({"data.shots": 1, "data.merge_classes": True}, ""),
    ],
)
def test_chosen_labels_of_which_none_counts_are_refused(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    """Nine of ten training images are background; shots choose images that have objects."""
    things = [thing(1, image=4, segmentation=POLYGON)]
    source = coco_source(tmp_path / "data", things)
    table = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    for i in range(10, 16):
        table["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30})
        save(source / "train2017" / f"{i}.jpg", np.zeros((20, 30, 3)))
    (source / "annotations" / "instances_train2017.json").write_text(json.dumps(table))
    run = config("detection", source, tmp_path / "out", **{"data.val": "none", "optim.steps": 1}, **changes)
    if not sentence:
        result = transfer(run)
        assert result is not None
        assert result.train_images == 1
        return
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        transfer(run)
    assert not (tmp_path / "out").exists()


def test_threads_are_those_of_before_the_run(scenes: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        transfer(config("detection", scenes, tmp_path / "out", **{"optim.steps": 1}))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
