"""Several real processes compute what one process with the joined batch computes.

By construction one process with `bn_groups` R equals R processes with `bn_groups` 1: the student's groups are the parts
of the ranks, and the teacher's order is shared. So the loops below run once in R processes (gloo) and once here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.engine.runs import curve, final
from tests.integration.processes import HANGS, run_group
from tests.integration.ranks import by_hand

from plrc.config import Config
from plrc.data.sampler import StepSampler, split_held_out
from plrc.engine.pretrain import pretrain
from plrc.model import build_backbone

pytestmark = pytest.mark.slow
Result = dict[str, Any]
WEIGHTS = 2e-6
NOISY = """
import os
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)

    def forward(self, images):
        if self.training:
            noise = Path(__file__).with_name("noise_" + os.environ["RANK"])
            with noise.open("a") as file:
                file.write(f"{float(torch.rand(()))}\\n")
        return {8: self.conv(images)}


def build():
    return Net()
"""

# Learning rates are small: a weight that differs by one rounding may push a ReLU over its kink, and that grows. The
# optimizer is SGD, whose steps are the gradients: AdamW makes a whole step of a gradient that is all rounding.
SETTINGS: dict[str, dict[str, Any]] = {
    "image": {"method": "image"},
    "points": {"method": "points", "objectives.negatives": "batch"},
    "pixel": {"method": "pixel", "objectives.negatives": "batch"},
    "region": {"method": "region", "objectives.negatives": "batch"},
    "plrc": {"objectives.center": True},
    "accumulate": {
        "objectives.negatives": "batch",
        "optim.gradient_accumulation_steps": 2,
        "optim.name": "sgd",
        "optim.lr": 1e-5,
    },
    "stages": {"method": "image", "model.strides": (16,), "model.trainable_stages": 1, "optim.layer_decay": 0.5},
    "rates": {
        "method": "image",
        "optim.layer_decay": 0.5,
        "optim.gradient_accumulation_steps": 2,
        "model.trainable_stages": 1,
    },
    "levels": {"model.strides": (8, 16), "objectives.center": True},
    "frozen": {
        "teacher.kind": "frozen",
        "teacher.size": 64,
        "teacher.components": 16,
        "teacher.cache_gigabytes": 1.0,
    },
    "deepest": {"model.strides": (32,), "optim.name": "sgd", "optim.lr": 1e-3, "optim.max_grad_norm": 1.0},
}
BY_HAND: dict[str, dict[str, Any]] = {
    "hand_image": {"method": "image", "optim.steps": 1},
    "hand_few": {
        "views.scale": (0.005, 0.02), "seed": 1, "optim.steps": 4, "optim.batch_size": 4, "optim.name": "sgd",
        "optim.lr": 1e-5, "objectives.negatives": "batch",
    },
}  # fmt: skip


def tiny(method: str, source: Path, out: Path, groups: int, **settings: Any) -> Config:
    """The configuration of conftest's fixture of this name, for any folder."""
    from plrc.presets import preset

    values: dict[str, Any] = {
        "data.source": str(source), "data.held_out": 4, "run.out": str(out), "run.workers": 0, "run.device": "cpu",
        "run.log_every_steps": 1, "views.size": 32, "optim.batch_size": 8, "optim.steps": 3, "model.strides": (8,),
        "model.bn_groups": groups, "model.contrast_hidden": 16, "model.distill_hidden": 16, "objectives.points": 16,
        "objectives.distill_points": 16, "objectives.queue": 24, "optim.name": "sgd", "optim.lr": 1e-4,
    }  # fmt: skip
    return preset("debug_cpu", method).with_values(values | settings)


def teacher_weights(folder: Path) -> Path:
    """A file with random weights of a ResNet-18, the same in every process."""
    file = folder / "teacher.safetensors"
    if not file.exists():
        torch.manual_seed(5)
        save_file(build_backbone("resnet18").net.state_dict(), file)
    return file


def config_of(name: str, source: Path, out: Path, groups: int) -> Config:
    settings = dict((SETTINGS | BY_HAND)[name])
    if name == "frozen":
        settings |= {"teacher.backbone": "resnet18", "teacher.init": str(teacher_weights(out.parent))}
    return tiny(settings.pop("method", "plrc"), source, out, groups, **settings)


