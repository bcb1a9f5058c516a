"""Every target: one real run goes to all of them, each fault in a file is caught and named, and weights come back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from tests.export.runs import State, backbone_of, names, saved_run, small_config

import plrc
from plrc.engine.checkpoint import save_checkpoint
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError
from plrc.export import TARGETS, Receipt, export_backbone
from plrc.export.proof import prove
from plrc.model import build_backbone
from plrc.model.pickles import read_arrays, write_arrays
from plrc.model.weights import read_weights

pytest.importorskip("timm", reason="needs the extra timm")
pytest.importorskip("transformers", reason="needs the extra transformers")
onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

NAME = "resnet18"
FILES = {
    "torchvision": "backbone.safetensors",
    "timm": "timm/backbone.safetensors",
    "transformers": "transformers/model.safetensors",
    "detectron2": "detectron2/backbone.pth",
    "mmdetection": "mmdetection/backbone.pth",
    "safetensors": "safetensors/backbone.safetensors",
    "onnx": "onnx/backbone.onnx",
}
PROVEN = ("torchvision", "timm", "transformers", "safetensors", "onnx")  # mmdetection where it is installed
READ_BACK = tuple(target for target in FILES if target != "onnx")


@pytest.fixture(scope="module")
def run(trained_run: plrc.Run) -> Path:
    return trained_run.path


@pytest.fixture(scope="module")
def student(run: Path) -> State:
    return backbone_of(run)


@pytest.fixture(scope="module")
def receipts(run: Path) -> dict[str, Receipt]:
    return {target: export_backbone(run, target) for target in TARGETS}


def check_receipt(receipt: Receipt, target: str, run: Path, student: State) -> None:
    file = run / "exported" / FILES[target]
    assert receipt.file == str(file)
    assert receipt.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    told = json.loads(file.with_name(f"{file.name}.receipt.json").read_text())
    assert told["content_sha256"] == receipt.content_sha256
    counters = {name for name in student if name.endswith(".num_batches_tracked")}
    assert set(receipt.absent) == (counters if target == "onnx" else set())
    assert receipt.tensors == len(student) - len(receipt.absent)
    assert told["settings"]["channels"] == "RGB"
    top = 255 if target in ("detectron2", "mmdetection") else 1
    assert told["settings"]["mean"][0] == pytest.approx(0.485 * top)
    verified = f"all equal in {target}" in receipt.line()
    assert verified == (receipt.largest_difference is not None) == bool(receipt.networks) == (receipt.note == "")
    assert verified or "not verified in the target" in receipt.line()
    assert verified or target not in PROVEN
    assert sorted(p.name for p in file.parent.glob(".*")) == []


@pytest.mark.parametrize("target", TARGETS)
def test_one_run_goes_to_every_target(target: str, receipts: dict[str, Receipt], run: Path, student: State) -> None:
    check_receipt(receipts[target], target, run, student)
    assert receipts[target].content_sha256 == receipts["torchvision"].content_sha256


@pytest.mark.slow
def test_a_bottleneck_network_goes_to_every_target(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", names(build_backbone("resnet50")), backbone="resnet50")
    student = backbone_of(run)
    found = {target: export_backbone(run, target) for target in TARGETS}
    for target, receipt in found.items():
        check_receipt(receipt, target, run, student)
    assert len({receipt.content_sha256 for receipt in found.values()}) == 1


def edit(path: Path, change: Callable[[State], State]) -> None:
    """Change the tensors of an exported file, and nothing else in it."""
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        content = {name: tensor.clone() for name, tensor in change(safetensors.torch.load_file(path)).items()}
        safetensors.torch.save_file(content, path, metadata)
    elif path.suffix == ".onnx":
        edit_graph(path, change)
    else:
        content = read_arrays(path) if path.suffix == ".pkl" else torch.load(path, weights_only=True)
        key = "model" if "model" in content else "state_dict"
        content[key] = change(content[key])
        (write_arrays if path.suffix == ".pkl" else lambda p, c: torch.save(c, p))(path, content)


def edit_graph(path: Path, change: Callable[[State], State]) -> None:
    model = onnx.load(path)
    old = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in model.graph.initializer}
    new = change(old)
    gone, more = [n for n in old if n not in new], [n for n in new if n not in old]
    for node in model.graph.node if more else ():  # a renamed tensor is renamed where it is used, too
        node.input[:] = [more[0] if name == gone[0] else name for name in node.input]
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(t.numpy(), n) for n, t in new.items())
    onnx.save(model, path)


STEM = {
    "transformers": "embedder.embedder.convolution.weight",
    "detectron2": "stem.conv1.weight",
    "onnx": "net.conv1.weight",
}
DEEP = {
    "transformers": "encoder.stages.2.layers.0.shortcut.normalization.running_mean",
    "detectron2": "res4.0.shortcut.norm.running_mean",
    "onnx": "net.layer3.0.downsample.1.running_mean",
}


def stem(target: str) -> str:
    return STEM.get(target, "conv1.weight")


def deep(target: str) -> str:
    return DEEP.get(target, "layer3.0.downsample.1.running_mean")


def one_weight_changed(state: State, name: str) -> State:
    changed = state[name].clone()
    changed.view(-1)[7] += 1e-3
    return state | {name: changed}


FAULTS: dict[str, tuple[Callable[[str], str], Callable[[State, str], State], str]] = {
    "renamed key": (
        deep,
        lambda state, name: {f"{name}_" if key == name else key: tensor for key, tensor in state.items()},
        "missing keys: {name}; unexpected keys: {name}_;",
    ),
    "dropped tensor": (
        deep,
        lambda state, name: {key: tensor for key, tensor in state.items() if key != name},
        "missing keys: {name};",
    ),
    "swapped channels": (
        stem,
        lambda state, name: state | {name: state[name].flip(1)},
        "in 1 tensors: {name} (its input channels are in reverse order);",
    ),
    "wrong dtype": (
        stem,
        lambda state, name: state | {name: state[name].half()},
        "in 1 tensors: {name} (float16 instead of float32);",
    ),
    "one weight changed": (deep, one_weight_changed, "in 1 tensors: {name} (values differ by up to 1.0e-03);"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_fault_in_a_file_is_caught_and_named(
    target: str, fault: str, receipts: dict[str, Receipt], student: State, tmp_path: Path
) -> None:
    file = tmp_path / "copy" / Path(receipts[target].file).name
    shutil.copytree(Path(receipts[target].file).parent, file.parent)
    which, change, told = FAULTS[fault]
    edit(file, lambda state: change(state, which(target)))
    with pytest.raises(PlrcError) as caught:
        prove(TARGETS[target], file, NAME, student)
    assert told.format(name=which(target)) in str(caught.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_faulty_file_never_gets_its_name(
    target: str, receipts: dict[str, Receipt], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault happens while writing; the export is refused, and the good file, receipt and neighbors stay."""
    good = Path(receipts[target].file)
    before = {path: path.read_bytes() for path in good.parent.iterdir() if path.is_file()}

    def faulty(path: Path, *_: object) -> None:
        path.parent.mkdir(exist_ok=True)
        for file in before:
            if not file.name.endswith(".receipt.json"):
                shutil.copy(file, path.parent)
        edit(path, lambda state: one_weight_changed(state, deep(target)))

    monkeypatch.setitem(TARGETS, target, dataclasses.replace(TARGETS[target], write=faulty))
    with pytest.raises(PlrcError, match=r"values differ by up to 1\.0e-03"):
        export_backbone(run, target)
    assert {path: path.read_bytes() for path in good.parent.iterdir() if path.is_file()} == before
    assert not list(good.parent.glob(".unproven*"))


