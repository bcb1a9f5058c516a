"""Hand-over of a trained backbone: written in the names of the library that goes on with it, then proven.

Layer 5: imports engine and below, never transfer, visualize or bench. `export_backbone` writes a file and verifies it;
`load_backbone` gives a trained backbone back. A new target is one file like `torchvision.py` and one line in TARGETS.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from plrc.config import Config, PlrcError
from plrc.data.manifest import read_manifest
from plrc.engine.adapt import total_steps
from plrc.engine.checkpoint import checkpoint_of, load_checkpoint
from plrc.export import own as to_own
from plrc.export import timm as to_timm
from plrc.export import torchvision as to_torchvision
from plrc.export.card import card_path, model_card
from plrc.export.features import DenseFeatures, load_backbone
from plrc.export.verify import Proof
from plrc.files import write_atomic, write_text
from plrc.model.own import is_code
from plrc.model.weights import refuse_non_finite

__all__ = [
    "BACKBONE",
    "TARGETS",
    "DenseFeatures",
    "Receipt",
    "Target",
    "export_backbone",
    "library_of",
    "load_backbone",
]

BACKBONE = "backbone.net."  # what stands before the library's names in a checkpoint's student


@dataclass(frozen=True)
class Receipt:
    """What was handed over and what was checked."""

    file: str
    sha256: str
    target: str
    """The library and its version that the file was loaded into."""
    backbone: str
    tensors: int
    largest_difference: float
    """Between features of the target's network and plrc's, relative to the largest feature."""
    tolerance: float
    left_random: tuple[str, ...]
    """Tensors of the target's network that a backbone does not have."""
    step: int
    steps: int
    """Of the whole run; 0 where that cannot be told."""
    plrc_version: str
    checkpoint: str

    def line(self) -> str:
        unfinished = f" of {self.steps} (the run is not finished)" if self.step < self.steps else ""
        return (
            f"{self.file}: {self.tensors} tensors of {self.backbone} at step {self.step}{unfinished}, "
            f"all equal in {self.target}, "
            f"features differ by {self.largest_difference:.1e} (allowed {self.tolerance:.0e})"
        )


@dataclass(frozen=True)
class Target:
    """A library to hand over to: the version it has here, its tensors' names, and a proof for a written file."""

    version: Callable[[], str]
    tensors: Callable[[str, dict[str, Tensor]], dict[str, Tensor]]
    prove: Callable[[Path, str, dict[str, Tensor]], Proof]


TARGETS = {
    "torchvision": Target(to_torchvision.version, to_torchvision.tensors, to_torchvision.prove),
    "timm": Target(to_timm.version, to_timm.tensors, to_timm.prove),
    "own": Target(to_own.version, to_own.tensors, to_own.prove),
}


def library_of(backbone: str) -> str:
    """The target that a backbone goes to under its own names: torchvision, timm or own."""
    if is_code(backbone):
        return "own"
    return "timm" if backbone.startswith(to_timm.PREFIX) else "torchvision"


def export_backbone(
    run: str | Path, target: str = "torchvision", out: str | Path | None = None, backbone: str = ""
) -> Receipt:
    """Write the student's backbone of a run folder or checkpoint file in the target's names, and verify the file.

    `out` ends in .safetensors or .pt (a plain dictionary of tensors); without it RUN/exported/backbone.safetensors is
    written. The file takes its name only after it was loaded as its user will load it, with every tensor equal bit for
    bit and equal features; `NAME.receipt.json` beside it says so, and `NAME.card.md` is its model card. Raises
    PlrcError where any of that fails.

    `backbone`: the function of a backbone of your own (package.module:function or file.py:function). The one that the
    run names is imported only if it is named here too: the run folder may be somebody else's.
    """
    if target not in TARGETS:
        raise PlrcError(f"cannot export to {target!r}; write one of {', '.join(TARGETS)}")
    library = TARGETS[target]
    checkpoint = checkpoint_of(Path(run))
    saved = load_checkpoint(checkpoint)
    config = Config.from_dict(saved["config"])
    name = config.model.backbone
    if is_code(name):
        name = to_own.trusted(name, backbone, "--backbone {}")
    elif backbone not in ("", name):
        raise PlrcError(f"{run} holds a {name}, not a {backbone}; leave --backbone out")
    student = {k.removeprefix(BACKBONE): v for k, v in saved["student"].items() if k.startswith(BACKBONE)}
    refuse_non_finite(student, f"the student of {checkpoint}")
    metadata = {
        "format": "plrc",
        "backbone": name,
        "stride": str(config.model.stride),
        "layer4_stride": str(config.model.layer4_stride),
        "step": str(saved["step"]),
        "plrc_version": saved["version"],
        "config": json.dumps(saved["config"]),
    }
    content = library.tensors(name, student)
    out = Path(out) if out is not None else _run_folder(checkpoint) / "exported" / "backbone.safetensors"
    try:
        proof, digest = _write_proven(out, content, metadata, lambda path: library.prove(path, name, student))
        receipt = Receipt(
            file=str(out),
            sha256=digest,
            target=f"{target} {library.version()}",
            backbone=name,
            tensors=proof.tensors,
            largest_difference=proof.largest_difference,
            tolerance=proof.tolerance,
            left_random=proof.left_random,
            step=saved["step"],
            steps=_steps(config, _run_folder(checkpoint) / "manifest.json"),
            plrc_version=saved["version"],
            checkpoint=str(checkpoint),
        )
        text = json.dumps(dataclasses.asdict(receipt), indent=2) + "\n"
        write_text(out.with_name(f"{out.name}.receipt.json"), text)
        write_text(card_path(out), model_card(dataclasses.asdict(receipt), saved, _run_folder(checkpoint)))
    except OSError as error:
        raise PlrcError(f"cannot write {out}: {error.strerror}") from error
    return receipt


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _steps(config: Config, manifest: Path) -> int:
    """Steps of the whole run; 0 where they depend on the number of images and there is no manifest."""
    if config.optim.steps or not manifest.exists():
        return config.optim.steps
    return total_steps(config, len(read_manifest(manifest)["train"]))


def _write_proven(
    out: Path, state: dict[str, Tensor], metadata: dict[str, str], prove: Callable[[Path], Proof]
) -> tuple[Proof, str]:
    """Write under another name, prove that file, then give it its name; returns the proof and the file's sha256."""
    unproven = out.with_name(f".unproven.{out.name}")
    try:
        if out.suffix == ".safetensors":
            write_atomic(unproven, lambda file: file.write(safetensors.torch.save(state, metadata)))
        elif out.suffix == ".pt":
            write_atomic(unproven, lambda file: torch.save(state, file))
        else:
            raise PlrcError(f"cannot write {out.name}; let --out end in .safetensors or .pt")
        proof = prove(unproven)
        digest = hashlib.sha256(unproven.read_bytes()).hexdigest()
        unproven.replace(out)
        return proof, digest
    finally:
        unproven.unlink(missing_ok=True)
