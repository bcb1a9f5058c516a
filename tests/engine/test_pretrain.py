"""The loop: golden curve, exact resume, skipped steps, teacher order, SIGTERM, bad images, refusals."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.runs import after_steps, assert_same, curve, final, metrics, power_cut

import plrc
from plrc.config import Config
from plrc.data.manifest import images_from_manifest, read_manifest
from plrc.engine.checkpoint import KEYS, newest_checkpoint
from plrc.engine.health import has_collapsed
from plrc.engine.pretrain import pretrain
from plrc.engine.setup import prepare
from plrc.errors import PlrcError

GOLDEN = Path(__file__).parents[1] / "golden" / "debug_curve.json"
Tiny = Callable[..., Config]


def test_run_folder_holds_what_is_promised(tiny: Tiny) -> None:
    run = pretrain(tiny())
    assert run.finished and run.step == 4
    assert {p.name for p in run.path.iterdir()} >= {
        "config.toml", "manifest.json", "metrics.jsonl", "log.txt", "checkpoints", "tensorboard"
    }  # fmt: skip
    assert (run.path / "checkpoints" / "last").read_text() == "step_00000004.pt"
    saved = final(run.path)
    assert set(saved) == set(KEYS)
    assert Config.from_dict(saved["config"]) == Config.load(run.path / "config.toml")  # type: ignore[arg-type]
    for line in metrics(run.path):
        for name in ("image", "point", "distill"):
            assert 0 <= line[f"{name}_kl"] <= line[f"{name}_loss"] + 1e-6
            assert line[f"{name}_chance"] > 0
    assert [h.step for h in run.health] == [0, 4]


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ({}, 2),
        ({"method": "image"}, 0),
        ({"method": "points", "objectives__negatives": "batch"}, 0),
        ({"method": "pixel"}, 0),
        ({"method": "region"}, 0),
        ({"objectives__center": True, "optim__gradient_accumulation_steps": 2, "optim__name": "sgd"}, 1),
    ],
)
@pytest.mark.slow
def test_stop_and_resume_equals_uninterrupted_bit_for_bit(
    tiny: Tiny, tmp_path: Path, settings: dict[str, object], workers: int
) -> None:
    """48 - 4 images in batches of 8 give 5 steps an epoch. SIGTERM at step 3, in the middle of an epoch, is saved; the
    crash at step 7 loses two steps: the run goes on from the checkpoint of step 5."""
    whole = tiny(**settings, optim__steps=8)
    pretrain(whole.with_values({"run.out": str(tmp_path / "whole")}))
    parts = whole.with_values({
        "run.out": str(tmp_path / "parts"), "run.workers": workers, "run.resume": True, "run.checkpoint_every_steps": 5,
    })  # fmt: skip
    with after_steps(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        run = pretrain(parts)
    assert run.step == 3 and not run.finished
    with after_steps(4, power_cut), pytest.raises(RuntimeError, match="power cut"):
        pretrain(parts)
    assert final(parts.run.out)["step"] == 5 and metrics(parts.run.out)[-1]["step"] == 6
    assert pretrain(parts).finished
    a, b = final(tmp_path / "whole"), final(tmp_path / "parts")
    for key in KEYS:
        if key not in ("config", "health"):
            assert_same(a[key], b[key], key)
    assert a["health"][-1] == b["health"][-1]  # type: ignore[index]
    names = [k for k in metrics(tmp_path / "whole")[0] if k not in ("images_per_second", "data_wait_share")]
    curve = [[line[k] for k in names] for line in metrics(tmp_path / "whole")]
    assert len(curve) == 8 and curve == [[line[k] for k in names] for line in metrics(tmp_path / "parts")]


def test_golden_loss_curve(tiny: Tiny) -> None:
    """A refactoring must reproduce these numbers. Regenerate: PLRC_FREEZE=1 pytest tests/engine -k golden.

    Clipped SGD at a small rate, so that another processor's rounding does not grow: losses then agree to about 1e-6,
    gradient norms, which jump where a ReLU passes its kink, to about 1e-4. At ten times this rate, the losses of an
    Intel and an AMD processor differ by 3e-4 after five steps.
    """
    settings = {
        "optim__name": "sgd",
        "optim__lr": 3e-4,
        "optim__max_grad_norm": 1.0,
        "views__size": 64,
        "model__strides": (16,),
    }
    run = pretrain(tiny(optim__steps=6, **settings))
    curve = [
        {k: v for k, v in line.items() if k.endswith("_loss") or k == "gradient_norm"} for line in metrics(run.path)
    ]
    if os.environ.get("PLRC_FREEZE"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(curve, indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert len(curve) == len(expected) == 6
    for now, before in zip(curve, expected, strict=True):
        assert now.pop("gradient_norm") == pytest.approx(before.pop("gradient_norm"), rel=1e-3)
        assert now == pytest.approx(before, rel=1e-5)


@pytest.mark.slow
def test_learning_lowers_the_divergences(tiny: Tiny) -> None:
    config = tiny(optim__steps=60, optim__lr=2e-3, objectives__teacher_temperature=0.04)
    pretrain(config)
    lines = metrics(config.run.out)
    for name in ("point", "distill"):
        early = sum(line[f"{name}_kl"] for line in lines[5:15])
        late = sum(line[f"{name}_kl"] for line in lines[-10:])
        assert late < 0.95 * early, name


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_skipped_step_leaves_no_trace(tiny: Tiny, name: str) -> None:
    """A NaN in one gradient: weights, optimizer, teacher, queue, center, BN buffers stay as they were, and what follows
    is what would have followed without it. Only the count of such steps tells of it."""
    from plrc.engine.state import TrainingState

    config = tiny(optim__name=name, objectives__center=True, optim__max_grad_norm=1.0)
    batch, order = one_batch(config), torch.arange(8).flip(0)

    def steps(*poisons: bool) -> list[object]:
        state = TrainingState(config, torch.device("cpu"))
        seen = [copy.deepcopy(state.checkpoint(0, ""))]
        for poison in poisons:
            state.guard.save()
            outcome = state.learner.compute_terms(batch, state.learner.student, order, 0.05)
            sum(term.mean for term in outcome.terms.values()).backward()  # type: ignore[union-attr]
            if poison:
                next(state.learner.student.parameters()).grad[0] = float("nan")  # type: ignore[index]
            norm, keep = state.update([outcome], 0.1, 0.9)
            assert bool(keep) is not poison and bool(norm.isfinite()) is not poison
            seen.append(copy.deepcopy(state.checkpoint(0, "")))
        return seen

    start, skipped, once, once_skipped, twice = steps(True, False, True, False)
    _, expected_once, expected_twice = steps(False, False)
    for part in ("student", "teacher", "queue", "center"):
        assert_same(start[part], skipped[part], part)  # type: ignore[index]
        with pytest.raises(AssertionError):
            assert_same(start[part], once[part], part)  # type: ignore[index]
    assert_same(once, expected_once)
    assert_same(once | {"skipped_in_a_row": 1}, once_skipped)  # type: ignore[operator]
    assert_same(twice, expected_twice)


def test_teacher_follows_the_student_after_its_step(tiny: Tiny) -> None:
    """teacher = momentum * teacher + (1 - momentum) * NEW student, for parameters; no gradient ever reaches it."""
    from plrc.engine.state import TrainingState

    config = tiny()
    state = TrainingState(config, torch.device("cpu"))
    teacher = {k: v.clone() for k, v in state.learner.teacher.named_parameters()}
    outcome = state.learner.compute_terms(one_batch(config), state.learner.student, torch.randperm(8), 0.05)
    sum(term.mean for term in outcome.terms.values()).backward()  # type: ignore[union-attr]
    state.guard.save()
    state.update([outcome], 0.1, 0.75)
    student = dict(state.learner.student.named_parameters())
    for name, now in state.learner.teacher.named_parameters():
        assert now.grad is None and not now.requires_grad
        torch.testing.assert_close(now, 0.75 * teacher[name] + 0.25 * student[name])


def one_batch(config: Config) -> object:
    from plrc.data.loader import ViewDataset, collate
    from plrc.data.sources import find_images

    images = find_images(config.data)
    dataset = ViewDataset(images, np.arange(len(images.names)), config)
    return collate([dataset[0, i] for i in range(config.optim.batch_size)])


@pytest.mark.slow
def test_sigterm_in_a_real_process_saves_and_exits_75_and_resume_finishes(
    tiny: Tiny, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "real"
    command = [
        sys.executable, "-m", "plrc", "pretrain", "--preset", "debug_cpu", "--data", str(scenes), "--out", str(out),
        "--optim.steps", "100000", "--optim.batch-size", "8", "--model.bn-groups", "1", "--views.size", "32",
        "--model.strides", "8", "--run.workers", "1", "--run.threads", "1", "--run.device", "cpu",
        "--run.log-every-steps", "1", "--resume",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not ((out / "metrics.jsonl").exists() and len(metrics(out)) >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the loader's worker gets it too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    step = int(final(out)["step"])  # type: ignore[call-overload]
    assert step >= 2 and f"stopped at step {step}" in output
    stored = Config.load(out / "config.toml").with_values(
        {"optim.steps": step + 2, "run.allow_changes": True, "run.resume": True}
    )
    assert pretrain(stored).step == step + 2


def test_unreadable_images_are_named_and_replaced(tiny: Tiny, scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    files = sorted(p for p in scenes.rglob("*") if p.suffix in (".jpg", ".png") and "semantic" not in p.parts)[:20]
    for i, file in enumerate(files):
        data = file.read_bytes()
        (folder / f"{i}{file.suffix}").write_bytes(data[: len(data) // 2] if i == 3 else b"" if i == 5 else data)
    config = tiny(data__source=str(folder), data__held_out=0, data__max_unreadable_fraction=0.2)
    run = pretrain(config)
    text = (run.path / "log.txt").read_text()
    assert "cannot read 3" in text and "cannot read 5" in text and "2 images could not be read" in text
    strict = config.with_values({"data.max_unreadable_fraction": 0.05, "run.out": str(tmp_path / "strict")})
    with pytest.raises(PlrcError, match="2 of 20 images cannot be read"):
        pretrain(strict.with_values({"optim.steps": 40, "run.log_every_steps": 40}))
    assert curve(tmp_path / "strict") == []  # it ended at the second image, not at the first step that is logged


def test_refusals_say_what_to_do(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    pretrain(config)
    with pytest.raises(PlrcError, match=r"not empty; add --resume"):
        pretrain(config)
    again = config.with_values({"run.resume": True})
    with pytest.raises(PlrcError, match=r"optim.lr: stored 0.001, now 0.5"):
        pretrain(again.with_values({"optim.lr": 0.5}))
    with pytest.raises(PlrcError, match=r"fewer than one batch of 64"):
        pretrain(tiny(optim__batch_size=64, run__out=str(tmp_path / "other")))
    with pytest.raises(PlrcError, match=r"one image, one position"):
        pretrain(
            tiny(model__strides=(32,), model__layer4_stride=2, model__bn_groups=8, run__out=str(tmp_path / "other"))
        )
    checkpoint = newest_checkpoint(Path(config.run.out))
    assert checkpoint is not None
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(PlrcError, match="cannot be read"):
        pretrain(again)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.doc").write_text("x")
    with pytest.raises(PlrcError, match="holds no plrc run"):
        pretrain(again.with_values({"run.out": str(tmp_path / "foreign")}))
    assert (tmp_path / "foreign" / "thesis.doc").read_text() == "x"


def test_missing_and_damaged_region_maps_are_named_and_replaced(tiny: Tiny, scenes: Path, tmp_path: Path) -> None:
    """Training images with neither are skipped like unreadable ones; the health check reads no maps."""
    maps = tmp_path / "maps"
    maps.mkdir()
    names = sorted(file.name for file in scenes.glob("*.jpg"))
    for name in names[2:]:
        np.save(maps / Path(name).with_suffix(".npy"), np.arange(64).reshape(8, 8))
    (maps / Path(names[1]).with_suffix(".png")).write_text("not a picture")
    config = tiny(regions__source="maps", regions__maps=str(maps), data__held_out=0, optim__steps=6, run__workers=1)
    run = pretrain(config)
    text = (run.path / "log.txt").read_text()
    assert f"cannot read {names[0]}: image {names[0]} has no id map: write " in text
    assert f"cannot read {names[1]}: cannot read the id map " in text and "2 images could not be read" in text
    with pytest.raises(PlrcError, match=r"2 of 48 images cannot be read, more than data\.max_unreadable_fraction"):
        pretrain(config.with_values({"data.max_unreadable_fraction": 0.03, "run.out": str(tmp_path / "strict")}))
    for file in maps.iterdir():
        file.unlink()
    held_out = config.with_values({"run.out": str(tmp_path / "held_out"), "data.held_out": 4, "run.workers": 1})
    with pytest.raises(PlrcError, match=r"^44 images in a row cannot be read, the last one .* has no id map: write "):
        pretrain(held_out)


def test_a_mistake_that_a_worker_meets_ends_in_its_own_sentence(tiny: Tiny) -> None:
    with pytest.raises(PlrcError, match=r"^regions\.grid must be <= 181, got 200$"):
        pretrain(tiny(regions__grid=200, run__workers=1, data__held_out=0))
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_ends_the_run_in_one_sentence(tiny: Tiny) -> None:
    def kill() -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        time.sleep(60)  # interrupted by the news

    with after_steps(1, kill), pytest.raises(PlrcError, match=r"memory ran out .* a lower --run\.workers"):
        pretrain(tiny(run__workers=2, optim__steps=20))
    assert multiprocessing.active_children() == []


def test_unreadable_held_out_images_are_named_and_left_out(tiny: Tiny, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "copy")
    config = tiny(data__source=str(tmp_path / "copy"), optim__steps=1)
    images, _, held_out = images_from_manifest(read_manifest(prepare(config).out / "manifest.json"))
    (tmp_path / "run" / "manifest.json").unlink()
    Path(images.path(held_out[0])).write_bytes(b"")
    run = pretrain(config.with_values({"run.resume": True}))
    text = (run.path / "log.txt").read_text()
    assert text.count(f"cannot read the held-out image {images.names[held_out[0]]}: the file is empty") == 1
    assert [h.step for h in run.health] == [0, 1]
    for i in held_out:
        Path(images.path(i)).write_bytes(b"")
    run = pretrain(config.with_values({"run.out": str(tmp_path / "none")}))
    assert "no held-out image can be read: there are no health checks" in (run.path / "log.txt").read_text()
    assert run.finished and run.health == ()


@pytest.mark.slow
def test_a_finished_run_makes_again_what_was_not_made_of_its_last_checkpoint(tiny: Tiny) -> None:
    """A process that is killed between its last save and the export leaves the export of the save before."""
    config = tiny(optim__steps=4, run__checkpoint_every_steps=2)
    run = plrc.pretrain(config)
    made, report = run.path / "exported" / "backbone.safetensors", run.path / "report.html"
    last = load_file(made)
    save_file({name: torch.zeros_like(tensor) for name, tensor in last.items()}, made)
    report.unlink()
    assert plrc.pretrain(config.with_values({"run.resume": True})) == run
    assert_same(load_file(made), last)
    assert report.exists()


def test_what_a_run_says_of_itself(tiny: Tiny) -> None:
    config = tiny(optim__steps=12, objectives__queue=88)
    run = pretrain(config)
    text = (run.path / "log.txt").read_text()
    assert text.count("the image loss rises for 11 steps, while real keys replace the random ones in the queue") == 1
    again = pretrain(config.with_values({"run.resume": True}))
    assert again == run
    more = (run.path / "log.txt").read_text().removeprefix(text)
    assert "nothing left to do: the run is finished, at step 12 of 12" in more and "image loss" not in more
    without = pretrain(
        tiny("points", objectives__image_weight=0.0, optim__steps=1, run__out=str(run.path.with_name("points")))
    )
    assert "image loss" not in (without.path / "log.txt").read_text()
    for number, (steps, queue) in enumerate(((2, 88), (12, 24))):
        out = str(run.path.with_name(f"short{number}"))
        short = pretrain(tiny(optim__steps=steps, objectives__queue=queue, run__out=out))
        assert "image loss" not in (short.path / "log.txt").read_text()  # a rise of a few steps is no trend


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_precision_of_a_gpu_goes_on_on_a_cpu(tiny: Tiny, precision: str) -> None:
    config = tiny(optim__steps=1, optim__precision=precision)
    pretrain(config)
    longer = config.with_values({"optim.steps": 2, "optim.precision": "auto", "run.resume": True})
    run = pretrain(longer.with_values({"run.allow_changes": True}))
    assert run.step == 2 and Config.load(run.path / "config.toml").optim.precision == precision


def test_collapse_is_noticed_and_the_run_stops(tiny: Tiny) -> None:
    """A learning rate of 100 destroys the features; a healthy run raises no alarm."""
    healthy = pretrain(tiny(run__health_every_steps=2))
    assert not any(has_collapsed(check, healthy.health[0]) for check in healthy.health)
    rate = {"optim__lr": 100.0, "optim__name": "sgd", "optim__steps": 40}
    ruined = tiny(**rate, run__health_every_steps=2, run__out=str(healthy.path.with_name("ruined")))
    with pytest.raises(PlrcError, match="collapsed"):
        pretrain(ruined)


def test_threads_are_those_of_before_the_run_and_fewer_steps_than_done_are_the_end(tiny: Tiny) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pretrain(tiny(run__threads=1))
        assert torch.get_num_threads() == 2
        with pytest.raises(PlrcError):
            pretrain(tiny(run__threads=1))  # the folder has a run
        assert torch.get_num_threads() == 2
        again = pretrain(tiny(run__threads=1, run__resume=True, run__allow_changes=True, optim__steps=3))
        assert again.finished
        assert again.step == 4
    finally:
        torch.set_num_threads(threads)
