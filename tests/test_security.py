"""What SECURITY.md promises: no code from files, no way out of a folder, bounds on what a small file can claim."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.test_layers import FILES, SOURCE, names_used

from plrc import load_backbone
from plrc.cli import main
from plrc.config import Config
from plrc.data.id_maps import RegionError, load_regions, map_path
from plrc.data.masks import read_coco_masks
from plrc.data.region_precompute import precompute_regions
from plrc.data.sources import ImageList, find_images
from plrc.engine.checkpoint import KEYS, load_checkpoint
from plrc.engine.pretrain import pretrain
from plrc.engine.setup import prepare
from plrc.errors import PlrcError
from plrc.export import export_backbone
from plrc.files import parse_json
from plrc.model.pickles import read_arrays
from plrc.settings import read_toml
from plrc.text import printable
from plrc.transfer.finetune import _restore
from plrc.transfer.initial import initial_backbone
from plrc.transfer.labels.label_maps import count_values

# --- the code itself -------------------------------------------------------------------------------------------------

FORBIDDEN = frozenset(
    """pickle.load pickle.loads pickle.Unpickler numpy.load marshal.load marshal.loads shelve.open joblib.load dill.load
    dill.loads yaml.load yaml.full_load yaml.unsafe_load os.system os.popen runpy.run_path subprocess.getoutput
    subprocess.getstatusoutput tarfile.open shutil.unpack_archive torch.hub.load torch.jit.load""".split()
)
BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
ALLOWED = {  # what else a file may do, and why
    (
        "data/shard_index.py",
        "tarfile.open",
    ),  # the headers alone: nothing is unpacked, names that leave a folder are refused
    ("model/pickles.py", "pickle.Unpickler"),  # whose find_class knows arrays and nothing else, see below
    ("transfer/labels/yolo_source.py", "yaml.load"),  # with BaseLoader, which builds text, lists and dictionaries alone
    ("data/channels.py", "numpy.load"),  # arrays of numbers from a user's file; allow_pickle is False
    ("data/cache.py", "numpy.load"),  # our own files, in a folder that the user names; allow_pickle is False
}


def dangers(name: str, text: str) -> list[str]:
    """What a file of the package does that may run foreign code."""
    tree = ast.parse(text)
    used = {n.replace("np.", "numpy.", 1) if n.startswith("np.") else n for n in names_used(tree)}
    out = [f"uses {n}" for n in sorted(used & FORBIDDEN) if (name, n) not in ALLOWED]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if function in BUILTINS:
            out.append(f"calls {function}")
        if function == "torch.load" and given.get("weights_only") != "True":
            out.append("torch.load without weights_only=True")
        if given.get("shell", "False") != "False":
            out.append(f"{function} with a shell")
        if given.get("allow_pickle", "False") != "False":
            out.append(f"{function} with pickles")
        if function.endswith("extractall"):
            out.append("extractall")
        if function.rpartition(".")[2] == "Environment" and given.get("autoescape") != "True":
            out.append("a template environment that does not escape")
        if function == "json.loads" and name.startswith(("data/", "transfer/", "study/")):
            out.append("json.loads instead of files.parse_json")
    return out


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_no_file_of_the_package_can_run_foreign_code(path: Path) -> None:
    assert dangers(str(path.relative_to(SOURCE)), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "danger"),
    [
        ("import pickle\npickle.loads(x)", "uses pickle.loads"),
        ("from pickle import load\nload(x)", "uses pickle.load"),
        ("import numpy as np\nnp.load(x)", "uses numpy.load"),
        ("import torch\ntorch.load(x)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(x, weights_only=flag)", "torch.load without weights_only=True"),
        ("import os\nos.system(x)", "uses os.system"),
        ("import subprocess\nsubprocess.run(x, shell=True)", "subprocess.run with a shell"),
        ("eval(x)", "calls eval"),
        ("archive.extractall(x)", "extractall"),
        ("np.lib.format.read_array(x, allow_pickle=True)", "np.lib.format.read_array with pickles"),
        ("Environment(loader=x)", "a template environment that does not escape"),
        ("import json\njson.loads(x)", "json.loads instead of files.parse_json"),
    ],
)
def test_each_danger_is_found(text: str, danger: str) -> None:
    assert danger in dangers("data/a.py", text)


def test_no_template_switches_escaping_off() -> None:
    pages = sorted(SOURCE.rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", "") and "autoescape" not in text


# --- weights and checkpoints -----------------------------------------------------------------------------------------


class Planted:
    """A pickle that leaves a mark if it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def evil(tmp_path: Path) -> dict[str, Path]:
    """The same trap as torch file, bare pickle, old torch format, and a checkpoint with all keys."""
    trap = Planted(tmp_path / "mark")
    files = {name: tmp_path / f"{name}.pt" for name in ("torch", "bare", "old", "checkpoint")}
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "x": trap}, files["torch"])
    files["bare"].write_bytes(pickle.dumps(trap, protocol=2))
    torch.save({"x": trap}, files["old"], _use_new_zipfile_serialization=False)
    torch.save(dict.fromkeys(KEYS) | {"format": 1, "config": trap}, files["checkpoint"])
    return files


