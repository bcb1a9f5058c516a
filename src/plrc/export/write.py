"""`export_backbone`: write a run's backbone for a target, and check the file before it is moved to its place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plrc.config import Config
from plrc.data.manifest import read_manifest
from plrc.engine.budget import steps_of_run
from plrc.engine.checkpoint import checkpoint_of, load_checkpoint
from plrc.errors import ConfigError, ExportError
from plrc.export.card import card_path, model_card
from plrc.export.proof import Proof, backbone_with, prove
from plrc.export.receipt import Receipt
from plrc.export.resnets import resnet_name
from plrc.export.target import Target
from plrc.export.targets import TARGETS
from plrc.export.targets.detectors import target_into
from plrc.files import file_sha256, write_json, write_text
from plrc.model.fingerprint import Fingerprint, fingerprint, to_text
from plrc.model.starts import content_hash
from plrc.model.timm_networks import PREFIX
from plrc.model.transformers_networks import PREFIX as DETECTOR_PREFIX
from plrc.model.transformers_networks import folder_of
from plrc.model.user_code import trusted_backbone
from plrc.model.weights import refuse_non_finite
from plrc.unproven import unproven_folder

BACKBONE_PREFIX = "backbone.net."  # before the library's tensor names, in a checkpoint's student
UNVERIFIED = "names and shapes checked by rule, not verified in the target"


def default_target(backbone: str) -> str:
    """The target whose tensor names are those of the backbone itself, so that nothing is renamed.

    Args:
        backbone: A run's `model.backbone`.

    Returns:
        A key of `TARGETS`.
    """
    if backbone.startswith(PREFIX):
        return "timm"
    return "torchvision" if resnet_name(backbone) else "safetensors"


def export_backbone(
    run: str | Path,
    target: str = "torchvision",
    out: str | Path | None = None,
    backbone: str = "",
    into: str | Path | None = None,
) -> Receipt:
    """Write the student's backbone for a library or format, and prove the file.

    The file is written into a temporary folder, and moved to its place only if every tensor is equal to the student's
    bit for bit. If the target's library is installed, the file is also loaded with it, and the features must be equal;
    if the library cannot be used, the receipt has a note. In the same folder, `NAME.receipt.json` records this check,
    and `NAME.card.md` is the model card. An export to a file that another process is writing waits for its end.

    Args:
        run: Run folder (its newest checkpoint is exported) or checkpoint file.
        target: torchvision, timm, transformers, detectron2, mmdetection, safetensors or onnx.
        out: The file to write; its ending decides the format. For transformers: a folder. Default:
            RUN/exported/backbone.safetensors for the library that the backbone is from, RUN/exported/TARGET/... for
            others.
        backbone: The function that builds a backbone of your own (package.module:function or file.py:function). It is
            imported only if you give it here, even if the run stores its name: a run folder from somebody else could
            name code that you do not trust.
        into: For transformers: the folder of a detector (save_pretrained), of which a copy with the run's backbone is
            written. Default, for a run of the backbone transformers:FOLDER: that folder.

    Returns:
        The receipt: what was written and what was checked.

    Raises:
        ConfigError: The target, the name of the file or `backbone` cannot be used.
        WeightsError: There is no checkpoint, it cannot be read, or its weights are not finite.
        ExportError: The target has no such backbone, the file cannot be written, or the proof failed.

    Examples:
        >>> import plrc
        >>> receipt = plrc.export_backbone("runs/first", "torchvision", "backbone.pt")  # doctest: +SKIP
        >>> print(receipt.line())  # doctest: +SKIP
        backbone.pt: 120 tensors of resnet18 at step 150, all equal in torchvision 0.29.2, ...
    """
    if target not in TARGETS:
        raise ConfigError(f"cannot export to {target!r}; write one of {', '.join(TARGETS)}")
    if into and target != "transformers":
        raise ConfigError(
            f"--into names a detector of transformers, but the export is for {target}; write transformers"
        )
    checkpoint = checkpoint_of(Path(run))
    folder = _run_folder(checkpoint)
    saved = load_checkpoint(checkpoint)
    config = Config.from_dict(saved["config"])
    name = trusted_backbone(config.model.backbone, backbone, how="--backbone {}")
    if backbone and backbone != name:
        raise ConfigError(f"{run} holds a {name}, not a {backbone}; leave --backbone out")
    library = TARGETS[target]
    if target == "transformers" and (into or name.startswith(DETECTOR_PREFIX)):
        detector = Path(into) if into else folder_of(name)
        if out is not None and Path(out).resolve() == detector.resolve():
            raise ConfigError(f"--out is the folder of the detector itself, {detector}; name another, for the copy")
        library = target_into(detector)
        if name.startswith(DETECTOR_PREFIX):
            name = f"{DETECTOR_PREFIX}{detector}"  # the run's own folder may have moved
    student = _student_backbone(saved)
    refuse_non_finite(student, f"the student of {checkpoint}")
    channels = config.data.channels
    library.rename(name, student)  # refuses a backbone that the library does not have, before a folder is made
    default_folder = folder / "exported"
    if target != default_target(name):
        default_folder = default_folder / target
    file = _output_file(library, Path(out) if out is not None else None, default_folder)
    try:
        with unproven_folder(file) as folder_of_proof:
            metadata = _metadata(saved, name, config, student)
            proof, sha256 = _write_proven(library, file, folder_of_proof, name, student, metadata, channels)
            target_version = target
            if proof.networks:  # the installed library loaded the file
                target_version = f"{target} {library.version()}".strip()
            note = ""
            if proof.unverified:
                note = f"{UNVERIFIED} ({proof.unverified})"
            receipt = Receipt(
                file=str(file),
                sha256=sha256,
                content_sha256=content_hash(student),
                target=target_version,
                networks=proof.networks,
                note=note,
                backbone=name,
                tensors=proof.tensors,
                absent=proof.absent,
                largest_difference=proof.largest_difference,
                tolerance=library.tolerance,
                left_random=proof.left_random,
                settings=library.settings(name, config.data.pixels),
                step=saved["step"],
                steps=_planned_steps(config, saved, folder / "manifest.json"),
                plrc_version=saved["version"],
                checkpoint=str(checkpoint),
            )
            write_json(file.with_name(f"{file.name}.receipt.json"), dataclasses.asdict(receipt))
            write_text(card_path(file), model_card(receipt, saved, folder))
    except OSError as error:
        raise ExportError(f"cannot write {file}: {error.strerror}") from error
    return receipt


def _student_backbone(saved: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the student's backbone in a checkpoint, under the backbone's own names."""
    student: dict[str, Tensor] = {}
    for key, tensor in saved["student"].items():
        if key.startswith(BACKBONE_PREFIX):
            student[key.removeprefix(BACKBONE_PREFIX)] = tensor.detach().cpu().contiguous()
    return student


