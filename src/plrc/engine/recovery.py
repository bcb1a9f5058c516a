"""Recovery from numbers that are not finite: back to the last good checkpoint, once, with a lower learning rate.

Falling back is a resume. The lowered rate is written into the checkpoint that the run falls back to, after later ones
are deleted. What follows depends on the run folder alone, so a run that is killed at any moment of this ends with the
same weights as a run that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from torch import Tensor

from plrc import distributed
from plrc.data import workers
from plrc.engine.checkpoint import checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from plrc.engine.setup import Plan
from plrc.errors import RunError

MAX_SKIPPED_IN_A_ROW = 50  # steps without a finite gradient; loss scaling needs fewer to find its scale
LOWERED = 0.1  # of the scheduled learning rate
DEAD_WORKER = "DataLoader worker (pid"  # the beginning of PyTorch's message about a loader process that exited


class Diverged(RunError):
    """Numbers of the run are not finite, and there is a checkpoint to fall back to. All processes raise it."""


def explain(error: BaseException) -> str:
    """Explain the failure of another process to the user; empty for all other errors.

    The death of a loader process is raised by a signal handler, wherever the main process is: inside `torch.save`, the
    error that arrives is the one of the unfinished file, and the death is its context. `load_batches` explains it
    better; only if two die at once, the second death may arrive here.
    """
    cause: BaseException | None = error
    while cause is not None:
        if str(cause).startswith(DEAD_WORKER):
            return workers.describe_killed(str(cause))
        cause = cause.__cause__ or cause.__context__
    lost = distributed.describe_lost_processes(error)
    return f"{lost}: it exited or hung; check its log, then resume with --resume" if lost else ""


def diverge(plan: Plan, lr_factor: float, step: int, reason: str) -> NoReturn:
    """Leave the loop because of numbers that are not finite.

    Args:
        plan: The run.
        lr_factor: The share of the scheduled learning rate that the run trains with; below 1 it has fallen back before.
        step: The step that was just made.
        reason: What is not finite.

    Raises:
        Diverged: If the run can fall back to a checkpoint.
        RunError: If it cannot.
    """
    if lr_factor == 1 and newest_checkpoint(plan.out):
        raise Diverged(f"at step {step} {reason}")
    raise RunError(
        f"stopped at step {step}: {reason}; start again with a lower optim.lr, or with optim.precision float32"
    )


def non_finite(content: Mapping[Any, Any], name: str = "") -> str:
    """Return the dotted name of the first tensor in nested mappings that holds NaN or infinity; empty if none does."""
    for key, value in content.items():
        where = f"{name}.{key}" if name else str(key)
        if isinstance(value, Mapping):
            inner = non_finite(value, where)
            if inner:
                return inner
        elif isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            return where
    return ""


def fall_back(plan: Plan, reason: str) -> Plan:
    """Make the newest good checkpoint the run's newest, with the learning rate lowered, and plan to resume from it.

    A checkpoint is good if the step before it was not skipped. If there is none, the oldest is taken: it holds the
    state after the last step that was not skipped. The reason is logged.
    """
    if distributed.is_main():
        remaining = checkpoints(plan.out)
        state = load_checkpoint(remaining[-1])
        while state["skipped_in_a_row"] and len(remaining) > 1:
            remaining.pop().unlink()
            state = load_checkpoint(remaining[-1])
        save_checkpoint(remaining[-1].parent, state | {"lr_factor": LOWERED, "skipped_in_a_row": 0}, keep=0)
    distributed.barrier()
    checkpoint = newest_checkpoint(plan.out)
    assert checkpoint is not None
    warning = f"{reason}: back to {checkpoint.name} with {LOWERED:.0%} of the learning rate"
    return replace(plan, checkpoint=checkpoint, remarks=(), warnings=(warning,))