@pytest.mark.parametrize("kind", ["torch", "bare", "old", "checkpoint"])
def test_no_entrance_for_weights_runs_a_pickle(
    kind: str, evil: dict[str, Path], tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = evil[kind], tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    file_in_run = run / "checkpoints" / "step_00000001.pt"
    file_in_run.write_bytes(file.read_bytes())
    layer = torch.nn.Linear(1, 1)
    entrances: dict[str, Callable[[], object]] = {
        "--init": lambda: pretrain(tiny(model__init=str(file), run__out=str(tmp_path / "fresh"))),
        "--resume": lambda: prepare(tiny(run__resume=True, run__out=str(run))),
        "checkpoint": lambda: load_checkpoint(file),
        "export": lambda: export_backbone(file),
        "export of a run": lambda: export_backbone(run),
        "load_backbone": lambda: load_backbone(file, backbone="resnet18"),
        "load_backbone of a run": lambda: load_backbone(run),
        "transfer --init": lambda: initial_backbone(str(file), "resnet18"),
        "transfer, resumed": lambda: _restore(file, layer, torch.optim.SGD(layer.parameters())),
    }
    for name, enter in entrances.items():
        with pytest.raises(PlrcError) as caught:
            enter()
        assert "\n" not in str(caught.value) and str(caught.value), name
        assert not (tmp_path / "mark").exists(), name
    assert main(["export", str(file), "--to", "torchvision"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "mark").exists()


def test_pickles_of_arrays_name_nothing_else(evil: dict[str, Path], tmp_path: Path) -> None:
    """The one reader of pickles: functions are refused, and so are bytes that are taken for objects (addresses)."""
    with pytest.raises(pickle.UnpicklingError, match="mkdir is not numpy's; it is not run"):
        read_arrays(evil["bare"])
    assert not (tmp_path / "mark").exists()

    class Addresses:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return np.ndarray, ((1,), "O", bytearray(8))

    (tmp_path / "addresses.pkl").write_bytes(pickle.dumps(Addresses(), protocol=5))
    with pytest.raises(pickle.UnpicklingError, match="an array of 'O', not of numbers"):
        read_arrays(tmp_path / "addresses.pkl")


def test_the_trap_would_snap(evil: dict[str, Path], tmp_path: Path) -> None:
    torch.load(evil["torch"], weights_only=False)
    assert (tmp_path / "mark").exists()


# --- region files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg", ".."])
def test_no_id_map_is_named_outside_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="lies outside"):
        map_path(tmp_path / "maps", name)


def test_no_id_map_is_written_through_a_link(scenes: Path, tiny: Callable[..., Config], tmp_path: Path) -> None:
    images, elsewhere, maps = tmp_path / "images", tmp_path / "elsewhere", tmp_path / "maps"
    (images / "a").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("a/0.jpg", "1.jpg"):
        (images / name).write_bytes(next(scenes.iterdir()).read_bytes())
    config = tiny(data__source=str(images), regions__source="voronoi")
    listed = find_images(config.data)
    precompute_regions(config, listed, maps, 0)
    (maps / "a" / "0.png").unlink()
    (maps / "a").rmdir()
    (maps / "a").symlink_to(elsewhere)
    (maps / "1.png").unlink()
    (elsewhere / "kept.png").write_bytes(b"kept")
    (maps / "1.png").symlink_to(elsewhere / "kept.png")
    with pytest.raises(PlrcError, match=r"leads out of .*maps"):
        precompute_regions(config, listed, maps, 0)
    assert os.listdir(elsewhere) == ["kept.png"] and (elsewhere / "kept.png").read_bytes() == b"kept"


def npy_header(shape: tuple[int, ...], kind: str = "<i8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_small_maps_with_much_behind_them_are_refused(tmp_path: Path) -> None:
    """None of these is inflated: the sentence comes from the header."""
    (tmp_path / "claims.npy").write_bytes(npy_header((10**6, 10**6)))
    (tmp_path / "objects.npy").write_bytes(npy_header((1, 1), "|O") + pickle.dumps(Planted(tmp_path / "mark")))
    archive = zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("a.npy", "w", force_zip64=True) as file:
        file.write(npy_header((1, 300_000_000), "|i1"))
        for _ in range(30):
            file.write(bytes(10_000_000))
    Image.new("1", (20_000, 15_000)).save(tmp_path / "bomb.png")
    for name in ("claims.npy", "bomb.npz", "bomb.png"):
        assert (tmp_path / name).stat().st_size < 10**6
        with pytest.raises(RegionError, match=r"pixels; 1 to 200000000 can be used|exceeds limit of"):
            load_regions(tmp_path / name, 8)
    with pytest.raises(PlrcError, match=r"label map .*bomb\.png .*pixels; 1 to 200000000 can be used"):
        count_values([str(tmp_path / "bomb.png")])
    with pytest.raises(RegionError, match="whole numbers"):
        load_regions(tmp_path / "objects.npy", 8)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("height", "width"), [(10**9, 10**9), (-4, -4), (0, 4)])
def test_a_coco_file_cannot_claim_any_size(height: int, width: int, tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="masks need faster-coco-eval")
    note = {"image_id": 1, "segmentation": {"size": [height, width], "counts": [height * width]}, "id": 1}
    table = {"images": [{"id": 1, "file_name": "a.jpg", "height": height, "width": width}], "annotations": [note]}
    (tmp_path / "a.json").write_text(json.dumps(table))
    with pytest.raises(PlrcError, match=r"pixels; 1 to 200000000 can be used|without height and width"):
        read_coco_masks(tmp_path / "a.json", ImageList(str(tmp_path), ("a.jpg",), "folder"))


# --- text ------------------------------------------------------------------------------------------------------------

DEEP = 200_000


def test_json_and_toml_of_absurd_depth_give_one_sentence(
    tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = "[" * DEEP
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(deep)
    (tmp_path / "a.json").write_text(deep)
    (tmp_path / "a.toml").write_text("a = " + deep)
    (tmp_path / "tables.toml").write_text(f"[{'a.' * 20_000}a]\nb = 1")
    assert main(["scan", str(tmp_path / "a.json")]) == 2
    assert main(["pretrain", "--config", str(tmp_path / "a.toml"), "--data", "x", "--out", str(tmp_path / "r")]) == 2
    assert main(["transfer", "detection", "--data", str(tmp_path / "a.json"), "--out", str(tmp_path / "t")]) == 2
    sentences = capsys.readouterr().err.splitlines()
    assert len(sentences) == 3 and all(s.startswith("plrc: ") and "Traceback" not in s for s in sentences)
    assert "too deeply" in sentences[1]
    with pytest.raises(PlrcError):
        Config.from_dict(read_toml(tmp_path / "tables.toml"))


def test_settings_never_reach_a_shell(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Names with everything that a shell would act on are names and nothing else."""
    name = f"$(touch {tmp_path}/pwned); `touch {tmp_path}/pwned` | x".replace("/", "_")
    assert pretrain(tiny(run__out=str(tmp_path / name), optim__steps=1)).finished
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != name) == []


def test_names_cannot_write_to_a_terminal_or_into_a_log() -> None:
    assert printable("a\x1b[31m\n\u202eb\udcff\u00e9.jpg") == "a\\x1b[31m\\n\\u202eb\\udcff\u00e9.jpg"
