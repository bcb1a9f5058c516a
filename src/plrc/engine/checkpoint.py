"""Atomic, numbered checkpoints that load with weights only and are checked before they are used.

Layer 4. A checkpoint is one file `checkpoints/step_00001000.pt`; the text file `checkpoints/last` names the newest.
`KEYS` is a tested contract. The file is a zip archive that holds a CRC-32 of each of its records: PyTorch writes these
sums but does not look at them when it reads, so we do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import torch

from plrc.errors import PlrcError
from plrc.files import damage, write_atomic, write_text

FORMAT = 2
KEYS = (
    "format", "version", "config", "images", "step", "student", "teacher", "queue", "center", "optimizer", "scaler",
    "health", "lr_factor", "skipped_in_a_row",
)  # fmt: skip
SINCE_2 = {"lr_factor": 1.0, "skipped_in_a_row": 0}  # and what a checkpoint of format 1 means without them


def save_checkpoint(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` into `folder` and delete all but the newest `keep` checkpoints (0: keep all).

    Raises PlrcError, caused by an OSError, where it cannot be written; what was there before is then untouched.
    """
    if set(state) != set(KEYS):
        raise ValueError(f"checkpoint keys differ from the contract: {sorted(set(state) ^ set(KEYS))}")
    path = folder / f"step_{state['step']:08d}.pt"
    try:
        write_atomic(path, lambda file: _write(state, file))
        write_text(folder / "last", path.name)
    except OSError as error:
        raise PlrcError(f"cannot save {path}: {error.strerror}; the checkpoints before it are untouched") from error
    if keep:
        for old in checkpoints(folder.parent)[:-keep]:
            old.unlink()
    return path


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted((run / "checkpoints").glob("step_*.pt"))


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run folder, or None."""
    found = checkpoints(run)
    return found[-1] if found else None


def checkpoint_of(path: Path) -> Path:
    """The newest checkpoint of a run folder; a file as it is. Raises PlrcError for a folder without one."""
    newest = newest_checkpoint(path) if path.is_dir() else path
    if newest is None:
        raise PlrcError(f"{path} holds no checkpoint; name the folder of a run that has saved one, or a file")
    return newest


def unreadable(path: Path) -> str:
    """What is wrong with a checkpoint's bytes; empty if nothing is."""
    try:
        _read(path, mmap=True)
    except ValueError as error:
        return str(error)
    return ""


def set_damaged_aside(run: Path) -> list[str]:
    """Rename a run's newest checkpoints to NAME.damaged as long as they are; a sentence for each.

    Raises PlrcError, and renames nothing, where no other one would be left.
    """
    found, damaged = checkpoints(run), {}
    while found and (reason := unreadable(found[-1])):
        damaged[found.pop()] = reason
    if damaged and not found:
        newest, reason = next(iter(damaged.items()))
        raise PlrcError(
            f"the checkpoint {newest} cannot be read ({reason}), nor is there another one in {run}; "
            "bring one back from a copy, or start again with another --out"
        )
    for path in damaged:
        path.rename(path.with_name(f"{path.name}.damaged"))
    if damaged:
        write_text(run / "checkpoints" / "last", found[-1].name)
    return [
        f"warning: the checkpoint {path.name} is damaged ({reason}) and set aside; {found[-1].name} is used instead"
        for path, reason in damaged.items()
    ]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code in it; one clear sentence if it cannot be used."""
    if not path.exists():
        raise PlrcError(f"no checkpoint at {path}: it does not exist; make one with: plrc pretrain")
    try:
        state = _read(path)
    except PermissionError as error:
        raise PlrcError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PlrcError(
            f"the checkpoint {path} cannot be read ({error}); move it away and resume from the one before it"
        ) from error
    if isinstance(state, dict) and state.get("format") == 1:
        state |= SINCE_2 | {"format": FORMAT}
    newer = state.get("format") if isinstance(state, dict) else None
    if isinstance(newer, int) and newer > FORMAT:
        raise PlrcError(f"{path} has checkpoint format {newer}; this version of plrc reads format {FORMAT}")
    if not isinstance(state, dict) or set(state) != set(KEYS) or newer != FORMAT:
        raise PlrcError(f"{path} is not a plrc checkpoint")
    return state


def _read(path: Path, mmap: bool = False) -> Any:
    """The content on the CPU, after its sums were compared. Raises ValueError with what is wrong with the bytes,
    and PermissionError, which is no damage."""
    if reason := damage(path):
        raise ValueError(reason)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except PermissionError:
        raise
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise ValueError(str(error).partition("\n")[0]) from error


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:  # what PyTorch makes of a write that the system refused
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
