"""The shape of the package: who may import whom, how long a file may be, and what only one file may do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "plrc"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = (
    {"errors", "text", "progress", "files", "machine", "interrupts"},
    {"settings", "pixels", "notebook", "unproven"},
    {"config", "geometry", "rng", "distributed"},
    {"runtime", "measures"},
    {"data"},
    {"model"},
    {"objectives"},
    {"engine"},
    {"presets", "scenes"},
    {"transfer", "export", "visualize"},
    {"compare"},
    {"study"},
    {"", "api", "cli", "demo", "doctor", "__main__"},  # "" is plrc/__init__.py: the public names
)
OBJECTIVES_MAY_IMPORT = {"geometry"}  # they serve in a training loop of the user's own
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
TOP = len(LAYERS) - 1

COLLECTIVES = frozenset(
    """all_gather all_gather_into_tensor all_gather_object all_reduce all_to_all all_to_all_single barrier broadcast
    broadcast_object_list destroy_process_group gather gather_object init_process_group irecv isend monitored_barrier
    new_group recv reduce reduce_scatter reduce_scatter_tensor scatter scatter_object_list send""".split()
)


def unit_of(path: Path, root: Path) -> str:
    """The part of the package that a file belongs to: config, data, ..., "" for the package's own __init__."""
    first = path.relative_to(root).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def names_used(tree: ast.Module) -> set[str]:
    """Dotted names of everything that a file imports, and of every attribute it reads from an imported module."""
    alias: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                alias[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
                used.add(name.name)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                alias[name.asname or name.name] = f"{node.module}.{name.name}"
                used.add(f"{node.module}.{name.name}")
    for node in ast.walk(tree):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in alias:
            used.add(".".join([alias[inner.id], *reversed(parts)]))
    return used


def imported_units(tree: ast.Module) -> set[str]:
    """The parts of plrc that a file imports or reaches through `import plrc`."""
    parts = [name.split(".") for name in names_used(tree)]
    return {p[1] if len(p) > 1 and p[1] in LAYER else "" for p in parts if p[0] == "plrc" and p != ["plrc"]} | (
        {""} if ["plrc"] in parts else set()
    )


def complaints(path: Path, root: Path) -> list[str]:
    """What a file of the package at `root` does that its place does not allow."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    mine = unit_of(path, root)
    if mine not in LAYER:
        return [f"{mine} has no layer; give it one in LAYERS"]
    out = []
    if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)):
        out.append("imports relatively")
    for other in sorted(imported_units(tree) - {mine}):
        lower = LAYER[other] < LAYER[mine] or LAYER[mine] == TOP
        if not lower or (mine == "objectives" and other not in OBJECTIVES_MAY_IMPORT):
            out.append(f"{mine or 'plrc'} imports {other or 'plrc'}")
    if text.count("\n") > 400:
        out.append(f"has {text.count(chr(10))} lines")
    if "grid_sample" in text and path.name != "geometry.py":
        out.append("mentions grid_sample")
    if mine != "distributed":
        calls = {
            n for n in names_used(tree) if n.startswith("torch.distributed.") and n.rpartition(".")[2] in COLLECTIVES
        }
        out += [f"uses {name}" for name in sorted(calls)]
    return out


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_every_file_keeps_to_its_place(path: Path) -> None:
    assert complaints(path, SOURCE) == []


def test_the_files_are_found() -> None:
    assert {"settings.py", "geometry.py", "distributed.py"} <= {path.name for path in FILES}
    assert {"data", "model", "objectives", "engine", "export"} <= {unit_of(path, SOURCE) for path in FILES}


@pytest.mark.parametrize(
    ("place", "text", "complaint"),
    [
        ("config/inputs.py", "from plrc.geometry import sample", "config imports geometry"),
        ("data/loader.py", "from plrc.model import Network", "data imports model"),
        ("data/loader.py", "import plrc.model.network", "data imports model"),
        ("data/loader.py", "from plrc import model", "data imports model"),
        ("data/loader.py", "def f():\n    from plrc.engine.pretrain import pretrain", "data imports engine"),
        ("engine/pretrain.py", "from plrc import pretrain", "engine imports plrc"),
        ("engine/pretrain.py", "import plrc\nplrc.export.load_backbone", "engine imports export"),
        ("engine/pretrain.py", "from .state import TrainingState", "imports relatively"),
        ("objectives/image.py", "from plrc.config import Config", "objectives imports config"),
        ("objectives/image.py", "from plrc import distributed", "objectives imports distributed"),
        ("transfer/probe.py", "from plrc.export import load_backbone", "transfer imports export"),
        ("export/timm.py", "import plrc.visualize.report as report", "export imports visualize"),
        ("measures/probe.py", "from plrc.transfer.metrics import confusion", "measures imports transfer"),
        ("visualize/report.py", "from plrc.cli import main", "visualize imports cli"),
        ("transfer/finetune.py", "from plrc.compare.run import table", "transfer imports compare"),
        ("extra.py", "", "extra has no layer; give it one in LAYERS"),
        ("data/long.py", "\n" * 401, "has 401 lines"),
        ("data/views.py", "from torch.nn import functional as F\nF.grid_sample(a, b)", "mentions grid_sample"),
        ("engine/a.py", "import torch\ntorch.distributed.all_reduce(x)", "uses torch.distributed.all_reduce"),
        ("engine/a.py", "import torch.distributed as dist\ndist.broadcast(x, 0)", "uses torch.distributed.broadcast"),
        ("engine/a.py", "from torch import distributed as d\nd.barrier()", "uses torch.distributed.barrier"),
        ("engine/a.py", "from torch.distributed import all_gather", "uses torch.distributed.all_gather"),
    ],
)
def test_each_rule_catches_its_breach(place: str, text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert complaint in complaints(path, tmp_path)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("engine/a.py", "from plrc import distributed\ndistributed.gather(x)"),
        ("engine/a.py", "from torch.nn.parallel import DistributedDataParallel"),
        (
            "objectives/image.py",
            "import torch\nfrom plrc.geometry import sample\nfrom plrc.objectives.affinity import ace",
        ),
        ("transfer/probe.py", "from plrc.engine.checkpoint import load_checkpoint\nfrom plrc import geometry"),
        ("cli.py", "from plrc import pretrain\nfrom plrc.demo import demo\nfrom plrc.export import load_backbone"),
        ("__init__.py", "from plrc import objectives\nfrom plrc.presets import preset"),
    ],
)
def test_what_is_allowed_is_not_complained_about(place: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert complaints(path, tmp_path) == []