def in_processes(world: int, jobs: list[dict[str, Any]], folder: Path) -> dict[str, list[Result]]:
    """Run jobs in `world` processes of tests/integration/ranks.py: name -> what each rank found."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_group(world, "tests.integration.ranks", str(folder / "jobs.json"), str(folder))
    return {job["name"]: [torch.load(folder / f"{job['name']}.{rank}.pt") for rank in range(world)] for job in jobs}


@pytest.fixture(scope="module", autouse=True)
def plain_convolutions() -> Iterator[None]:
    """PyTorch's own convolutions, here as in the ranks: they compute one image after the other.

    Those of oneDNN sum in another order if the batch has another size, so that activations differ by more than one
    rounding, and on some processors enough of them cross the kinks of ReLUs to change gradients by a thousandth.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def broken(scenes: Path, folder: Path) -> Path:
    """The scenes, every fourth of them cut off."""
    (folder / "broken").mkdir()
    for number, file in enumerate(sorted(scenes.glob("*.jpg"))):
        data = file.read_bytes()
        (folder / "broken" / file.name).write_bytes(data if number % 4 else data[: len(data) // 2])
    return folder / "broken"


@pytest.fixture(scope="module")
def two(scenes: Path, broken: Path, folder: Path) -> dict[str, list[Result]]:
    """All that two processes do, in one start of them."""

    def job(name: str, kind: str, config: Config | None = None, **more: Any) -> dict[str, Any]:
        return {"name": name, "kind": kind, "config": config.to_dict() if config else None, **more}

    whole = config_of("plrc", scenes, folder / "whole", 1).with_values({"optim.steps": 7})
    parts = whole.with_values({"run.out": str(folder / "parts"), "run.resume": True, "run.workers": 1})
    bad = tiny(
        "image",
        broken,
        folder / "bad",
        1,
        **{"optim.steps": 5, "data.max_unreadable_fraction": 0.9, "data.held_out": 0},
    )
    strict = bad.with_values(
        {"data.max_unreadable_fraction": 0.1, "run.out": str(folder / "strict"), "run.log_every_steps": 2}
    )
    synced = config_of("image", scenes, folder / "synced", 1).with_values({"model.sync_bn": True})
    (folder / "noisy.py").write_text(NOISY)
    network = {"model.backbone": f"{folder}/noisy.py:build", "model.layer4_stride": 2}
    noisy = tiny("image", scenes, folder / "noisy", 1, **network)
    jobs = [
        job("collectives", "collectives", rows=3, order=[4, 0, 3, 5, 2, 1]),
        *(job(name, "train", config_of(name, scenes, folder / name, 1)) for name in SETTINGS),
        *(job(name, "by_hand", config_of(name, scenes, folder / name, 1)) for name in BY_HAND),
        job("whole", "train", whole),
        job("stopped", "train", parts, signal=[1, 3]),
        job("resumed", "train", parts),
        job("bad", "train", bad),
        job("strict", "train", strict),
        job("synced", "train", synced),
        job("noisy", "train", noisy),
    ]
    return in_processes(2, jobs, folder)


def is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def assert_near(a: Any, b: Any, where: str, share: float = 1e-4) -> None:
    """Equal but for rounding: numbers to this share of themselves, tensors of their largest element."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if not is_statistic(str(key)):
                assert_near(a[key], b[key], f"{where}/{key}", share)
    elif isinstance(a, list):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_near(x, y, f"{where}/{i}", share)
    elif isinstance(a, torch.Tensor) and a.is_floating_point():
        atol = share * float(a.abs().max()) + 1e-8
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda text: f"{where}: {text}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=share, abs=1e-7), where
    else:
        assert a == b, where


def assert_same_run(many: Path, one: Path) -> None:
    """Losses, gradient norms and all states but BatchNorm's running statistics, which each rank keeps of its part.

    Weights have moved by little, so they are held to less.
    """
    assert_near(curve(one), curve(many), "metrics")
    a, b = final(one), final(many)
    for part in ("step", "images", "queue", "center", "optimizer"):
        assert_near(a[part], b[part], part)
    for part in ("student", "teacher"):
        assert_near(a[part], b[part], part, WEIGHTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_packed_batch(
    name: str, two: dict[str, list[Result]], scenes: Path, folder: Path
) -> None:
    one = pretrain(config_of(name, scenes, folder / f"{name}_one", groups=2))
    assert [rank["step"] for rank in two[name]] == [one.step, one.step]
    assert_same_run(folder / name, one.path)


def test_the_comparison_sees_another_grouping(two: dict[str, list[Result]], scenes: Path, folder: Path) -> None:
    """The comparison above can fail: with one BatchNorm group the same run gives other numbers."""
    other = pretrain(config_of("image", scenes, folder / "other", groups=1))
    with pytest.raises(AssertionError):
        assert_same_run(folder / "image", other.path)


def test_collectives(two: dict[str, list[Result]]) -> None:
    found = two["collectives"]
    joined = torch.cat([rank["mine"] for rank in found])
    order = torch.tensor([4, 0, 3, 5, 2, 1])
    for rank, mine in enumerate(found):
        assert mine["world"] == (rank, 2, rank == 0)
        assert torch.equal(mine["gathered"], joined) and not mine["gathered_needs_grad"]
        assert mine["gathered_numbers"].tolist() == [0, 1, 10, 11]
        assert torch.equal(mine["shuffled"], joined[order][3 * rank : 3 * rank + 3])
        assert torch.equal(mine["unshuffled"], mine["mine"] + 0.5)
        assert torch.equal(mine["sum"], found[0]["mine"] + found[1]["mine"])
        assert mine["any"] == [False, True, True, True]
        assert mine["words"] == {"from 1": "x"}


def test_normalizer_joins_unequal_numbers_of_valid_queries(two: dict[str, list[Result]], scenes: Path) -> None:
    """Tiny crops: one rank may have no valid query at all. Gradients and weights are still those of one process."""
    ranks = two["hand_few"]
    one = by_hand({"config": config_of("hand_few", scenes, Path("unused"), groups=2).to_dict()})
    steps = zip(ranks[0]["counts"], ranks[1]["counts"], strict=True)
    pairs = [(a[term], b[term]) for a, b in steps for term in ("point", "distill")]
    assert any(a != b for a, b in pairs) and any(min(pair) == 0 < max(pair) for pair in pairs)
    for step, counts in enumerate(one["counts"]):
        assert counts == {term: sum(rank["counts"][step][term] for rank in ranks) for term in counts}
    for rank in ranks:
        assert_near(one["gradients"], rank["gradients"], "gradients")
        assert_near(one["students"], rank["students"], "students", WEIGHTS)
        assert_near(one["teacher"], rank["teacher"], "teacher", WEIGHTS)
        assert_near(one["queue"], rank["queue"], "queue")
        assert_near(one["optimizer"], rank["optimizer"], "optimizer")


def test_running_statistics_are_those_of_each_rank(two: dict[str, list[Result]], scenes: Path) -> None:
    """After one step rank r holds 0.9 * start + 0.1 * its own; one process adds its two groups in turn, each with
    a momentum that lets both together weigh as much as one."""
    ranks = two["hand_image"]
    one = by_hand({"config": config_of("hand_image", scenes, Path("unused"), groups=2).to_dict()})
    for network in ("student", "teacher"):
        names = [name for name in one[network] if name.endswith(("running_mean", "running_var"))]
        moved = [name for name in names if not torch.equal(one[network][name], one["start"][name])]
        assert len(moved) == 20 and not torch.equal(ranks[0][network][moved[0]], ranks[1][network][moved[0]])
        for name in moved:
            first, second = ranks[0][network][name], ranks[1][network][name]
            a, b = ((rank - 0.9 * one["start"][name]) / 0.1 for rank in (first, second))
            m = 1 - 0.9**0.5
            expected = 0.9 * one["start"][name] + m * (1 - m) * a + m * b
            torch.testing.assert_close(one[network][name], expected, rtol=1e-4, atol=1e-6)


def test_a_signal_to_one_rank_stops_all_and_resume_equals_uninterrupted(
    two: dict[str, list[Result]], folder: Path
) -> None:
    assert [(rank["step"], rank["finished"]) for rank in two["stopped"]] == [(3, False)] * 2
    assert [(rank["step"], rank["finished"]) for rank in two["resumed"]] == [(7, True)] * 2
    assert curve(folder / "whole") == curve(folder / "parts")
    a, b = final(folder / "whole"), final(folder / "parts")
    for part in ("student", "teacher", "queue"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part]), part
    assert a["center"].keys() == {"8"} and torch.equal(a["center"]["8"], b["center"]["8"])
    mine, theirs = a["optimizer"]["state"], b["optimizer"]["state"]
    assert len(mine) > 20 and mine.keys() == theirs.keys()
    assert all(torch.equal(mine[i][name], theirs[i][name]) for i in mine for name in mine[i])


def test_only_the_first_rank_writes(two: dict[str, list[Result]], folder: Path) -> None:
    out = str(folder / "whole")
    first, second = ([path for path in rank["written"] if path.startswith(out)] for rank in two["whole"])
    assert any("checkpoints" in path for path in first) and any(path.endswith("log.txt") for path in first)
    assert second == []
    assert [line["step"] for line in curve(Path(out))] == list(range(1, 8))


def test_unreadable_images_of_every_rank_are_named_once(
    two: dict[str, list[Result]], broken: Path, folder: Path
) -> None:
    names = sorted(p.name for p in broken.iterdir())
    train, _ = split_held_out(names, 0, 0)
    seen = [
        {names[train[i]] for keys in StepSampler(48, 8, 1, 0, 0, 5, rank, 2) for _, i in keys} & set(names[::4])
        for rank in (0, 1)
    ]
    assert seen[1] - seen[0], "the second process reads an unreadable image that the first does not"
    log = (folder / "bad" / "log.txt").read_text()
    assert {name: log.count(f"cannot read {name}") for name in seen[0] | seen[1]} == dict.fromkeys(seen[0] | seen[1], 1)
    errors = [rank["error"] for rank in two["strict"]]
    assert errors[0] == errors[1] and "images cannot be read, more than data.max_unreadable_fraction (10%)" in errors[0]


def test_layers_such_as_dropout_draw_other_numbers_in_each_process(two: dict[str, list[Result]], folder: Path) -> None:
    assert [rank["step"] for rank in two["noisy"]] == [3, 3]
    first, second = ((folder / f"noise_{rank}").read_text().split() for rank in (0, 1))
    steps = 3 * 2  # the student and the moving average, once each
    assert len(set(first[-steps:] + second[-steps:])) == 2 * steps


def test_sync_bn_needs_gpus(two: dict[str, list[Result]]) -> None:
    assert all("PyTorch shares BatchNorm statistics on GPUs only" in rank["error"] for rank in two["synced"])


@pytest.mark.parametrize("world", [3, 4])
def test_three_and_four_processes_equal_one_packed_batch(world: int, scenes: Path, tmp_path: Path) -> None:
    settings = SETTINGS["accumulate"] | {"optim.batch_size": 4 * world}
    many = tiny("plrc", scenes, tmp_path / "many", 1, **settings)
    in_processes(world, [{"name": "many", "kind": "train", "config": many.to_dict()}], tmp_path)
    one = pretrain(tiny("plrc", scenes, tmp_path / "one", world, **settings))
    assert_same_run(tmp_path / "many", one.path)


def test_torchrun_stops_at_one_step_and_devices_2_goes_on(scenes: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun: both ranks save and end; then `plrc pretrain --devices 2 --resume` finishes the run."""
    out = tmp_path / "run"
    settings = ["--run.threads", "1", "--run.workers", "1", "--views.size", "32", "--optim.batch-size", "8",
                "--model.strides", "8", "--model.bn-groups", "1", "--run.device", "cpu", "--run.log-every-steps", "1",
                "--preset", "debug_cpu", "--data", str(scenes), "--out", str(out)]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "plrc", "pretrain", *settings, "--optim.steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: (out / "metrics.jsonl").exists() and len(curve(out)) >= 2, process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=HANGS)
    finally:
        process.kill()
    step = final(out)["step"]
    assert output.count(f"stopped at step {step} of 100000 and saved") == 1
    assert [line["step"] for line in curve(out)] == list(range(1, step + 1))

    goal = ["--optim.steps", str(step + 2), "--run.allow-changes", "--resume", "--devices", "2"]
    again = [sys.executable, "-m", "plrc", "pretrain", *settings, *goal]
    more = subprocess.run(again, capture_output=True, text=True, timeout=HANGS, check=False)
    assert more.returncode == 0, more.stdout + more.stderr
    assert final(out)["step"] == step + 2
    assert [line["step"] for line in curve(out)] == list(range(1, step + 3))
    assert more.stdout.count("finished") == 1


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + HANGS
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.2)
