"""The learner's terms: affinities in the basis of the feature cells are those of the features themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from plrc.config import Config
from plrc.engine.learner import Learner
from plrc.geometry import cell_centers, sample
from plrc.objectives import affinity_distillation, mean_affinity
from plrc.objectives.reference import reference_keys

CPU = torch.device("cpu")


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("width", "reduced"), [(8, False), (16, False), (17, True), (64, True)])
@pytest.mark.parametrize("side", [0, 4, 9])
def test_affinities_to_the_reference_grid_do_not_depend_on_the_basis(
    tiny: Callable[..., Config], width: int, reduced: bool, side: int, center: bool
) -> None:
    """32 px at stride 8: 4 x 4 cells."""
    (level,) = Learner(tiny(model__distill_dim=width, objectives__reference_grid=side), CPU).levels
    features = torch.randn(3, width, 4, 4)
    student, teacher = (F.normalize(torch.randn(3, 50, width), dim=-1).requires_grad_() for _ in range(2))
    points = cell_centers(level.reference_side(), level.reference_side())
    plain = F.normalize(sample(features, points.expand(3, -1, -1)), dim=-1)
    keys, basis = reference_keys(features, level.reference_side(), level.mixture)
    assert (basis is not None) == reduced
    mean = mean_affinity(teacher, plain)[0] if center else None
    results = []
    for s, t, k in (
        (student, teacher, plain),
        (student @ basis, teacher @ basis, keys) if basis is not None else (student, teacher, keys),
    ):
        loss = affinity_distillation(s, t, k, center=mean)
        results.append((loss, *torch.autograd.grad(loss, student), mean_affinity(t, k)[0]))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_the_pixel_baseline_alone_needs_no_reference_view(tiny: Callable[..., Config]) -> None:
    needed = {m: tiny(m, objectives__image_weight=0.0).needs_reference_view for m in ("pixel", "points")}
    assert needed == {"pixel": False, "points": True}
    assert tiny("pixel", objectives__image_weight=0.1).needs_reference_view


def test_a_network_that_would_damage_memory_is_not_trained_with_the_channels_last(tiny: Callable[..., Config]) -> None:
    """tests/integration/test_timm_families.py trains FastViT, which PyTorch aborts in this layout."""
    pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    layouts = {}
    for name, stride in (("fastvit_t8", 16), ("test_efficientnet", 16)):
        backbone = {"model__backbone": f"timm:{name}", "model__strides": (stride,), "model__layer4_stride": 2}
        layouts[name] = Learner(tiny(**backbone), CPU).memory_format
    assert layouts == {"fastvit_t8": torch.contiguous_format, "test_efficientnet": torch.channels_last}
