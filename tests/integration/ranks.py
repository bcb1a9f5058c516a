"""What each of several real processes does in test_distributed.py: python -m tests.integration.ranks JOBS OUT.

JOBS is a JSON list of {"name", "kind", "config", ...}; this process writes OUT/NAME.RANK.pt for each of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plrc import distributed
from plrc.config import Config
from plrc.data.loader import DeviceLoader, ViewDataset
from plrc.data.sampler import StepSampler
from plrc.data.sources import find_images
from plrc.engine import pretrain as loop
from plrc.engine.pretrain import pretrain
from plrc.engine.state import TrainingState
from plrc.errors import PlrcError

CPU = torch.device("cpu")
written: list[str] = []  # files that this process has opened for writing


def collectives(job: dict[str, Any]) -> dict[str, Any]:
    """Every collective once, on numbers that tell whose they are."""
    rank, size = distributed.rank(), job["rows"]
    mine = torch.arange(size * 3, dtype=torch.float32).view(size, 3) + 100 * rank
    order = torch.tensor(job["order"])
    shuffled = distributed.shuffle(mine, order)
    with_gradient = mine.clone().requires_grad_()
    return {
        "world": (rank, distributed.world_size(), distributed.is_main()),
        "mine": mine,
        "gathered": distributed.gather(mine),
        "gathered_numbers": distributed.gather(torch.arange(2, dtype=torch.int64) + 10 * rank),
        "gathered_needs_grad": distributed.gather(with_gradient).requires_grad,
        "shuffled": shuffled,
        "unshuffled": distributed.unshuffle(shuffled + 0.5, order),
        "sum": distributed.sum_over_processes(mine),
        "any": [distributed.any_process(flag) for flag in (False, rank == 1, rank == 0, True)],
        "words": distributed.merge_dicts({f"from {rank}": "x"} if rank else {}),
    }


def by_hand(job: dict[str, Any]) -> dict[str, Any]:
    """The loop's step without the loop: numbers of valid queries, gradients of the first step, all states."""
    config = Config.from_dict(job["config"])
    state = TrainingState(config, CPU)
    student = state.learner.wrapped_student()
    images = find_images(config.data)
    ranks = distributed.rank(), distributed.world_size()
    steps, parts = config.optim.steps, config.optim.gradient_accumulation_steps
    sampler = StepSampler(len(images), config.optim.batch_size, parts, config.seed, 0, steps, *ranks)
    batches = iter(DeviceLoader(ViewDataset(images, np.arange(len(images)), config), sampler, 0, CPU))
    counts, gradients, students, start = [], {}, [], state.checkpoint(0, "")["student"]
    start = {name: tensor.clone() for name, tensor in start.items()}
    for step in range(1, steps + 1):
        order = loop._teacher_order(config, step)
        state.guard.save()
        outcome = state.learner.compute_terms(next(batches), student, order, 0.05)
        state.learner.total_loss(outcome.terms).backward()
        counts.append({name: float(term.count) for name, term in outcome.terms.items()})
        if step == 1:
            named = state.learner.student.named_parameters()
            gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        state.update([outcome], config.optim.lr, config.optim.teacher_momentum)
        students.append({name: tensor.clone() for name, tensor in state.learner.student.state_dict().items()})
    return {"start": start, "counts": counts, "gradients": gradients, "students": students} | state.checkpoint(
        steps, ""
    )


def train(job: dict[str, Any]) -> dict[str, Any]:
    """`pretrain`; `signal`: [rank, step] at which one process sends itself SIGTERM."""
    original = loop.MetricWindow.add_step
    count = 0

    def counted(window: loop.MetricWindow, *args: torch.Tensor) -> None:
        nonlocal count
        original(window, *args)
        count += 1
        if [distributed.rank(), count] == job.get("signal"):
            os.kill(os.getpid(), signal.SIGTERM)

    loop.MetricWindow.add_step = counted  # type: ignore[method-assign]
    config = Config.from_dict(job["config"])
    written.clear()
    try:
        run = pretrain(config)
        return {"step": run.step, "finished": run.finished, "written": list(written)}
    except PlrcError as error:
        return {"error": str(error)}
    finally:
        loop.MetricWindow.add_step = original  # type: ignore[method-assign]


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "collectives": collectives,
    "by_hand": by_hand,
    "train": train,
}


def main(jobs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # see plain_convolutions in test_distributed.py
    distributed.start(CPU)
    sys.addaudithook(_note_writing)
    for job in json.loads(jobs.read_text()):
        torch.save(KINDS[job["kind"]](job), out / f"{job['name']}.{distributed.rank()}.pt")
    distributed.stop()


def _note_writing(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(str(args[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
