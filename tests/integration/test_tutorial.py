"""The tutorial notebook: it runs from the first cell to the last, and what is stored is of a real execution."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.integration.processes import HANGS, ROOT

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (extra dev)")

TUTORIAL = ROOT / "examples" / "tutorial.ipynb"
TINY = {"IMAGES": 80, "STEPS": 3, "LABELLED": 8, "DETECTOR_STEPS": 2, "SEEDS": 1}


def read_tutorial() -> Any:
    return nbformat.read(TUTORIAL, as_version=4)


def code_cells(notebook: Any) -> dict[str, Any]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def texts(cell: Any) -> str:
    """What a cell has shown as text."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (extra dev)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (extra dev)")
    pytest.importorskip("faster_coco_eval", reason="the detector needs faster-coco-eval (extra transfer)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read_tutorial()
    cells = code_cells(notebook)
    parameters = cells["parameters"]
    for name, value in TINY.items():
        parameters.source, changed = re.subn(rf"^{name} = \d+", f"{name} = {value}", parameters.source, flags=re.M)
        assert changed == 1
    for cell in cells.values():
        cell.outputs = []
    nbclient.NotebookClient(
        notebook, timeout=HANGS, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert "Run('tutorial/run', finished at step 3" in texts(cells["train"])
    assert "all equal in torchvision" in texts(cells["export"]) and "unexpected_keys=[]" in texts(cells["export"])
    assert "preliminary" in texts(cells["detector"])
    stored = code_cells(read_tutorial())
    for name, cell in cells.items():
        kinds = [(output.output_type, sorted(output.get("data", {}))) for output in cell.outputs]
        assert kinds == [(output.output_type, sorted(output.get("data", {}))) for output in stored[name].outputs], name


def test_what_is_stored_is_a_real_execution_without_machine_paths() -> None:
    assert TUTORIAL.stat().st_size < 1e6
    cells = code_cells(read_tutorial())
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for name, cell in cells.items() if name != "parameters")
    shown = "\n".join(map(texts, cells.values()))
    assert not re.search(r"(^|[\s'\"(])/\w+/|[A-Z]:\\|Traceback|warning:", shown), shown
    steps = re.search(r"^STEPS = (\d+)", cells["parameters"].source, flags=re.M)
    assert steps is not None and f"Run('tutorial/run', finished at step {steps[1]}, " in shown
    assert "Healthy" in texts(cells["verdict"])
    pictures = [output for cell in cells.values() for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
