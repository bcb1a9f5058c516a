"""Networks with the same tensors that compute something else are told apart by the features of a fixed picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.export.runs import names, saved_run

from plrc.errors import WeightsError
from plrc.export import export_backbone, load_backbone
from plrc.model.backbone import Backbone, build_backbone
from plrc.model.fingerprint import TOLERANCE, describe_difference, fingerprint, from_text, to_text, twin_of
from plrc.model.weights import load_into, read_weights

pytest.importorskip("timm", reason="timm is not installed (extra timm)")
LITE0, TF_LITE0 = "timm:efficientnet_lite0", "timm:tf_efficientnet_lite0"


def trained(name: str, seed: int = 0) -> Backbone:
    """Random weights with BatchNorm statistics of real passes, so that features differ from place to place."""
    torch.manual_seed(seed)
    backbone = build_backbone(name)
    with torch.no_grad():
        for _ in range(3):
            backbone(torch.randn(4, 3, 64, 64) + 0.5)
    return backbone


@pytest.mark.parametrize("name", ["resnet18", LITE0, "timm:test_vit", "timm:test_mambaout"])
def test_it_is_the_same_in_every_call_and_survives_small_errors(name: str) -> None:
    backbone = trained(name)
    first = fingerprint(backbone)
    assert backbone.training and fingerprint(backbone) == first == from_text(to_text(first))
    with torch.no_grad():
        for parameter in backbone.parameters():  # about the precision of TF32
            parameter.mul_(1 + 5e-4 * torch.randn_like(parameter))
    assert describe_difference(fingerprint(backbone), first) == ""
    assert describe_difference(fingerprint(trained(name, seed=1)), first).startswith("features of stride ")


def test_the_stride_of_layer4_does_not_matter() -> None:
    dense = build_backbone("resnet18", layer4_stride=1)
    usual = build_backbone("resnet18")
    usual.load_state_dict(dense.state_dict())
    assert list(fingerprint(dense)) == ["4", "8", "16"] and fingerprint(dense) == fingerprint(usual)


def test_twins_of_timm() -> None:
    assert (twin_of(build_backbone(LITE0)), twin_of(build_backbone(TF_LITE0))) == (TF_LITE0, LITE0)
    assert [twin_of(build_backbone(name)) for name in ("resnet18", "timm:test_vit", "timm:resnet10t")] == ["", "", ""]


def test_an_export_does_not_load_into_the_twin(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", names(trained(LITE0)), backbone=LITE0)
    file = Path(export_backbone(run, "timm", tmp_path / "lite0.safetensors").file)
    assert load_backbone(file).backbone.name == LITE0
    for source in (file, run / "checkpoints" / "step_00000007.pt"):
        twin = build_backbone(TF_LITE0)
        before = {key: value.clone() for key, value in twin.net.state_dict().items()}
        told = rf"belongs to another network or version of it, {LITE0}: features of stride \d+ differ by"
        with pytest.raises(WeightsError, match=told):
            load_into(twin, read_weights(source))
        assert all(torch.equal(value, before[key]) for key, value in twin.net.state_dict().items())
        assert load_into(build_backbone(LITE0), read_weights(source)).warnings == ()


def test_networks_of_two_libraries_that_are_the_same_take_each_others_files(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", names(trained("resnet18")), backbone="resnet18")
    file = Path(export_backbone(run, "torchvision", tmp_path / "r18.safetensors").file)
    for source in (file, run / "checkpoints" / "step_00000007.pt"):
        assert load_into(build_backbone("timm:resnet18"), read_weights(source)).complete


def test_a_foreign_file_is_loaded_with_a_warning(tmp_path: Path) -> None:
    torch.save(trained(LITE0).net.state_dict(), tmp_path / "w.pt")
    (warning,) = load_into(build_backbone(LITE0), read_weights(tmp_path / "w.pt")).warnings
    assert f"{TF_LITE0} has the same tensors as {LITE0} but other padding" in warning


def test_the_real_file_of_tf_efficientnet_lite0(real_data: Path, tmp_path: Path) -> None:
    """It loads into both networks; a fingerprint that it carries tells them apart."""
    file = real_data.parent / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    right, wrong = build_backbone(TF_LITE0), build_backbone(LITE0)
    for backbone in (right, wrong):
        (warning,) = load_into(backbone, read_weights(file)).warnings
        assert "has the same tensors" in warning
    numbers = fingerprint(right)
    difference = describe_difference(fingerprint(wrong), numbers)
    assert float(difference.split()[6]) > 8 * TOLERANCE
    metadata = {"format": "plrc", "backbone": TF_LITE0, "fingerprint": to_text(numbers)}
    safetensors.torch.save_file(right.net.state_dict(), tmp_path / "w.safetensors", metadata)
    assert load_into(right, read_weights(tmp_path / "w.safetensors")).complete
    with pytest.raises(WeightsError, match=f"belongs to another network or version of it, {TF_LITE0}"):
        load_into(wrong, read_weights(tmp_path / "w.safetensors"))
