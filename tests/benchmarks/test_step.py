"""The step's benchmark: its variants do what they are named after, and its parts add up to the engine's own step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from benchmarks import step
from torch import nn

from plrc.errors import PlrcError

CPU = torch.device("cpu")
SMALL = {
    "model.contrast_hidden": 16,
    "model.distill_hidden": 16,
    "objectives.queue": 64,
    "objectives.reference_grid": 4,
}
PARTS = {
    "guard", "augmentation and shuffling", "teacher forward", "student forward", "objectives", "backward", "optimizer",
    "EMA", "queue", "running means",
}  # fmt: skip


@pytest.fixture
def setting() -> step.Setting:
    """ResNet-18, 32 px, 4 images in 2 BatchNorm groups, one thread: same numbers every time."""
    config = step._config("resnet18", 32, 4, 2).with_values(SMALL)
    return step.Setting(config, step.make_batch(config), CPU)


def state_of(setting: step.Setting) -> dict[str, torch.Tensor]:
    modules = setting.learner.modules()
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    momentum = {f"{i}": s["momentum_buffer"] for i, s in enumerate(setting.state.optimizer.state.values())}
    return {name: t.clone() for name, t in (tensors | momentum).items()}


@pytest.mark.slow
def test_figures_come_from_the_rows() -> None:
    found = step.run(backbone="resnet18", size=32, batch=2, repeats=1, device="cpu")
    rows = {row["variant"]: row for row in found.rows if "part" not in row}
    assert list(rows) == ["training step", "network passes", "bare backbone"]
    assert found.figures["memory_ratio"] == rows[step.STEP]["peak_bytes"] / rows[step.PASSES]["peak_bytes"]
    assert rows[step.STEP]["peak_bytes"] > rows[step.PASSES]["peak_bytes"] > rows[step.BACKBONE]["peak_bytes"]
    for name, other in (("time_ratio", step.PASSES), ("backbone_ratio", step.BACKBONE)):
        assert found.figures[name] == rows[step.STEP]["seconds"] / rows[other]["seconds"]  # of the one repeat
    parts = {row["part"]: row for row in found.rows if "part" in row}
    assert parts.keys() == PARTS
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1)
    assert all(row["seconds"] > 0 for row in parts.values())
    assert found.settings["bn_groups"] == 1 and found.settings["precision"] == "float32"


def test_step_in_parts_is_the_engines_step(setting: step.Setting) -> None:
    config = setting.config
    other = step.Setting(config, setting.batch, CPU)
    start = state_of(setting)
    for _ in range(2):
        setting.step(lr=0.05)
        other.step_in_parts(lr=0.05)
    mine, theirs = state_of(setting), state_of(other)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    changed = {name.partition(".")[0] for name in mine if not torch.equal(mine[name], start[name])}
    assert {"student", "teacher", "queue"} <= changed
    assert other.parts.keys() == PARTS and all(len(seconds) == 2 for seconds in other.parts.values())


def test_variants_run_the_passes_they_are_named_after(setting: step.Setting) -> None:
    calls: Counter[str] = Counter()

    def count(name: str, module: nn.Module | None) -> None:
        assert module is not None
        module.register_forward_hook(lambda *_: calls.update([name]))

    for name, network in (("student", setting.learner.student), ("teacher", setting.learner.teacher)):
        count(f"{name} backbone", network.backbone)
        count(f"{name} contrast", network.get_submodule("heads.contrast.32"))
        count(f"{name} distill", network.get_submodule("heads.distill.32"))
    bare = {"student backbone": 2, "teacher backbone": 4}  # two groups; views C and B
    heads = {"student contrast": 2, "student distill": 2, "teacher contrast": 2, "teacher distill": 4}
    for variant, expected in (
        (setting.bare_backbone, bare),
        (setting.passes, bare | heads),
        (setting.step, bare | heads),
    ):
        calls.clear()
        variant()
        assert calls == expected


def test_every_variant_leaves_the_weights_and_no_gradient(setting: step.Setting) -> None:
    student = setting.learner.student
    start = [p.detach().clone() for p in student.parameters()]
    backward: set[str] = set()
    for name, p in student.named_parameters():
        p.register_hook(lambda _, name=name: backward.add(name))
    names = {name for name, _ in student.named_parameters()}
    for variant, reached in (
        (setting.passes, names),
        (setting.step, names),
        (setting.bare_backbone, {name for name in names if name.startswith("backbone.")}),
    ):
        backward.clear()
        variant()
        assert backward == reached
        assert all(p.grad is None for p in student.parameters())
        assert all(torch.equal(p, before) for p, before in zip(student.parameters(), start, strict=True))


@pytest.mark.parametrize(("batch", "asked", "groups"), [(8, 0, 1), (64, 0, 8), (512, 0, 8), (8, 4, 4)])
def test_groups_are_those_of_a_run_unless_chosen(batch: int, asked: int, groups: int) -> None:
    config = step._config("resnet18", 64, batch, asked)
    assert config.model.bn_groups == groups
    assert config.optim.batch_size == batch and config.objectives.queue == 65536


def test_more_groups_than_images_are_refused() -> None:
    with pytest.raises(PlrcError, match=r"bn_groups must be 0 .* to 4 .*, got 5"):
        step.run(batch=4, bn_groups=5, device="cpu")
