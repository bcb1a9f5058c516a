"""Weights that a library has for its own networks: loaded if they are there, one sentence if not, never random ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import plrc
from plrc.config import Config
from plrc.errors import ConfigError, WeightsError
from plrc.model import starts
from plrc.model.backbone import build_backbone
from plrc.model.starts import content_hash, pretrained_weights, weights_receipt
from plrc.model.timm_networks import build_timm
from plrc.model.weights import load_into, read_weights

NO_NETWORK = "http://127.0.0.1:9"  # a proxy that refuses every connection
TIMM_CALL = """
import sys, time
time.sleep = lambda seconds: None  # the hub's package waits between its attempts
from plrc.errors import PlrcError
from plrc.model.starts import content_hash, pretrained_weights
for name in sys.argv[1:]:
    try:
        weights = pretrained_weights(name)
        print(weights.source, content_hash(weights.state))
    except PlrcError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub on a machine without a network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, NO_NETWORK)
    return tmp_path / "hub" / "checkpoints"


def put_resnet18(hub: Path) -> Path:
    """A file where torchvision keeps its own."""
    torch.manual_seed(11)
    state = build_backbone("resnet18").net.state_dict()
    hub.mkdir(parents=True)
    torch.save(state | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}, hub / "resnet18-f37072fd.pth")
    return hub / "resnet18-f37072fd.pth"


def test_torchvisions_own_weights(hub: Path) -> None:
    with pytest.raises(WeightsError, match="are not on this disk and cannot be downloaded") as caught:
        pretrained_weights("resnet18")
    expected = hub / "resnet18-f37072fd.pth"
    assert str(caught.value).endswith(
        f"download https://download.pytorch.org/models/resnet18-f37072fd.pth to {expected}"
    )
    assert not list(hub.iterdir())  # no half file
    hub.rmdir()
    file = put_resnet18(hub)
    weights = pretrained_weights("resnet18")
    backbone = build_backbone("resnet18")
    report = load_into(backbone, weights)
    receipt = weights_receipt("pretrained", weights, report, backbone)
    assert (receipt["file"], receipt["matched"], receipt["ignored"]) == (str(file), 120, 2)
    assert receipt["content_sha256"] == content_hash(backbone.net.state_dict()) and len(receipt["sha256"]) == 64


def test_a_network_of_ones_own_has_no_such_weights() -> None:
    with pytest.raises(ConfigError, match=r"there are no pretrained weights for net\.py:build; name a file of weights"):
        pretrained_weights("net.py:build")


def timm_weights(home: Path, *names: str, **environment: str) -> list[str]:
    """What `pretrained_weights` gives, in a process of its own: the hub's package reads its settings when imported."""
    settings = os.environ | {"HF_HOME": str(home), "https_proxy": NO_NETWORK, "HTTPS_PROXY": NO_NETWORK} | environment
    command = [sys.executable, "-c", TIMM_CALL, *names]
    call = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    return call.stdout.splitlines()


@pytest.mark.slow
def test_timms_own_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    torch.manual_seed(5)
    state = timm.create_model("test_vit").state_dict()
    snapshot = tmp_path / "hub" / "models--timm--test_vit.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(state, snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    names = ("timm:test_vit", "timm:test_vit2", "timm:efficientnet_lite1")
    present, absent, never = timm_weights(tmp_path, *names, HF_HUB_OFFLINE="1")
    del state["head.weight"], state["head.bias"]
    assert present == f"timm's own weights timm/test_vit.r160_in1k {content_hash(state)}"
    assert absent.startswith(
        "WeightsError timm's weights of timm:test_vit2 are not on this disk and cannot be downloaded"
    )
    hub_id = "timm/test_vit2.r160_in1k"
    assert absent.endswith(
        f"download https://huggingface.co/{hub_id} elsewhere (hf download {hub_id}) and copy it to "
        f"{tmp_path}/hub/models--timm--test_vit2.r160_in1k, or name its model.safetensors as the file of weights"
    )
    assert never == "WeightsError timm has no weights for timm:efficientnet_lite1; name a file of weights"


def test_weights_that_were_loaded_by_name_are_not_warned_of_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    name = "timm:efficientnet_lite0"  # its twin is tf_efficientnet_lite0
    monkeypatch.setattr(starts, "build_timm", lambda name, pretrained=False: build_timm(name))
    backbone = build_backbone(name)
    weights = pretrained_weights(name)
    for function in ("build_backbone", "twin_of"):
        monkeypatch.setattr(f"plrc.model.weights.{function}", lambda *names: pytest.fail("built a second network"))
    assert load_into(backbone, weights).warnings == ()


@pytest.mark.slow
def test_without_a_network_the_download_is_tried(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    (absent,) = timm_weights(tmp_path, "timm:test_vit")
    assert "https://huggingface.co/timm/test_vit.r160_in1k" in absent


def test_a_run_from_pretrained_weights_keeps_a_receipt(tiny: Callable[..., Config], hub: Path) -> None:
    config = tiny(model__init="pretrained", model__backbone="resnet18", optim__steps=1)
    with pytest.raises(WeightsError, match=r"cannot be downloaded .* to .*resnet18-f37072fd\.pth"):
        plrc.pretrain(config)
    hub.rmdir()
    file = put_resnet18(hub)
    run = plrc.pretrain(config.with_values({"run.resume": True}))
    receipt = json.loads((run.path / "weights.json").read_text())
    assert (receipt["init"], receipt["file"], receipt["backbone"]) == ("pretrained", str(file), "resnet18")
    assert (receipt["prefix"], receipt["matched"], receipt["missing"]) == ("", 120, [])
    loaded = build_backbone("resnet18")
    load_into(loaded, read_weights(file))
    assert receipt["content_sha256"] == content_hash(loaded.net.state_dict())
    log = (run.path / "log.txt").read_text()
    assert (
        f"warm start from pretrained: 120 tensors loaded, sha256 of the content {receipt['content_sha256'][:12]}" in log
    )
    card = next((run.path / "exported").glob("*.card.md")).read_text()
    assert receipt["content_sha256"] in card
