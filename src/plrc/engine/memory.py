"""When memory runs out: the part of a batch that fits, found by trying smaller ones. Layer 4."""

from __future__ import annotations

import torch

from plrc import distributed
from plrc.data.loader import ViewDataset, collate
from plrc.engine.setup import Plan
from plrc.engine.state import TrainingState
from plrc.machine import return_freed_memory

CPU_SIGNS = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")  # PyTorch's allocator, C++, the system


def ran_out(error: BaseException) -> bool:
    """Whether an error means that this process could get no more memory, on a GPU or a CPU."""
    found = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return found or any(sign in str(error) for sign in CPU_SIGNS)


def advice(plan: Plan) -> str:
    """What to write after memory ran out. One process tries halves until a step fits; several cannot, since not all of
    them may have failed, and name the first half untried."""
    batch, groups, world = plan.config.optim.batch_size, plan.config.model.bn_groups, distributed.world_size()
    now = batch // plan.config.optim.gradient_accumulation_steps // world
    halves = [now >> k for k in range(1, now.bit_length()) if now % (1 << k) == 0 and now >> k >= groups]
    fitting = next((n for n in halves if world > 1 or _fits(plan, n)), 0)
    said = f"out of memory with {now} images at a time" + " in each process" * (world > 1)
    if not fitting:
        tried = f"nor do {halves[-1]} fit; " if halves and world == 1 else ""
        return f"{said}; {tried}write a smaller --views.size or --model.backbone, or --optim.precision bfloat16"
    how = "not tried, half of it" if world > 1 else "tried here with two steps"
    return (
        f"{said}; {fitting} should fit ({how}): write --optim.gradient-accumulation-steps {batch // (fitting * world)}, which keeps the "
        f"batch of {batch} (negatives then come from one part), or --optim.batch-size {fitting * world}; "
        "go on with --resume --run.allow-changes"
    )


def _fits(plan: Plan, images: int) -> bool:
    """Whether two steps with this many images at a time, on a new state, find the memory they need."""
    return_freed_memory()
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        _steps(plan, images)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    return True


def _steps(plan: Plan, images: int) -> None:
    config = plan.config.with_values({"optim.batch_size": images, "optim.gradient_accumulation_steps": 1}, pin=False)
    data = ViewDataset(plan.images, plan.train, config)
    batch = collate([data[0, i] for i in range(images)]).to(plan.device)
    state = TrainingState(config, plan.device)
    order = torch.arange(images, device=plan.device)
    for _ in range(2):  # the second one has the optimiser's state beside it
        state.guard.remember()
        outcome = state.learner.compute_terms(
            batch, state.learner.student, order, config.objectives.teacher_temperature
        )
        state.scaler.scale(state.learner.total_loss(outcome.terms)).backward()
        state.update([outcome], config.optim.lr, config.optim.teacher_momentum)
