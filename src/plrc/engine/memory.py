"""Out of memory: find the number of images at a time that fits, by trying smaller ones."""

from __future__ import annotations

import gc

import torch

from plrc import distributed
from plrc.data.loader import ViewDataset, collate
from plrc.engine.frozen import prepare_teacher
from plrc.engine.setup import Plan
from plrc.engine.state import TrainingState

# of PyTorch's allocators on a CPU and an Apple GPU, of C++, of the system
MESSAGES = ("can't allocate memory", "MPS backend out of memory", "bad_alloc", "Cannot allocate memory")


def ran_out(error: BaseException) -> bool:
    """Tell whether an error means that this process could get no more memory, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(message in str(error) for message in MESSAGES)


def advice(plan: Plan) -> str:
    """Describe what to do after memory ran out.

    A single process tries halves of the micro-batch until two steps fit. Of several processes only some may have
    failed, so they try nothing and name the first half.
    """
    batch = plan.config.optim.batch_size
    processes = distributed.world_size()
    images = batch // plan.config.optim.gradient_accumulation_steps // processes
    problem = f"out of memory with {images} images at a time"
    if processes > 1:
        problem += " in each process"
    halves = _halves(images, least=plan.config.model.bn_groups)
    if processes > 1:
        fitting = halves[0] if halves else 0
        evidence = "not tried, half of it"
    else:
        fitting = next((half for half in halves if _fits(plan, half)), 0)
        evidence = "tried here with two steps"
    if fitting:
        total = fitting * processes
        return (
            f"{problem}; {fitting} should fit ({evidence}): "
            f"write --optim.gradient-accumulation-steps {batch // total}, which keeps the batch of {batch} "
            f"(negatives then come from one micro-batch), or --optim.batch-size {total}; "
            "resume with --resume --run.allow-changes"
        )
    if halves and processes == 1:
        problem += f"; {halves[-1]} do not fit either"
    return f"{problem}; write a smaller --views.size or --model.backbone, or --optim.precision bfloat16"


def _halves(images: int, least: int) -> list[int]:
    """List images / 2, images / 4, ... as long as they are whole and not below `least`."""
    halves: list[int] = []
    while images % 2 == 0 and images // 2 >= max(least, 1):
        images //= 2
        halves.append(images)
    return halves


def _fits(plan: Plan, images: int) -> bool:
    """Whether two steps with this many images at a time, on a new state, get the memory they need."""
    gc.collect()
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
    elif plan.device.type == "mps":
        torch.mps.empty_cache()
    try:
        _make_two_steps(plan, images)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    return True


def _make_two_steps(plan: Plan, images: int) -> None:
    config = plan.config.with_values({"optim.batch_size": images, "optim.gradient_accumulation_steps": 1}, pin=False)
    data = ViewDataset(plan.images, plan.train, config)
    batch = collate([data[0, index] for index in range(images)]).to(plan.device)
    state = TrainingState(config, plan.device, prepare_teacher(plan))
    order = torch.arange(images, device=plan.device)
    for _ in range(2):  # the second step also holds the optimizer's state
        state.guard.save()
        output = state.learner.compute_terms(batch, state.learner.student, order, config.objectives.teacher_temperature)
        state.scaler.scale(state.learner.total_loss(output.terms)).backward()
        state.update([output], config.optim.lr, config.optim.teacher_momentum)