def _metadata(saved: dict[str, Any], backbone: str, config: Config, student: Mapping[str, Tensor]) -> dict[str, str]:
    numbers: Fingerprint = {}
    with contextlib.suppress(ExportError), torch.random.fork_rng(devices=[]):  # the proof says what is wrong
        numbers = fingerprint(backbone_with(backbone, student, config.data.channels))
    return {
        "format": "plrc",
        "backbone": backbone,
        "stride": str(config.model.largest_stride),
        "layer4_stride": str(config.model.layer4_stride),
        "step": str(saved["step"]),
        "plrc_version": saved["version"],
        "config": json.dumps(saved["config"]),
        **config.data.pixels.metadata(),
        "fingerprint": to_text(numbers),
    }


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _planned_steps(config: Config, saved: dict[str, Any], manifest: Path) -> int:
    """Steps of the whole run; 0 if they depend on the number of images and there is no manifest."""
    images = len(read_manifest(manifest)["train"]) if manifest.exists() else 0
    if not (images or config.optim.steps or config.optim.hours):
        return 0
    return steps_of_run(config, images, saved["step"], saved["seconds_used"])


def _output_file(library: Target, out: Path | None, default_folder: Path) -> Path:
    """The file to write, in `default_folder` if the user names none."""
    if library.file_in_folder:
        folder = default_folder if out is None else out
        if folder.name == library.file_in_folder:  # the user named the file itself
            return folder
        return folder / library.file_in_folder
    if out is None:
        return default_folder / f"backbone{library.endings[0]}"
    if out.suffix not in library.endings:
        raise ConfigError(f"cannot write {out.name}; let --out end in {' or '.join(library.endings)}")
    return out


def _write_proven(
    library: Target,
    file: Path,
    folder: Path,
    backbone: str,
    student: dict[str, Tensor],
    metadata: dict[str, str],
    channels: int,
) -> tuple[Proof, str]:
    """Write into an empty folder, prove that file, then move all files; returns the proof and the file's SHA-256.

    PyTorch's random state stays as it was: the caller may draw from it afterwards.
    """
    unproven = folder / file.name
    with torch.random.fork_rng(devices=[]):
        library.write(unproven, backbone, student, metadata)
        proof = prove(library, unproven, backbone, student, channels)
    sha256 = file_sha256(unproven)
    for written in sorted(folder.iterdir()):
        written.replace(file.with_name(written.name))
    return proof, sha256
