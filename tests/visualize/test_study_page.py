"""The page of a study, from the lines of a real study in docs/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plrc.study import Study, content, table
from plrc.visualize import charts
from plrc.visualize.study import save_study, study_page

ROOT = Path(__file__).parents[2]
EVIL = '<b>"x.jpg'


@pytest.fixture(scope="module")
def transfer_study() -> dict[str, Any]:
    study = Study.load(ROOT / "studies" / "transfer.toml")
    lines = [json.loads(line) for line in (ROOT / "docs/results/study/transfer.jsonl").read_text().splitlines()]
    return content(study.title, lines, study.metric, study.baseline, len(study.runs), EVIL)


def test_the_figures_are_those_of_the_table(transfer_study: dict[str, Any], page: Any) -> None:
    page.set_content(study_page(transfer_study))
    shown = " ".join(page.inner_text("body").split())
    rows = [
        line.strip("| ").split(" | ")
        for line in table(transfer_study["lines"], "miou_8", "random").split("\n\n")[0].splitlines()[2:]
    ]
    assert len(rows) == 6
    for method, runs, score, *_ in rows:
        assert f"{method} {runs} {score}" in shown
    assert page.problems == [] and transfer_study["title"] in shown
    assert page.locator("svg").count() == 1 + bool(transfer_study["curves"])
    page.set_viewport_size({"width": 360, "height": 740})
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert EVIL in page.inner_text("body")


def test_along_a_numeric_axis(page: Any, tmp_path: Path) -> None:
    """Lines with a known slope: higher scores are drawn higher, and the slope is shown."""
    lines = [
        {
            "axes": {"method": method, "seed": seed, "regions.merge": merge},
            "scores": {"auc_8": 0.5 + merge * 0.008 + up},
        }
        for method, up in (("points", 0.1), ("plrc", 0.2))
        for seed in (0, 1, 2)
        for merge in (0.0, 0.5, 1.0)
    ]
    lines += [{"axes": {"method": "random", "seed": seed}, "scores": {"auc_8": 0.5}} for seed in (0, 1, 2)]
    study = content(EVIL, lines, "auc_8", "random", 30, "")
    page.set_content(study_page(study))
    shown = " ".join(page.inner_text("body").split())
    assert EVIL in shown and "preliminary" in shown
    assert "regions.merge points +0.008" in shown and "points, merge 0.5" in shown
    drawn = [page.locator(f"svg path[clip-path][style*='stroke: var(--c{i})']").all() for i in range(3)]
    random, points, plrc = [min(path.bounding_box()["y"] for path in paths) for paths in drawn]  # from the page's top
    assert plrc < points < random
    assert page.problems == []
    save_study(tmp_path / "s.svg", study)
    picture = (tmp_path / "s.svg").read_text()
    for text in ("auc_8", "random", "points", "plrc", *charts.LIGHT_SERIES[:3]):
        assert f">{text}<" in picture or f": {text}" in picture
    assert charts.SERIES_PLACEHOLDER not in picture and charts.TEXT_PLACEHOLDER not in picture


def test_a_study_that_has_only_begun_has_a_page() -> None:
    begun = content("odd \udcff byte", [], "miou_8", "random", 3, "")  # such names come from file systems
    text = study_page(begun)
    assert "no run has this score yet" in text and "odd ? byte" in text
