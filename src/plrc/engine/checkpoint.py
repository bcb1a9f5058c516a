"""Atomic, numbered checkpoints that load with weights only and are checked before they are used.

A checkpoint is a file `checkpoints/step_00001000.pt`; the text file `checkpoints/last` names the newest. `KEYS` is a
tested contract. The file is a zip archive that holds a CRC-32 of each of its records. PyTorch writes these checksums
but does not compare them when it reads, so this module does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, BinaryIO

import torch

from plrc.errors import RunError, WeightsError
from plrc.files import damage, write_atomic, write_text
from plrc.model.transformers_networks import WEIGHTS_FILE, is_detector_folder

logger = logging.getLogger(__name__)

FORMAT = 4
KEYS = (
    "format",
    "version",
    "config",
    "images",
    "step",
    "student",
    "teacher",
    "queue",
    "center",
    "optimizer",
    "scaler",
    "health",
    "lr_factor",
    "skipped_in_a_row",
    "seconds_used",
)
ADDED_KEYS: dict[int, dict[str, Any]] = {3: {"seconds_used": 0.0}}
"""Older format that can be read -> the keys that it lacks, with their values."""


def save_checkpoint(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and delete old ones.

    An old one that cannot be deleted stays, and the next save tries again.

    Args:
        folder: The folder `checkpoints` of a run.
        state: Its content, with KEYS.
        keep: How many of the newest checkpoints stay; 0: all.

    Returns:
        The file.

    Raises:
        RunError: If it cannot be written; its cause is an OSError, and checkpoints before it are untouched.
    """
    if set(state) != set(KEYS):
        raise ValueError(f"checkpoint keys differ from the contract: {sorted(set(state) ^ set(KEYS))}")
    path = folder / f"step_{state['step']:08d}.pt"
    try:
        write_atomic(path, lambda file: _write(state, file))
        write_text(folder / "last", path.name)
    except OSError as error:
        raise RunError(f"cannot save {path}: {error.strerror}; the checkpoints before it are untouched") from error
    if keep:
        delete_old_checkpoints(folder.parent, keep)
    return path


def delete_old_checkpoints(run: Path, keep: int) -> None:
    """Delete all but the newest checkpoints of a run folder. One that cannot be deleted stays, and a warning is logged.

    Args:
        run: The run folder.
        keep: How many stay, at least 1.
    """
    for old in checkpoints(run)[:-keep]:
        _delete(old)


def _delete(old: Path) -> None:
    try:
        old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot delete the old checkpoint %s: %s", old, error.strerror)


def checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run folder, oldest first."""
    return sorted((run / "checkpoints").glob("step_*.pt"))


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run folder; None if there is none."""
    paths = checkpoints(run)
    return paths[-1] if paths else None


def checkpoint_of(path: Path) -> Path:
    """Return the newest checkpoint of a run folder, the weights file of a detector's folder, or a file as it is.

    Raises:
        WeightsError: If a folder holds no checkpoint.
    """
    if is_detector_folder(path):
        return path / WEIGHTS_FILE
    newest = newest_checkpoint(path) if path.is_dir() else path
    if newest is None:
        raise WeightsError(f"{path} holds no checkpoint; name the folder of a run that has saved one, or a file")
    return newest


def checkpoint_damage(path: Path) -> str:
    """Return what is wrong with the bytes of a checkpoint; empty if nothing is.

    Raises:
        PermissionError: If it may not be read, which is no damage.
    """
    try:
        _read(path, mmap=True)
    except ValueError as error:
        return str(error)
    return ""


def rename_damaged(run: Path) -> list[str]:
    """Rename the newest checkpoints of a run to NAME.damaged as long as they are damaged.

    Returns:
        A warning for each of them.

    Raises:
        RunError: If all checkpoints are damaged; none is renamed then.
    """
    remaining = checkpoints(run)
    damaged: dict[Path, str] = {}
    while remaining:
        reason = checkpoint_damage(remaining[-1])
        if not reason:
            break
        damaged[remaining.pop()] = reason
    if not damaged:
        return []
    if not remaining:
        newest, reason = next(iter(damaged.items()))
        raise RunError(
            f"the checkpoint {newest} cannot be read ({reason}), and {run} holds no other checkpoint; "
            "restore one from a copy, or start again with another --out"
        )
    used = remaining[-1].name
    warnings: list[str] = []
    for path, reason in damaged.items():
        path.rename(path.with_name(f"{path.name}.damaged"))
        warnings.append(
            f"the checkpoint {path.name} is damaged ({reason}); it is renamed to {path.name}.damaged, "
            f"and {used} is used instead"
        )
    write_text(run / "checkpoints" / "last", used)
    return warnings


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code in it.

    Raises:
        WeightsError: If it cannot be used.
    """
    if not path.exists():
        raise WeightsError(f"no checkpoint at {path}: it does not exist; make one with: plrc pretrain")
    try:
        state = _read(path)
    except PermissionError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        advice = "move it away and resume from the one before it"
        raise WeightsError(f"the checkpoint {path} cannot be read ({error}); {advice}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} is not a plrc checkpoint")
    file_format = state.get("format")
    if isinstance(file_format, int) and file_format in ADDED_KEYS:
        state |= {"format": FORMAT, **ADDED_KEYS[file_format]}
        file_format = FORMAT
    if isinstance(file_format, int) and file_format != FORMAT:
        raise WeightsError(f"{path} has checkpoint format {file_format}; this version of plrc reads format {FORMAT}")
    if set(state) != set(KEYS):
        raise WeightsError(f"{path} is not a plrc checkpoint")
    return state


def _read(path: Path, mmap: bool = False) -> Any:
    """Read the content after comparing its checksums.

    Raises ValueError for what is wrong with the bytes, and PermissionError.
    """
    reason = damage(path)
    if reason:
        raise ValueError(reason)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except PermissionError:
        raise
    except Exception as error:  # torch.load raises many classes for damaged files
        raise ValueError(str(error).partition("\n")[0]) from error


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:  # PyTorch raises it when the system refuses a write
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
