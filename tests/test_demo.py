"""The demo, shortened: everything real, fewer scenes and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from plrc.cli.demo import show_result
from plrc.demo import run_demo
from plrc.errors import RunError
from plrc.export import load_backbone


@pytest.mark.slow
def test_the_demo_learns_something_that_the_random_network_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    result = run_demo(out, steps=40, images=256)
    show_result(result, out, seconds=90.0)
    assert result["plrc"]["grouping_auc"] > result["random"]["grouping_auc"] + 0.02
    assert result["plrc"]["miou"] > result["random"]["miou"]
    assert json.loads((out / "result.json").read_text()) == result
    assert "Too early to judge" in (out / "run" / "report.html").read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert str(out / "run" / "report.html") in shown
    assert f"{result['plrc']['grouping_auc']:.3f}" in shown
    with Image.open(out / "affinity.png") as picture:
        assert picture.width > 400
        assert len(picture.convert("L").resize((64, 64)).getcolors() or []) > 20
    assert load_backbone(out / "run" / "exported" / "backbone.safetensors").channels[8] == 128


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(RunError, match="holds no demo"):
        run_demo(tmp_path, steps=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]
