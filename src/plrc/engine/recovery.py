"""When numbers are no longer finite: back to the last good checkpoint, once, with a lower learning rate. Layer 4.

Going back is a resume. The lowered rate is written into the checkpoint that the run goes back to, after the later ones
are deleted. So what comes next follows from the run folder alone, and a run that is killed anywhere on the way, before,
between or after, ends with the same weights as one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from plrc import distributed
from plrc.engine.checkpoint import checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from plrc.engine.setup import Plan
from plrc.errors import PlrcError

MOST_SKIPPED = 50  # steps in a row without a finite gradient that end patience; loss scaling settles in fewer
LOWERED = 0.1  # of the scheduled learning rate


class Diverged(PlrcError):
    """The numbers of a run are no longer finite, and there is a checkpoint to go back to. All processes raise it."""


def non_finite(content: Mapping[Any, Any], name: str = "") -> str:
    """The name of the first tensor in nested mappings that holds NaN or infinity; empty if none does."""
    for key, value in content.items():
        where = f"{name}.{key}" if name else str(key)
        if isinstance(value, Tensor):
            found = "" if not value.is_floating_point() or bool(value.isfinite().all()) else where
        else:
            found = non_finite(value, where) if isinstance(value, Mapping) else ""
        if found:
            return found
    return ""


def fall_back(plan: Plan, reason: str) -> Plan:
    """Make the newest good checkpoint the run's newest, with the learning rate lowered, and plan to go on from it.

    Good: the step before it was not skipped. Where none is, the oldest, which holds the state after the last step that
    was not.
    """
    if distributed.is_main():
        found = checkpoints(plan.out)
        state = load_checkpoint(found[-1])
        while state["skipped_in_a_row"] and len(found) > 1:
            found.pop().unlink()
            state = load_checkpoint(found[-1])
        save_checkpoint(found[-1].parent, state | {"lr_factor": LOWERED, "skipped_in_a_row": 0}, keep=0)
    distributed.barrier()
    checkpoint = newest_checkpoint(plan.out)
    remark = f"warning: {reason}: back to {checkpoint and checkpoint.name} with {LOWERED:.0%} of the learning rate"
    return replace(plan, checkpoint=checkpoint, remarks=(remark,))
