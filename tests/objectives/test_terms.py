"""The table of terms, and the examples in the docstrings of the objectives."""

from __future__ import annotations

import doctest
from dataclasses import fields

import pytest
import torch

from plrc.config import ObjectiveConfig
from plrc.objectives import TERMS, distillation, image, points, total_loss
from plrc.objectives.affinity import Term


def term(total: float, count: float) -> Term:
    return Term(torch.tensor(total, requires_grad=True), torch.tensor(count), torch.tensor(0.0))


def test_every_weight_among_the_settings_has_its_row() -> None:
    weights = [field.name for field in fields(ObjectiveConfig) if field.name.endswith("_weight")]
    assert [row.weight_setting for row in TERMS.values()] == weights
    assert all(row.name == name for name, row in TERMS.items())


def test_the_loss_is_the_weighted_sum_of_the_means() -> None:
    terms = {"image": term(6.0, 3.0), "point": term(5.0, 2.0)}
    assert total_loss(terms, {"image": 0.5, "point": 2.0}).item() == pytest.approx(0.5 * 2 + 2 * 2.5)


def test_with_the_counts_of_all_processes_it_is_a_share() -> None:
    terms = {"image": term(6.0, 3.0)}
    assert total_loss(terms, {"image": 1.0}, torch.tensor([12.0])).item() == pytest.approx(0.5)


def test_a_term_without_a_valid_query_is_zero() -> None:
    nothing = term(0.0, 0.0)
    loss = total_loss({"point": nothing}, {"point": 0.3})
    loss.backward()
    assert loss.item() == 0 and nothing.total.grad is not None and nothing.total.grad.isfinite()


@pytest.mark.parametrize("module", [image, points, distillation])
def test_the_examples_give_what_they_show(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 3 and result.failed == 0
