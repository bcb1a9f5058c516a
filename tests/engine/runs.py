"""What the tests of whole runs share: reading a run folder, comparing bit for bit, acting in the middle of a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from plrc.engine import pretrain as loop
from plrc.engine.checkpoint import load_checkpoint, newest_checkpoint


def metrics(out: str | Path, kind: str = "train") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def final(out: str | Path) -> dict[str, object]:
    path = newest_checkpoint(Path(out))
    assert path is not None
    return load_checkpoint(path)


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equal nested content, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where  # type: ignore[arg-type]
        for i, (x, y) in enumerate(zip(a, b, strict=True)):  # type: ignore[call-overload]
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


@contextlib.contextmanager
def after_steps(steps: int, act: Callable[[], None]) -> Iterator[None]:
    """Act inside the loop once this many steps of this start are computed, before they are logged or saved."""
    original, done = loop.MetricWindow.add_step, 0

    def counted(self: loop.MetricWindow, *args: torch.Tensor) -> None:
        nonlocal done
        original(self, *args)
        done += 1
        if done == steps:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.MetricWindow, "add_step", counted)
        yield


def power_cut() -> None:
    raise RuntimeError("power cut")


def curve(out: str | Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what is measured in seconds."""
    timed = ("images_per_second", "data_wait_share")
    return [{name: value for name, value in line.items() if name not in timed} for line in metrics(out)]


def assert_same_end(a: str | Path, b: str | Path) -> None:
    """Two runs that ended alike: everything in the last checkpoint but the settings, and the curve, bit for bit."""
    first, second = final(a), final(b)
    for key in first.keys() - {"config", "health"}:
        assert_same(first[key], second[key], key)
    assert curve(a) == curve(b)
