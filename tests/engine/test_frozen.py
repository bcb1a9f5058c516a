"""A frozen teacher in a run: targets, cache, resume, records, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.runs import after_steps, assert_same, final, metrics, power_cut
from tests.objectives.divergence import divergence
from torch import Tensor
from torch.nn import functional as F

import plrc
from plrc.config import Config
from plrc.data.loader import Batch, ViewDataset, collate
from plrc.data.teacher_cache import LEVELS, TeacherCache
from plrc.data.views import QUERY, REFERENCE
from plrc.engine.checkpoint import KEYS
from plrc.engine.frozen import prepare_teacher
from plrc.engine.level import Level, read_frozen
from plrc.engine.pretrain import pretrain
from plrc.engine.setup import prepare
from plrc.engine.state import TrainingState
from plrc.engine.teacher_weights import check_receipt, load_teacher
from plrc.errors import PlrcError
from plrc.model import build_backbone
from plrc.model.frozen import principal_components
from plrc.model.starts import content_hash, read_receipt

Tiny = Callable[..., Config]
ONLY_FROZEN = {
    "objectives__image_weight": 0.0,
    "objectives__point_weight": 0.0,
    "objectives__distill_weight": 0.0,
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with weights for the teacher, a ResNet-18."""
    torch.manual_seed(5)
    save_file(build_backbone("resnet18").net.state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


@pytest.fixture
def frozen(tiny: Tiny, weights: Path) -> Tiny:
    """`tiny` with a frozen teacher: 64 px give it 4 x 4 cells of stride 16."""

    def build(**settings: object) -> Config:
        teacher: dict[str, object] = {
            "teacher__kind": "frozen",
            "teacher__backbone": "resnet18",
            "teacher__init": str(weights),
            "teacher__size": 64,
            "teacher__components": 16,
        }
        return tiny(**(teacher | settings))

    return build


def prepared(config: Config) -> tuple[TrainingState, Batch]:
    """The state of a fresh run, and a batch of four images without a cache."""
    plan = prepare(config)
    state = TrainingState(plan.config, plan.device, prepare_teacher(plan))
    dataset = ViewDataset(plan.images, plan.train, plan.config)
    return state, collate([dataset[0, index] for index in range(4)])


def bilinear(features: Tensor, x: float, y: float) -> Tensor:
    """Features [D, h, w] at a point of [0, 1] x [0, 1], in float64; the border cells extend outwards."""
    side = features.shape[-1]
    column = min(max(x * side - 0.5, 0), side - 1)
    row = min(max(y * side - 0.5, 0), side - 1)
    left, top = min(int(column), side - 2), min(int(row), side - 2)
    a, b = column - left, row - top
    upper = (1 - a) * features[:, top, left] + a * features[:, top, left + 1]
    lower = (1 - a) * features[:, top + 1, left] + a * features[:, top + 1, left + 1]
    return (1 - b) * upper + b * lower


def slow_term(batch: Batch, query: Tensor, teacher: Tensor, level: Level, reference: Tensor | None) -> float:
    """The mean loss of the frozen teacher's term, point by point in float64 (METHOD section 6)."""
    objectives = level.config.objectives
    losses = []
    for image in range(len(query)):
        scale_x, scale_y, shift_x, shift_y = batch.maps[QUERY, image].double().tolist()
        points = batch.match_uniform[image].view(-1, 2).double().tolist()
        side = teacher.shape[-1] if reference is None else level.reference_side()
        grid = [((i % side + 0.5) / side, (i // side + 0.5) / side) for i in range(side * side)]
        if reference is None:
            teacher_keys = [F.normalize(bilinear(teacher[image], x, y), dim=0) for x, y in grid]
            student_keys = teacher_keys
        else:
            a, b, c, d = batch.maps[REFERENCE, image].double().tolist()
            teacher_keys = [F.normalize(bilinear(teacher[image], a * x + c, b * y + d), dim=0) for x, y in grid]
            student_keys = [F.normalize(bilinear(reference[image], x, y), dim=0) for x, y in grid]
        for x, y in points:
            student = F.normalize(bilinear(query[image], x, y), dim=0)
            target = F.normalize(bilinear(teacher[image], scale_x * x + shift_x, scale_y * y + shift_y), dim=0)
            targets = torch.stack([target @ key for key in teacher_keys]).div(0.07).softmax(0)
            logits = torch.stack([student @ key for key in student_keys]).div(objectives.student_temperature)
            losses.append(-(targets * logits.log_softmax(0)).sum().item())
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("form", ["projected", "relational"])
def test_the_term_equals_the_slow_loop(frozen: Tiny, form: str) -> None:
    config = frozen(**ONLY_FROZEN, teacher__form=form, objectives__distill_points=20, objectives__reference_grid=0)
    state, batch = prepared(config)
    learner = state.learner
    (level,) = learner.levels
    assert learner.frozen is not None and len(batch.images) == (1 if form == "projected" else 2)
    teacher = learner.frozen.features(batch.teacher)
    assert teacher.shape == (4, 16, 4, 4)
    torch.testing.assert_close(teacher.norm(dim=1), torch.ones(4, 4, 4))
    query = torch.randn(4, 16, 4, 4, dtype=torch.float64)
    reference = torch.randn(4, 16, 4, 4, dtype=torch.float64) if form == "relational" else None
    other_view = {} if reference is None else {"frozen": reference}
    output = level.compute_terms(
        batch, {"frozen": query}, other_view, {}, read_frozen(teacher, batch, config, 0.07), 0.07
    )
    expected = slow_term(batch, query, teacher.double(), level, reference)
    torch.testing.assert_close(output.terms["frozen"].mean.item(), expected, rtol=1e-5, atol=1e-6)


def test_the_step_uses_the_features_at_the_same_places(frozen: Tiny) -> None:
    """A student with the teacher's features has the loss of the teacher against itself, whatever the crop."""
    config = frozen(**ONLY_FROZEN, views__flip_prob=0.5)
    state, batch = prepared(config)
    assert state.learner.frozen is not None
    (level,) = state.learner.levels
    teacher = state.learner.frozen.features(batch.teacher)

    def divergence_with(crop: list[float], student: Tensor) -> float:
        moved = replace(batch, maps=torch.tensor(crop).expand_as(batch.maps))
        frozen_features = read_frozen(teacher, moved, config, 0.1)
        output = level.compute_terms(moved, {"frozen": student}, {}, {}, frozen_features, 0.1)
        return divergence(output.terms["frozen"])

    assert abs(divergence_with([1.0, 1.0, 0.0, 0.0], teacher)) < 1e-5
    assert abs(divergence_with([-1.0, 1.0, 1.0, 0.0], teacher.flip(-1))) < 1e-5
    assert divergence_with([-1.0, 1.0, 1.0, 0.0], teacher) > 0.01


def test_cached_features_are_those_computed_live_within_the_quantisation(frozen: Tiny, tmp_path: Path) -> None:
    """Half a level of a channel, and the losses of a whole run."""
    cached = frozen(optim__steps=3)
    live = cached.with_values({"teacher.cache_gigabytes": 0.0, "run.out": str(tmp_path / "live")})
    pretrain(cached)
    pretrain(live)
    assert not (tmp_path / "live" / "teacher").exists()
    (file,) = (tmp_path / "run" / "teacher").iterdir()
    assert file.stat().st_size == 48 * (16 * 4 * 4 + 16 * 4 + 4)
    for a, b in zip(metrics(tmp_path / "run"), metrics(tmp_path / "live"), strict=True):
        assert abs(a["frozen_loss"] - b["frozen_loss"]) < 2 / LEVELS
        assert a["frozen_loss"] != b["frozen_loss"] and a["image_loss"] == pytest.approx(b["image_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ({}, 2),
        ({**ONLY_FROZEN, "model__strides": (8, 16)}, 0),
        ({"teacher__form": "relational", "teacher__cache_gigabytes": 0.0}, 0),
    ],
)
@pytest.mark.slow
def test_stop_and_resume_equals_uninterrupted_bit_for_bit(
    frozen: Tiny, tmp_path: Path, settings: dict[str, object], workers: int
) -> None:
    whole = frozen(**settings, optim__steps=6)
    pretrain(whole.with_values({"run.out": str(tmp_path / "whole")}))
    parts = whole.with_values(
        {
            "run.out": str(tmp_path / "parts"),
            "run.workers": workers,
            "run.resume": True,
            "run.checkpoint_every_steps": 4,
        }
    )
    with after_steps(2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert pretrain(parts).step == 2
    with after_steps(3, power_cut), pytest.raises(RuntimeError, match="power cut"):
        pretrain(parts)
    for file in (tmp_path / "parts" / "teacher").glob("*"):
        file.unlink()  # a lost cache is computed again
    assert pretrain(parts).finished
    a, b = final(tmp_path / "whole"), final(tmp_path / "parts")
    for key in KEYS:
        if key not in ("config", "health"):
            assert_same(a[key], b[key], key)
    losses = [line["frozen_loss"] for line in metrics(tmp_path / "whole")]
    assert len(losses) == 6 and losses == [line["frozen_loss"] for line in metrics(tmp_path / "parts")]


def test_the_teacher_is_kept_by_reference(tiny: Tiny, frozen: Tiny, tmp_path: Path, weights: Path) -> None:
    run = pretrain(frozen(optim__steps=2)).path
    receipt = read_receipt(run / "teacher.json")
    assert receipt["backbone"] == "resnet18" and receipt["file"] == str(weights) and len(receipt["sha256"]) == 64
    assert receipt["content_sha256"] == content_hash(load_file(weights))
    assert set(final(run)) == set(KEYS)
    size = (run / "checkpoints" / "step_00000002.pt").stat().st_size
    (tmp_path / "alone").mkdir()
    alone = pretrain(tiny(optim__steps=2, run__out=str(tmp_path / "alone"))).path
    without_teacher = (alone / "checkpoints" / "step_00000002.pt").stat().st_size
    assert size - without_teacher < weights.stat().st_size / 10  # the head that is compared with it, no backbone


def test_weights_that_changed_or_are_missing_stop_a_resume(frozen: Tiny, weights: Path) -> None:
    config = frozen(optim__steps=3)
    with after_steps(1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        pretrain(config)
    again = config.with_values({"run.resume": True})
    original = weights.read_bytes()
    torch.manual_seed(6)
    save_file(build_backbone("resnet18").net.state_dict(), weights)
    with pytest.raises(PlrcError, match=r"^the weights of the frozen teacher, .* have changed since the start"):
        pretrain(again)
    weights.unlink()
    with pytest.raises(PlrcError, match=r"^the weights of the frozen teacher, .* do not exist; put them back"):
        pretrain(again)
    weights.write_bytes(original)
    assert pretrain(again).finished


def test_a_cache_serves_a_second_run_and_is_repaired(frozen: Tiny, tmp_path: Path) -> None:
    config = frozen(optim__steps=1, teacher__cache=str(tmp_path / "cache"))
    pretrain(config)
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    second = config.with_values({"run.out": str(tmp_path / "second"), "seed": 1})
    pretrain(second)
    assert "computing the teacher's features" not in (tmp_path / "second" / "log.txt").read_text()
    damaged = bytearray(content)
    damaged[5 * len(content) // 48 + 3] ^= 1
    file.write_bytes(bytes(damaged))
    pretrain(config.with_values({"run.out": str(tmp_path / "third")}))
    assert "computing the teacher's features of 1 images" in (tmp_path / "third" / "log.txt").read_text()
    assert file.read_bytes() == content


def test_a_cache_that_would_be_too_large_is_not_made(frozen: Tiny, tmp_path: Path) -> None:
    run = pretrain(frozen(optim__steps=1, teacher__cache_gigabytes=1e-6)).path
    log = (run / "log.txt").read_text()
    assert "more than teacher.cache_gigabytes (1e-06); they are computed in every step instead" in log
    assert not (run / "teacher").exists()


def test_unreadable_images_are_replaced(frozen: Tiny, scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, file in enumerate(sorted(scenes.glob("*.jpg"))):
        data = file.read_bytes()
        (folder / file.name).write_bytes(data if number % 8 else data[:200])
    run = pretrain(frozen(data__source=str(folder), data__max_unreadable_fraction=0.5, optim__steps=5))
    log = (run.path / "log.txt").read_text()
    assert run.finished and "another image takes its place" in log


def test_the_principal_components_keep_dot_products() -> None:
    torch.manual_seed(0)
    low_rank = F.normalize(torch.randn(500, 5) @ torch.randn(5, 40), dim=1)
    moment = low_rank.double().mT @ low_rank.double()
    reduction = principal_components(moment, 5)
    reduced = low_rank @ reduction.basis
    torch.testing.assert_close(reduced @ reduced.mT, low_rank @ low_rank.mT, atol=1e-5, rtol=0)
    torch.testing.assert_close(reduction.basis.mT @ reduction.basis, torch.eye(5), atol=1e-5, rtol=0)
    assert principal_components(moment, 64).basis.shape == (40, 40)


def test_the_anchor_is_the_start(tiny: Tiny, weights: Path) -> None:
    """Without weights of its own, the teacher has those of `model.init`."""
    config = tiny(
        **ONLY_FROZEN, teacher__kind="frozen", model__init=str(weights), teacher__size=64, optim__steps=1,
        model__backbone="resnet18", model__layer4_stride=2,
    )  # fmt: skip
    run = pretrain(config).path
    assert read_receipt(run / "teacher.json")["file"] == str(weights)
    assert json.loads((run / "teacher.json").read_text())["backbone"] == "resnet18"


@pytest.fixture
def library_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's own file of weights for resnet18, on a machine without a network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # refuses every connection
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.manual_seed(11)
    torch.save(build_backbone("resnet18").net.state_dict(), file)
    return file


@pytest.mark.parametrize("section", ["teacher", "model"])
def test_the_librarys_own_weights(frozen: Tiny, library_file: Path, section: str) -> None:
    """As the teacher's weights, and as those of the start, to which the student is anchored."""
    anchor = {"teacher__init": "", "teacher__backbone": "", "model__init": "pretrained"}
    settings = {"teacher__init": "pretrained"} if section == "teacher" else anchor
    config = frozen(**(ONLY_FROZEN | settings), optim__steps=3)
    with after_steps(1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        run = pretrain(config).path
    receipt = read_receipt(run / "teacher.json")
    assert (receipt["init"], receipt["file"], receipt["matched"]) == ("pretrained", str(library_file), 120)
    content = torch.load(library_file, weights_only=True)
    assert receipt["content_sha256"] == content_hash(content)
    again = config.with_values({"run.resume": True})
    original = library_file.read_bytes()
    torch.save(content | {"conv1.weight": torch.ones_like(content["conv1.weight"])}, library_file)
    with pytest.raises(PlrcError, match=r"^the weights of the frozen teacher, .*pth, have changed since the start"):
        pretrain(again)
    library_file.unlink()
    with pytest.raises(PlrcError, match=r"^torchvision's weights of resnet18 are not on this disk .* download https"):
        pretrain(again)
    library_file.write_bytes(original)
    assert pretrain(again).finished


def test_weights_without_a_file_are_compared_by_their_content(frozen: Tiny) -> None:
    """timm's own weights: a library loads them and names no file."""
    plan = prepare(frozen())
    _, receipt = load_teacher(plan.config)
    loaded_by_library = receipt | {"file": "timm's own weights", "sha256": ""}
    check_receipt(plan, loaded_by_library)
    check_receipt(plan, loaded_by_library)
    with pytest.raises(
        PlrcError, match=r"have changed since the start of the run \(their SHA-256 is now 000000000000, "
    ):
        check_receipt(plan, loaded_by_library | {"content_sha256": "0" * 64})


def test_a_twin_of_the_teachers_network_is_warned_of(frozen: Tiny, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    save_file(timm.create_model("efficientnet_lite0").state_dict(), tmp_path / "lite0.safetensors")
    lite0 = {"teacher__backbone": "timm:efficientnet_lite0", "teacher__init": str(tmp_path / "lite0.safetensors")}
    run = pretrain(frozen(**(ONLY_FROZEN | lite0), optim__steps=1)).path
    assert "timm:tf_efficientnet_lite0 has the same tensors as timm:efficientnet_lite0" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher__init": ""}, r"teacher.backbone names a network without weights; name them with --teacher.init"),
        ({"teacher__init": "", "teacher__backbone": ""}, r"teacher.kind frozen needs weights"),
        ({"teacher__init": "nowhere.pt"}, r"nowhere.pt, do not exist"),
        ({"teacher__stride": 7}, r"teacher.stride is 7; resnet18 has feature levels of strides 4, 8, 16, 32"),
        ({"teacher__backbone": "resnet50"}, r"does not fit resnet50"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused(frozen: Tiny, settings: dict[str, object], message: str) -> None:
    with pytest.raises(PlrcError, match=message):
        pretrain(frozen(**settings))


def test_a_stop_while_the_cache_is_filled_ends_well(frozen: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group of images is computed, then SIGTERM arrives; the next start computes the rest."""
    monkeypatch.setattr("plrc.engine.frozen.BATCH_SIZE", 8)
    config = frozen(optim__steps=2)
    write = TeacherCache.write

    def write_and_stop(self: TeacherCache, position: int, features: Tensor) -> None:
        write(self, position, features)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "write", write_and_stop)
        stopped = plrc.pretrain(config)
    assert not stopped.finished and stopped.step == 0
    assert plrc.pretrain(config.with_values({"run.resume": True})).finished
    log = (stopped.path / "log.txt").read_text()
    assert "stopped while the teacher's features were computed" in log
    assert "computing the teacher's features of 40 images" in log  # 48 without the first 8


def test_an_uncached_teacher_is_never_in_half_precision(frozen: Tiny) -> None:
    state, batch = prepared(frozen(**ONLY_FROZEN))
    assert state.learner.frozen is not None
    expected = state.learner.frozen.features(batch.teacher)
    with torch.autocast("cpu", torch.bfloat16):
        got = state.learner.frozen.features(batch.teacher)
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_a_teacher_that_would_not_be_used_is_refused(frozen: Tiny) -> None:
    for settings in ({"teacher__kind": "ema"}, {"objectives__frozen_weight": 0.0}):
        with pytest.raises(PlrcError, match=r"used only with teacher\.kind frozen and objectives\.frozen_weight > 0"):
            pretrain(frozen(**settings))


def test_components_of_other_settings_are_refused(frozen: Tiny) -> None:
    pretrain(frozen(optim__steps=1))
    changed = {"run.resume": True, "run.allow_changes": True, "teacher.stride": 8, "optim.steps": 2}
    with pytest.raises(PlrcError, match="principal components of a teacher with other settings; start a new run"):
        pretrain(frozen(optim__steps=1).with_values(changed))
