"""The benchmark of the frozen teacher: cached features in the batch, no other network, and a cache filled anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks import step, teacher
from benchmarks.photographs import write_photographs

from plrc.engine.runlog import RunLog
from plrc.engine.setup import prepare
from plrc.errors import PlrcError

CPU = torch.device("cpu")
IMAGES = 4
SIDE = 4  # cells of stride 16 of a teacher of 64 px


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[teacher.CachedTeacher]:
    """A ResNet-18 of 32 px with a ResNet-18 of 64 px as its teacher, on four images."""
    config = teacher.frozen_run(tmp_path, "distill_r18", 32, IMAGES, "resnet18", 64, "cpu")
    config = config.with_values({"model.distill_hidden": 16, "objectives.distill_points": 16})
    write_photographs(Path(config.data.source), IMAGES, 64, 64)
    plan = prepare(config)
    with RunLog(plan.out, 0, plan.steps, main=True) as log:
        yield teacher.CachedTeacher(plan, log)


@pytest.fixture
def setting(cached: teacher.CachedTeacher) -> step.Setting:
    cached.fill()
    return step.Setting(cached.plan.config, cached.batch(), CPU, cached.frozen)


@pytest.mark.slow
def test_figures_come_from_the_rows() -> None:
    bench = teacher.run(size=32, batch=2, teacher="resnet18", teacher_size=64, live=True, repeats=1, device="cpu")
    rows = {row["variant"]: row["seconds"] for row in bench.rows if "part" not in row}
    assert list(rows) == ["training step", "network passes", "live teacher", "cache fill", "cache read"]
    figures = bench.figures
    assert figures["time_ratio"] == rows[step.STEP] / rows[step.PASSES]  # of the one repeat
    assert figures["live_ratio"] == rows[teacher.LIVE] / rows[step.PASSES]
    assert figures["read_ratio"] == rows[teacher.READ] / rows[step.STEP]
    assert figures["fill_images_per_second"] == teacher.BATCH_SIZE / rows[teacher.FILL]
    seconds_per_image = rows[step.STEP] / 2
    assert figures["fill_ratio"] == pytest.approx(1 / figures["fill_images_per_second"] / seconds_per_image)
    assert figures["cache_bytes_per_image"] == 64 * SIDE**2 + 64 * 4 + 4  # codes, scales and a checksum
    assert (bench.settings["features"], bench.settings["cells"]) == (64, SIDE**2)
    parts = [row for row in bench.rows if "part" in row]
    assert sum(row["share"] for row in parts) == pytest.approx(1)


def test_the_batch_holds_cached_features_or_whole_images(cached: teacher.CachedTeacher) -> None:
    cached.fill()
    batch = cached.batch()
    assert batch.teacher.dtype == torch.float16 and batch.teacher.shape == (IMAGES, 64, SIDE, SIDE)
    assert batch.images.shape == (1, IMAGES, 3, 32, 32)  # the student's view only
    live = cached.batch(live=True)
    assert live.teacher.dtype == torch.uint8 and live.teacher.shape == (IMAGES, 3, 64, 64)
    assert torch.equal(live.images, batch.images)


def test_every_fill_computes_all_features(cached: teacher.CachedTeacher) -> None:
    calls: Counter[int] = Counter()
    cached.frozen.backbone.register_forward_hook(lambda _, inputs, __: calls.update([len(inputs[0])]))
    for _ in range(2):
        cached.fill()
        assert len(cached.cache.missing(cached.plan.train)) == 0
    assert calls == {IMAGES: 2}


def test_step_and_passes_run_the_student_once_and_no_teacher(
    cached: teacher.CachedTeacher, setting: step.Setting
) -> None:
    calls: Counter[str] = Counter()
    networks = {
        "student": setting.learner.student,
        "moving average": setting.learner.teacher,
        "frozen teacher": cached.frozen.backbone,
    }
    for name, network in networks.items():
        network.register_forward_hook(lambda *_, name=name: calls.update([name]))
    for variant in (setting.step, setting.passes):
        calls.clear()
        variant()
        assert calls == {"student": 1}
    calls.clear()
    setting.batch = cached.batch(live=True)
    setting.step()
    assert calls == {"student": 1, "frozen teacher": 1}


def test_step_in_parts_is_the_engines_step(cached: teacher.CachedTeacher, setting: step.Setting) -> None:
    other = step.Setting(setting.config, setting.batch, CPU, cached.frozen)
    start = [p.detach().clone() for p in setting.learner.student.parameters()]
    setting.step(lr=0.05)
    other.step_in_parts(lr=0.05)
    pairs = zip(setting.learner.student.parameters(), other.learner.student.parameters(), start, strict=True)
    for mine, theirs, before in pairs:
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, before)


def test_a_teacher_that_cannot_take_its_images_is_refused() -> None:
    with pytest.raises(PlrcError, match=r"teacher\.size must be >= 16, got 8"):
        teacher.run(size=32, batch=2, teacher="resnet18", teacher_size=8, device="cpu")
