"""`export_backbone`: a run's backbone into a file of a target, which gets its name once it is proven.

Layer 5: imports engine and below. A target is a module like `torchvision.py` and one line in TARGETS.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from plrc.config import Config
from plrc.data.manifest import read_manifest
from plrc.engine.adapt import total_steps
from plrc.engine.checkpoint import checkpoint_of, load_checkpoint
from plrc.errors import PlrcError
from plrc.export import detectron2, mmdetection, onnx, safetensors, timm, torchvision, transformers
from plrc.export.card import card_path, model_card
from plrc.export.proof import Proof, content_hash
from plrc.export.resnets import resnet_name
from plrc.files import write_json, write_text
from plrc.model.user_code import trusted_backbone
from plrc.model.weights import refuse_non_finite

BACKBONE = "backbone.net."  # what stands before the library's names in a checkpoint's student
UNVERIFIED = "names and shapes checked by rule, not verified in the target"


@dataclass(frozen=True)
class Receipt:
    """What was handed over and what was checked."""

    file: str
    sha256: str
    """Of the file."""
    content_sha256: str
    """Of the tensors under the backbone's own names: the same in every target."""
    target: str
    """The library, and its version where the file was loaded into it."""
    networks: tuple[str, ...]
    """Of the target, that the file was loaded into; empty: not verified in the target, which `note` says."""
    note: str
    backbone: str
    tensors: int
    """In the file, each equal to the run's bit for bit."""
    absent: tuple[str, ...]
    """Tensors of the backbone that this format leaves out by rule."""
    largest_difference: float | None
    """Between features of the target's network and plrc's, relative to the largest feature; None: not compared."""
    tolerance: float
    left_random: tuple[str, ...]
    """Tensors of the target's network that a backbone does not have."""
    settings: dict[str, Any]
    """Pixels as the run saw them, and what is to be set in the target."""
    step: int
    steps: int
    """Of the whole run; 0 where that cannot be told."""
    plrc_version: str
    checkpoint: str

    def line(self) -> str:
        unfinished = f" of {self.steps} (the run is not finished)" if self.step < self.steps else ""
        equal = f"all equal in the file, {self.note}"
        if self.largest_difference is not None:
            features = f"features differ by {self.largest_difference:.1e} (allowed {self.tolerance:.0e})"
            equal = f"all equal in {self.target}, {features}"
        return (
            f"{self.file}: {self.tensors} tensors of {self.backbone} at step {self.step}{unfinished}, {equal}; "
            f"sha256 {self.sha256[:12]}, of the content {self.content_sha256[:12]}"
        )

    def advice(self) -> str:
        """The settings as lines to read."""
        have = self.settings
        pixels = f"pixels: {have['channels']}, {have['pixels']}, mean {have['mean']}, std {have['std']}"
        return "\n  ".join([f"{pixels}; with {self.target}:", *have["set"]])


