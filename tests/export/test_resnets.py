"""Names and shapes by rule, against torchvision's networks and against lists written out by hand; pickles of arrays."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from plrc.errors import PlrcError
from plrc.export.resnets import RESNETS, check_structure, rename, shapes
from plrc.model import naming
from plrc.model.backbone import RESNETS as BUILT
from plrc.model.naming import torchvision_names
from plrc.model.pickles import read_arrays, write_arrays

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_every_resnet_of_torchvision_is_known() -> None:
    assert set(RESNETS) == set(BUILT)


@pytest.mark.parametrize("name", RESNETS)
def test_the_rule_gives_torchvisions_tensors(name: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None).state_dict()
    assert shapes(RESNETS[name], naming.torchvision) == {
        key: tuple(tensor.shape) for key, tensor in state.items() if not key.startswith("fc.")
    }


def detectron2_by_hand(blocks: tuple[int, ...], parts: tuple[str, ...], first_shortcut: int) -> set[str]:
    """Its names as its documentation and model files give them."""
    modules = ["stem.conv1"]
    for stage, count in zip(("res2", "res3", "res4", "res5"), blocks, strict=True):
        modules += [f"{stage}.{block}.{part}" for block in range(count) for part in parts]
        modules += [f"{stage}.0.shortcut"] * (int(stage[3]) >= first_shortcut)
    return {f"{m}.weight" for m in modules} | {f"{m}.norm.{leaf}" for m in modules for leaf in NORM}


def test_detectron2s_names() -> None:
    r50 = shapes(RESNETS["resnet50"], naming.detectron2)
    assert set(r50) == detectron2_by_hand((3, 4, 6, 3), ("conv1", "conv2", "conv3"), first_shortcut=2)
    assert r50["stem.conv1.weight"] == (64, 3, 7, 7)
    assert r50["res2.0.shortcut.weight"] == (256, 64, 1, 1)
    assert r50["res5.0.conv1.weight"] == (512, 1024, 1, 1)
    assert r50["res5.2.conv3.norm.running_var"] == (2048,)
    r18 = shapes(RESNETS["resnet18"], naming.detectron2)
    assert set(r18) == detectron2_by_hand((2, 2, 2, 2), ("conv1", "conv2"), first_shortcut=3)
    assert r18["res3.0.conv1.weight"] == (128, 64, 3, 3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("scheme", [naming.detectron2, naming.transformers])
@pytest.mark.parametrize("prefix", ["", "model.backbone.bottom_up.", "model.backbone.model."])
def test_names_of_other_libraries_are_read_as_torchvisions(name: str, scheme: naming.Naming, prefix: str) -> None:
    own, other = shapes(RESNETS[name], naming.torchvision), shapes(RESNETS[name], scheme)
    names = [prefix + key for key in other]
    assert list(torchvision_names(names).values()) == [prefix + key for key in own]


def test_names_that_only_look_alike_stay() -> None:
    names = ["stem.conv1.weight", "stages.0.layer.0.convolution.weight", "res.0.shortcut.weight", "conv1.weight"]
    assert torchvision_names(names) == {name: name for name in names}


def test_a_structure_that_differs_is_named() -> None:
    own = {key: torch.zeros(shape) for key, shape in shapes(RESNETS["resnet18"], naming.torchvision).items()}
    state = rename(own, RESNETS["resnet18"], naming.detectron2)
    check_structure(state, RESNETS["resnet18"], naming.detectron2, "no ResNet-18")
    with pytest.raises(PlrcError, match=r"^no ResNet-34: missing keys: res2\.2\.conv1\.norm\.bias, .* and \d+ more$"):
        check_structure(state, RESNETS["resnet34"], naming.detectron2, "no ResNet-34")
    wrong = state | {"stem.conv1.weight": torch.zeros(64, 1, 7, 7)}
    with pytest.raises(PlrcError, match=r"stem\.conv1\.weight \[64, 1, 7, 7\] instead of \[64, 3, 7, 7\]"):
        check_structure(wrong, RESNETS["resnet18"], naming.detectron2, "no ResNet-18")


def test_a_pickle_holds_plain_arrays_and_names_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "w.pkl"
    content = {"model": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, "__author__": "plrc", "x": True}
    write_arrays(file, content)
    found = pickle.loads(file.read_bytes(), encoding="latin1")  # noqa: S301 (written above)
    assert type(found["model"]["a"]) is np.ndarray
    assert found["model"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["model"]["n"].dtype == np.int64
    assert found["__author__"] == "plrc" and found["x"] is True
    ops = [(op.name, arg) for op, arg, _ in pickletools.genops(file.read_bytes())]
    assert [name for name, _ in ops].count("STACK_GLOBAL") == 1 and "GLOBAL" not in dict(ops)
    back = read_arrays(file)
    file.write_bytes(pickle.dumps({"model": found["model"]}, protocol=2))  # as others write them
    assert torch.equal(read_arrays(file)["model"]["a"], back["model"]["a"])
    assert torch.equal(back["model"]["a"], content["model"]["a"])  # type: ignore[index]


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return (io.open, (str(tmp_path / "made"), "w"))

    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps({"model": Bad()}))
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL \w+\.open is not numpy's; it is not run"):
        read_arrays(file)
    assert not (tmp_path / "made").exists()
