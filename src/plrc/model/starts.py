"""Starting weights: those that a library offers for its own networks, and the receipt of what was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from plrc.errors import ConfigError, RunError, WeightsError
from plrc.files import file_sha256, parse_json
from plrc.model.backbone import RESNETS, Backbone
from plrc.model.naming import COUNTER_SUFFIX
from plrc.model.timm_networks import PREFIX as TIMM_PREFIX
from plrc.model.timm_networks import build_timm
from plrc.model.transformers_networks import PREFIX as DETECTOR_PREFIX
from plrc.model.transformers_networks import folder_of
from plrc.model.user_code import describe_error
from plrc.model.weights import LoadReport, Weights, read_weights

PRETRAINED = "pretrained"
SUPERVISED = "IMAGENET1K_V1"  # the version of torchvision's weights that the literature compares with


def pretrained_weights(backbone: str) -> Weights:
    """Load the weights that the library of a backbone offers for it, from the library's cache or else from the web.

    Args:
        backbone: A torchvision ResNet; timm:NAME; or transformers:FOLDER, whose weights are read from the folder.

    Returns:
        The weights, never random ones. The metadata of torchvision's and timm's holds the name of the backbone.

    Raises:
        ConfigError: The backbone is user code, which has no such weights.
        WeightsError: There are none, or they are not on this disk and cannot be downloaded. The message says what to
            download, and where to put it.
    """
    if backbone in RESNETS:
        return replace(read_weights(_torchvision_file(backbone)), metadata={"backbone": backbone})
    if backbone.startswith(TIMM_PREFIX):
        return _timm_weights(backbone)
    if backbone.startswith(DETECTOR_PREFIX):
        return read_weights(folder_of(backbone))
    raise ConfigError(f"there are no pretrained weights for {backbone}; name a file of weights")


def weights_receipt(init: str, weights: Weights, report: LoadReport, backbone: Backbone) -> dict[str, Any]:
    """Describe what was loaded into a backbone.

    Args:
        init: The weights as the user named them: a path, or `PRETRAINED`.
        weights: The content of the file.
        report: What `load_into` reported.
        backbone: The backbone with the weights.

    Returns:
        JSON content: "init", "file", "sha256" of the file (empty if the library loaded it), "content_sha256" of the
        backbone's tensors, "backbone", "prefix", "matched" and "ignored" (counts), "missing", "another_shape",
        "unexpected" and "inflated" (names), "warnings".
    """
    file = Path(weights.source)
    return {
        "init": init,
        "file": weights.source,
        "sha256": file_sha256(file) if file.is_file() else "",
        "content_sha256": content_hash(backbone.net.state_dict()),
        "backbone": backbone.name,
        "prefix": report.prefix,
        "matched": len(report.matched),
        "ignored": len(report.ignored),
        "missing": list(report.missing),
        "another_shape": list(report.shape_mismatch),
        "unexpected": list(report.unexpected),
        "inflated": list(report.inflated),
        "warnings": list(report.warnings),
    }


def read_receipt(file: Path) -> dict[str, Any]:
    """Read a receipt of `weights_receipt` in a run folder; empty if the file does not exist.

    Raises:
        RunError: The file is damaged.
    """
    if not file.exists():
        return {}
    try:
        return dict(parse_json(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}); take it from a copy of the run folder") from error


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: the same for the same backbone in any file format.

    Args:
        state: Tensors under the backbone's own names. BatchNorm's step counters are left out, because not every format
            stores them.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith(COUNTER_SUFFIX):
            continue
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _torchvision_file(name: str) -> Path:
    """Return torchvision's file of weights for a ResNet; it is downloaded if it is not on this disk."""
    url: str = torchvision.models.get_model_weights(name)[SUPERVISED].url
    file = _hub_file(url)
    if file.exists():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        hash_prefix = file.stem.rpartition("-")[2]  # resnet18-f37072fd.pth: first digits of the SHA-256 of the file
        torch.hub.download_url_to_file(url, str(file), hash_prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"torchvision's weights of {name} are not on this disk and cannot be downloaded ({describe_error(error)}); "
            f"download {url} to {file}"
        ) from error
    return file


def _hub_file(url: str) -> Path:
    """Return where torch.hub stores a download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _timm_weights(name: str) -> Weights:
    """Load timm's own weights for timm:NAME."""
    build_timm(name)  # with random weights: raises the errors of a missing package or an unknown name
    import timm

    source: Any = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX), allow_unregistered=True)
    hub_id = getattr(source, "hf_hub_id", "") or ""
    url = getattr(source, "url", "") or ""
    if not hub_id and not url:
        raise WeightsError(f"timm has no weights for {name}; name a file of weights")
    try:
        net = build_timm(name, pretrained=True).net
    except Exception as error:  # the packages that download raise many kinds of errors
        raise WeightsError(
            f"timm's weights of {name} are not on this disk and cannot be downloaded ({describe_error(error)}); "
            f"{_how_to_fetch(hub_id, url)}"
        ) from error
    return Weights(net.state_dict(), f"timm's own weights {hub_id or url}", {"backbone": name})


def _how_to_fetch(hub_id: str, url: str) -> str:
    """Describe how to download timm's weights by hand, from the Hugging Face hub or else from a URL."""
    if not hub_id:
        return f"download {url} to {_hub_file(url)}"
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    return (
        f"download https://huggingface.co/{hub_id} elsewhere (hf download {hub_id}) and copy it to {folder}, or name "
        "its model.safetensors as the file of weights"
    )