class Target(Protocol):
    """A library to hand over to; each is a module of this folder."""

    @property
    def ENDINGS(self) -> tuple[str, ...]:
        """Of the file that `out` may name, the usual one first; none: it names a folder."""

    def version(self) -> str:
        """Of the library that is installed here and that `prove` uses; empty: there is none."""

    def tensors(self, name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
        """The student's tensors by their names in the file. Raises PlrcError where the library has no such backbone."""

    def write(self, path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """The file, and what belongs beside it."""

    def prove(self, path: Path, name: str, student: dict[str, Tensor]) -> Proof:
        """Compare a file with the student. Raises PlrcError, which names what differs."""

    def settings(self, name: str) -> dict[str, Any]:
        """Pixels as the run saw them, and `set`: what is to be set in the library."""


TARGETS: dict[str, Target] = {
    "torchvision": torchvision,
    "timm": timm,
    "transformers": transformers,
    "detectron2": detectron2,
    "mmdetection": mmdetection,
    "safetensors": safetensors,
    "onnx": onnx,
}


def library_of(backbone: str) -> str:
    """The target that a backbone goes to under its own names."""
    if backbone.startswith(timm.PREFIX):
        return "timm"
    return "torchvision" if resnet_name(backbone) else "safetensors"


def export_backbone(
    run: str | Path, target: str = "torchvision", out: str | Path | None = None, backbone: str = ""
) -> Receipt:
    """Write the student's backbone of a run folder or checkpoint file in the target's names, and verify the file.

    `target`: one of TARGETS. `out`: the file, whose ending chooses the format, or for transformers a folder; without it
    RUN/exported/backbone.safetensors is written for the library that the backbone is from, RUN/exported/TARGET/... for
    others. The file takes its name only after it was loaded as its user will load it, with every tensor equal bit for
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
    name = trusted_backbone(config.model.backbone, backbone, "--backbone {}")
    if backbone not in ("", name):
        raise PlrcError(f"{run} holds a {name}, not a {backbone}; leave --backbone out")
    student = {
        key.removeprefix(BACKBONE): tensor.detach().cpu().contiguous()
        for key, tensor in saved["student"].items()
        if key.startswith(BACKBONE)
    }
    refuse_non_finite(student, f"the student of {checkpoint}")
    library.tensors(name, student)  # refuses a backbone that the library does not have
    metadata = {
        "format": "plrc",
        "backbone": name,
        "stride": str(config.model.stride),
        "layer4_stride": str(config.model.layer4_stride),
        "step": str(saved["step"]),
        "plrc_version": saved["version"],
        "config": json.dumps(saved["config"]),
    }
    usual = _run_folder(checkpoint) / "exported" / ("" if target == library_of(name) else target)
    file = _file(library, Path(out) if out is not None else None, usual)
    try:
        proof, digest = _write_proven(library, file, name, student, metadata)
        receipt = Receipt(
            file=str(file),
            sha256=digest,
            content_sha256=content_hash(student),
            target=f"{target} {library.version()}".strip() if proof.networks else target,
            networks=proof.networks,
            note=proof.unverified and f"{UNVERIFIED} ({proof.unverified})",
            backbone=name,
            tensors=proof.tensors,
            absent=proof.absent,
            largest_difference=proof.largest_difference,
            tolerance=proof.tolerance,
            left_random=proof.left_random,
            settings=library.settings(name),
            step=saved["step"],
            steps=_steps(config, _run_folder(checkpoint) / "manifest.json"),
            plrc_version=saved["version"],
            checkpoint=str(checkpoint),
        )
        write_json(file.with_name(f"{file.name}.receipt.json"), dataclasses.asdict(receipt))
        write_text(card_path(file), model_card(dataclasses.asdict(receipt), saved, _run_folder(checkpoint)))
    except OSError as error:
        raise PlrcError(f"cannot write {file}: {error.strerror}") from error
    return receipt


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _steps(config: Config, manifest: Path) -> int:
    """Steps of the whole run; 0 where they depend on the number of images and there is no manifest."""
    if config.optim.steps or not manifest.exists():
        return config.optim.steps
    return total_steps(config, len(read_manifest(manifest)["train"]))


def _file(library: Target, out: Path | None, usual: Path) -> Path:
    """The file to write; `usual`: the folder for it where the user names none."""
    if not library.ENDINGS:
        folder = usual if out is None else out
        return folder if folder.name == transformers.FILE else folder / transformers.FILE
    if out is None:
        return usual / f"backbone{library.ENDINGS[0]}"
    if out.suffix not in library.ENDINGS:
        raise PlrcError(f"cannot write {out.name}; let --out end in {' or '.join(library.ENDINGS)}")
    return out


def _write_proven(
    library: Target, out: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]
) -> tuple[Proof, str]:
    """Write into a folder of its own, prove that file, then move it; returns the proof and the file's sha256.

    PyTorch's random state stays as it was: a training run may be going on.
    """
    folder = out.with_name(f".unproven.{out.name}")
    unproven = folder / out.name
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with torch.random.fork_rng(devices=[]):
            library.write(unproven, name, student, metadata)
            proof = library.prove(unproven, name, student)
        digest = hashlib.sha256(unproven.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir()):
            file.replace(out.with_name(file.name))
        return proof, digest
    finally:
        shutil.rmtree(folder, ignore_errors=True)
