"""The example trains, and what it trains against is the teacher."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor

from plrc.objectives import affinity_distillation, image_contrast, point_region_contrast

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_loop.py"


@pytest.fixture
def own_loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loss_falls(own_loop: ModuleType) -> None:
    losses = own_loop.main()
    assert len(losses) == 60
    assert sum(losses[-5:]) / 5 < losses[0] - 1.0
    assert max(losses[-5:]) < min(losses[:5])


def test_every_term_is_against_the_teacher(own_loop: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries carry a gradient, keys do not; student and teacher start equal and then part."""
    seen: dict[str, list[tuple[Tensor, ...]]] = {"image": [], "point": [], "distill": []}

    def image(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        seen["image"].append((query, key, queue))
        return image_contrast(query, key, queue)

    def point(query: Tensor, keys: Tensor, query_regions: Tensor, key_regions: Tensor) -> Tensor:
        seen["point"].append((query, keys))
        assert len(query_regions.unique()) > 100  # of 8 pictures x 16 regions: unique over the batch
        return point_region_contrast(query, keys, query_regions, key_regions)

    def distill(student: Tensor, teacher: Tensor, reference: Tensor) -> Tensor:
        seen["distill"].append((student, teacher, reference))
        return affinity_distillation(student, teacher, reference)

    monkeypatch.setattr(own_loop, "image_contrast", image)
    monkeypatch.setattr(own_loop, "point_region_contrast", point)
    monkeypatch.setattr(own_loop, "affinity_distillation", distill)
    own_loop.main(steps=12)
    for name, calls in seen.items():
        assert len(calls) == 12, name
        for query, *fixed in calls:
            assert query.requires_grad, name
            assert not any(tensor.requires_grad for tensor in fixed), name
    agreement = [(query * keys).sum(dim=-1).mean().item() for query, keys in seen["point"]]
    assert agreement[0] > 0.99  # the same network on nearly the same picture
    assert min(agreement) < agreement[0] - 0.01  # the student has moved on, the teacher follows slowly