def test_equal_tensors_in_another_network_are_caught(
    receipts: dict[str, Receipt], student: State, tmp_path: Path
) -> None:
    folder = tmp_path / "transformers"
    shutil.copytree(Path(receipts["transformers"].file).parent, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(PlrcError, match="features of stride 4 differ from the run's"):
        prove(TARGETS["transformers"], folder / "model.safetensors", NAME, student)
    model = onnx.load(receipts["onnx"].file)
    norm = [node for node in model.graph.node if node.op_type == "BatchNormalization"][-1]
    next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f = 0.1
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(PlrcError, match="features of stride 32 differ from the run's"):
        prove(TARGETS["onnx"], tmp_path / "other.onnx", NAME, student)


def started_from(file: Path, out: Path, scenes: Path) -> Path:
    """A run folder whose first checkpoint holds what `model.init` gave it, before any step."""
    config = small_config(scenes, out, NAME, **{"model.init": str(file)})
    state = TrainingState(config, torch.device("cpu"))
    state.begin(None, out)
    save_checkpoint(out / "checkpoints", state.checkpoint(0, "images"), keep=1)
    return out


@pytest.mark.parametrize("kind", [*READ_BACK, "detectron2 .pkl", "torchvision .pt"])
def test_weights_come_back_and_go_out_again_the_same(
    kind: str, receipts: dict[str, Receipt], run: Path, scenes: Path, tmp_path: Path
) -> None:
    target, _, ending = kind.partition(" ")
    first = export_backbone(run, target, tmp_path / f"w{ending}") if ending else receipts[target]
    again = started_from(Path(first.file), tmp_path / "run", scenes)
    second = export_backbone(again, target, tmp_path / "again" / f"w{ending}" if ending else None)
    assert second.content_sha256 == first.content_sha256
    if target == "detectron2" or ending == ".pt":  # these files say nothing of the run
        assert second.sha256 == first.sha256


def test_onnx_is_not_read_back(receipts: dict[str, Receipt]) -> None:
    with pytest.raises(PlrcError, match=r"is not a weights file; name a \.safetensors"):
        read_weights(receipts["onnx"].file)


@pytest.mark.parametrize("target", READ_BACK)
def test_load_backbone_takes_every_targets_file(target: str, receipts: dict[str, Receipt], student: State) -> None:
    net = plrc.load_backbone(receipts[target].file).backbone
    assert net.name == NAME
    assert all(torch.equal(tensor, student[name]) for name, tensor in net.net.state_dict().items())


def test_onnx_takes_any_size_and_number_of_images(receipts: dict[str, Receipt], run: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(receipts["onnx"].file, providers=["CPUExecutionProvider"])
    net = plrc.load_backbone(run)
    for shape in ((1, 3, 33, 70), (3, 3, 64, 32)):
        images = torch.randn(shape)
        found = session.run(["stride4", "stride32"], {"images": images.numpy()})
        with torch.no_grad():
            wanted = net(images)
        assert all(
            torch.allclose(torch.from_numpy(a), wanted[s], atol=1e-4) for a, s in zip(found, (4, 32), strict=True)
        )


@pytest.mark.slow
def test_a_timm_resnet_goes_to_the_others(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", names(build_backbone(f"timm:{NAME}")), backbone=f"timm:{NAME}")
    own = export_backbone(run, "timm")
    assert Path(own.file) == run / "exported" / "backbone.safetensors"
    for target in ("torchvision", "transformers", "detectron2"):
        receipt = export_backbone(run, target)
        assert Path(receipt.file) == run / "exported" / target / Path(FILES[target]).name
        assert receipt.content_sha256 == own.content_sha256


@pytest.mark.parametrize("target", ["timm", "transformers"])
def test_a_missing_library_is_told(target: str, receipts: dict[str, Receipt], student: State) -> None:
    without_library = dataclasses.replace(TARGETS[target], version=lambda: "")
    proof = prove(without_library, Path(receipts[target].file), NAME, student)
    assert proof.unverified == f"{target} is not installed"
    assert proof.largest_difference is None
    assert proof.networks == ()


def test_a_package_that_cannot_be_imported_is_no_proof(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed, and of no use here: the receipt says why and claims no version; the card tells of no folder."""
    told = "cannot import name 'ops' from 'mmcv' (/home/private place/mmcv/__init__.py)"
    (tmp_path / "mmdet").mkdir()
    (tmp_path / "mmdet" / "__init__.py").write_text(f"raise ImportError({told!r})")
    (tmp_path / "mmdet-3.3.0.dist-info").mkdir()
    (tmp_path / "mmdet-3.3.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mmdet\nVersion: 3.3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mmdet", raising=False)
    receipt = export_backbone(run, "mmdetection", tmp_path / "w.pth")
    assert (receipt.target, receipt.networks, receipt.largest_difference) == ("mmdetection", (), None)
    assert told in receipt.note and "not verified in the target" in receipt.line()
    card = (tmp_path / "w.pth.card.md").read_text()
    assert "not verified in the target" in card and "private place" not in card


def test_what_a_library_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match="transformers has no wide_resnet50_2: its ResNet has neither groups nor"):
        TARGETS["transformers"].rename("wide_resnet50_2", {})
    with pytest.raises(PlrcError, match="mmdetection has no wide_resnet101_2: its ResNeXt keeps the usual width"):
        TARGETS["mmdetection"].rename("wide_resnet101_2", {})
    with pytest.raises(PlrcError, match="detectron2 has no timm:convnext_atto"):
        TARGETS["detectron2"].rename("timm:convnext_atto", {})
