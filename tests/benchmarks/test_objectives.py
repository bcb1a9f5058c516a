"""The objectives' benchmark: what is measured, what is left out, and that memory grows as the code promises."""

from __future__ import annotations

import itertools
import math

import pytest
from benchmarks import objectives
from benchmarks.report import Bench

TINY = {"points": (64, 256, 1024), "references": (64, 256, 1024), "width": 256, "repeats": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def found() -> Bench:
    return objectives.run(**TINY)


def of(bench: Bench, objective: str, **wanted: object) -> list[dict[str, object]]:
    rows = [row for row in bench.rows if row["objective"] == objective]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_there_is_a_row_for_every_size_and_backend(found: Bench) -> None:
    names = ("points", "references", "backend")
    distillation = [tuple(row[n] for n in names) for row in of(found, "affinity_distillation")]
    assert distillation == list(itertools.product((64, 256, 1024), (64, 256, 1024), ("dense", "fused")))
    contrast = [tuple(row[n] for n in names) for row in of(found, "point_region_contrast")]
    assert contrast == [(n, n, backend) for n in (64, 256, 1024) for backend in ("dense", "fused")]
    assert all(row["seconds"] > 0 and row["spread"] == 0 for row in found.rows)
    assert found.settings["references"] == [64, 256, 1024]


def test_memory_is_linear_fused_and_a_matrix_dense(found: Bench) -> None:
    assert found.figures["fused_memory_exponent_square"] == pytest.approx(1, abs=0.05)
    assert found.figures["dense_memory_exponent_square"] > 1.8
    assert found.figures["dense_memory_exponent"] == pytest.approx(1, abs=0.1)
    (dense,) = of(found, "affinity_distillation", points=1024, references=1024, backend="dense")
    assert 4 * 1024**2 * 4 < dense["peak_bytes"] <= 4 * 1024**2 * objectives.DENSE_MATRICES


def test_exponents_are_slopes_between_the_two_largest_sizes(found: Bench) -> None:
    small, large = of(found, "affinity_distillation", references=1024, backend="fused")[1:]
    for name, key in (("memory", "peak_bytes"), ("time", "seconds")):
        expected = math.log(large[key] / small[key], 4)
        assert found.figures[f"fused_{name}_exponent"] == pytest.approx(expected)


def test_the_full_form_is_left_out_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "DENSE_LIMIT", 4 * objectives.DENSE_MATRICES * 64 * 64)
    found = objectives.run(**TINY | {"points": (64, 65), "references": (64,)})
    assert [(r["points"], r["backend"]) for r in of(found, "affinity_distillation")] == [
        (64, "dense"),
        (64, "fused"),
        (65, "fused"),
    ]
    assert set(found.figures) == {"fused_memory_exponent", "fused_time_exponent"}
