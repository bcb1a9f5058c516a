"""All collective operations of the package; each of them also works in a single process.

A run under torchrun, or any launcher that sets RANK, WORLD_SIZE and MASTER_ADDR, joins its process group. Without a
launcher `world_size()` is 1 and all functions return at once. Tensors are exchanged on their device; flags and texts
are exchanged on the CPU (gloo), so that they never wait for a GPU.

Shapes: B images of this process, R processes.
"""

from __future__ import annotations

import os
import platform
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

ARRIVAL = 600.0  # seconds within which all processes must have started, even if run.stall_seconds is shorter
GRACE = 5.0  # seconds within which all living processes have noticed that another one failed

_store: Store | None = None  # lets a process leave a message for the others without waiting for them


def rank() -> int:
    """Return the number of this process, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the main process, which writes files."""
    return rank() == 0


def is_started() -> bool:
    """Return whether a process group exists."""
    return dist.is_initialized()


def start(device: torch.device, stall_seconds: float = 600.0) -> None:
    """Join the process group of the launcher, if there is one (nccl for GPUs, gloo for CPUs).

    Args:
        device: The device of this process.
        stall_seconds: Time after which a collective fails if another process does not answer; `describe_lost_processes`
            names it.
    """
    global _store  # noqa: PLW0603 - one per process, like PyTorch's process group
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        shared, mine, world = next(rendezvous("env://", timeout=timedelta(seconds=ARRIVAL)))
        _store = PrefixStore("plrc", shared)
        _store.set(f"host {mine}", platform.node())
        _store.wait([f"host {other}" for other in range(world)], timedelta(seconds=ARRIVAL))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(seconds=stall_seconds)
        dist.init_process_group(backend, store=shared, rank=mine, world_size=world, timeout=patience)


def describe_lost_processes(error: BaseException) -> str:
    """Name the processes that made a collective raise `error` in this process.

    Each process that notices a failure reports it in the store. A process that reports nothing exited or hung.

    Returns:
        A sentence without a full stop; empty if `error` does not come from a collective.
    """
    if _store is None or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return ""
    silent = list(range(world_size()))
    try:
        _store.set(f"failed {rank()}", "")
        until = time.monotonic() + GRACE
        while silent and time.monotonic() < until:
            silent = [other for other in silent if not _store.check([f"failed {other}"])]
            time.sleep(0.1)
        names = [f"process {other} of {world_size()} (on {_store.get(f'host {other}').decode()})" for other in silent]
    except RuntimeError:  # the store is held by the first process
        return "the first process, or its host, does not answer"
    return f"no answer from {', '.join(names)}" if names else "the connection between the processes broke"


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has called this."""
    any_process(False)


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process; every process gets the same answer."""
    return bool(sum_over_processes(torch.tensor(int(flag))) > 0)


def merge_dicts(words: dict[str, str]) -> dict[str, str]:
    """Return the dictionaries of all processes merged into one."""
    if world_size() == 1:
        return words
    parts: list[dict[str, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(parts, words)
    return {name: word for part in parts for name, word in part.items()}


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Join a tensor over all processes, without gradient.

    Args:
        tensor: [B, ...], of this process.

    Returns:
        [R * B, ...], in rank order.
    """
    tensor = tensor.detach().contiguous()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


@torch.no_grad()
def shuffle(tensor: Tensor, order: Tensor) -> Tensor:
    """Permute a batch over all processes.

    Each process sends and receives B rows, for any R. An order on the CPU avoids waiting for the GPU.

    Args:
        tensor: [B, ...], the rows of this process.
        order: [R * B], a permutation of the joined batch, the same in all processes.

    Returns:
        This process's rows [B, ...] of the permuted batch.
    """
    if world_size() == 1:
        return tensor.detach()[order]
    tensor, order, size = tensor.detach().contiguous(), order.cpu(), len(tensor)
    mine = slice(rank() * size, (rank() + 1) * size)
    goes_to = torch.argsort(order)[mine]  # the place in the joined result of each of my rows
    comes_from = order[mine] // size  # the process that has each row of my result
    takes, gives = (torch.bincount(part, minlength=world_size()).tolist() for part in (comes_from, goes_to // size))
    arrived, result = torch.empty_like(tensor), torch.empty_like(tensor)
    sent = tensor[torch.argsort(goes_to).to(tensor.device)]
    dist.all_to_all_single(arrived, sent, output_split_sizes=takes, input_split_sizes=gives)
    result[torch.argsort(comes_from, stable=True).to(tensor.device)] = arrived
    return result


@torch.no_grad()
def unshuffle(tensor: Tensor, order: Tensor) -> Tensor:
    """Undo `shuffle` with the same order, on a tensor [B, ...] that was computed from its result."""
    return shuffle(tensor, torch.argsort(order))
