"""The other library's steps do what a step does; without the library the user is told what to install."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from benchmarks import step
from benchmarks.peers import LightlyMethod, Peer, peer_variants

from plrc.config import Config
from plrc.errors import PlrcError


def small() -> Config:
    return step._config("resnet18", 32, 2, 0)


def test_a_missing_lightly_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightly.transforms.moco_transform", None)
    with pytest.raises(PlrcError, match="need lightly; install with: pip install lightly"):
        peer_variants(small(), *torch.zeros(2, 2, 3, 32, 32), contextlib.nullcontext)


@pytest.mark.slow
def test_peers_are_measured_with_the_step() -> None:
    pytest.importorskip("lightly")
    found = step.run(backbone="resnet18", size=32, batch=2, repeats=1, device="cpu", peers=True)
    peaks = {row["variant"]: row["peak_bytes"] for row in found.rows if "part" not in row}
    for name in ("lightly MoCo v2", "lightly DenseCL"):
        own = f"{name}: network passes"
        assert found.figures[f"{name}: memory_ratio"] == peaks[name] / peaks[own]
        assert found.figures[f"{name}: time_ratio"] > 0
    assert "lightly transforms" in peaks


@pytest.mark.parametrize("dense", [False, True])
def test_a_peers_step_moves_teacher_and_bank(dense: bool) -> None:
    pytest.importorskip("lightly")
    method = LightlyMethod(small(), dense)
    peer = Peer(small(), method, *torch.randn(2, 2, 3, 32, 32), contextlib.nullcontext)
    with torch.no_grad():
        method.student.head.layers[0].weight += 1
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    peer.passes()
    assert all(int(loss.memory_bank.bank_ptr) == 0 for loss in method.losses.values())
    peer.step()
    changed = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert "teacher.head.layers.0.weight" in changed and not any(name.startswith("student") for name in changed)
    assert {name: int(loss.memory_bank.bank_ptr) for name, loss in method.losses.items()} == (
        {"image": 2, "dense": 2} if dense else {"image": 2}
    )
    assert all(p.grad is None for p in method.parameters())
