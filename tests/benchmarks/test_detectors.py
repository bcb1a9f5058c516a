"""The benchmark of detectors: a row for each, compared with Faster R-CNN."""

from __future__ import annotations

import pytest
from benchmarks import detectors

pytest.importorskip("transformers")
pytest.importorskip("scipy")


@pytest.mark.slow
def test_figures_come_from_the_rows() -> None:
    bench = detectors.run(size=128, batch=1, repeats=1, device="cpu")
    rows = {row["variant"]: row for row in bench.rows}
    assert list(rows) == ["faster_rcnn", "rt_detr_v2", "d_fine", "rf_detr"]
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in rows.values())
    for name in ("rt_detr_v2", "d_fine", "rf_detr"):
        expected = rows[name]["seconds"] / rows["faster_rcnn"]["seconds"]
        assert bench.figures[f"{name}_time_ratio"] == expected
        assert bench.figures[f"{name}_memory_ratio"] == rows[name]["peak_bytes"] / rows["faster_rcnn"]["peak_bytes"]
