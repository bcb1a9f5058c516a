"""Atomic, numbered checkpoints that load with weights only.

Layer 4. A checkpoint is one file `checkpoints/step_00001000.pt`; the text file `checkpoints/last` names the newest.
`KEYS` is a tested contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from plrc.config import PlrcError
from plrc.files import write_atomic, write_text

FORMAT = 1
KEYS = (
    "format", "version", "config", "images", "step", "student", "teacher", "queue", "center", "optimizer", "scaler",
    "health",
)  # fmt: skip


def save_checkpoint(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` into `folder` and delete all but the newest `keep` checkpoints (0: keep all)."""
    if set(state) != set(KEYS):
        raise ValueError(f"checkpoint keys differ from the contract: {sorted(set(state) ^ set(KEYS))}")
    path = folder / f"step_{state['step']:08d}.pt"
    try:
        write_atomic(path, lambda file: torch.save(state, file))
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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code in it; one clear sentence if it cannot be used."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PlrcError(f"no checkpoint at {path}: it does not exist; make one with: plrc pretrain") from error
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise PlrcError(
            f"the checkpoint {path} cannot be read (damaged or not a checkpoint); "
            "move it away and resume from the one before it"
        ) from error
    if not isinstance(state, dict) or set(state) != set(KEYS):
        raise PlrcError(f"{path} is not a plrc checkpoint")
    if state["format"] != FORMAT:
        raise PlrcError(f"{path} has checkpoint format {state['format']}; this version of plrc reads format {FORMAT}")
    return state
