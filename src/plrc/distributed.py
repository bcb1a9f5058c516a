"""Every collective of the project, each with a single-process meaning: nobody else calls torch.distributed.

Layer 0. A run under torchrun (or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR) joins its process group; without
one, `world_size()` is 1 and all functions return at once. Tensors travel where they are; flags and words travel between
hosts (gloo), so that they never wait for a GPU.

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

ARRIVAL = 600.0  # seconds within which all processes must have come, however short a stall may be
GRACE = 5.0  # seconds within which all that are alive have noticed that one is not

_store: Store | None = None  # words between processes that do not need the others' answer


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def is_started() -> bool:
    return dist.is_initialized()


def start(device: torch.device, stall_seconds: float = 600.0) -> None:
    """Join the process group that the launcher's environment names (nccl for GPUs, gloo for CPUs), if any.

    A collective fails after waiting `stall_seconds` for another process; `lost` then tells for which one.
    """
    global _store  # noqa: PLW0603 - it belongs to the process, as PyTorch's group does
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        shared, mine, world = next(rendezvous("env://", timeout=timedelta(seconds=ARRIVAL)))
        _store = PrefixStore("plrc", shared)
        _store.set(f"host {mine}", platform.node())
        _store.wait([f"host {other}" for other in range(world)], timedelta(seconds=ARRIVAL))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(seconds=stall_seconds)
        dist.init_process_group(backend, store=shared, rank=mine, world_size=world, timeout=patience)


def lost(error: BaseException) -> str:
    """After a collective failed in this process: which processes did not notice, and so have ended or hang, in words.
    Empty where `error` is not that of a collective."""
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
    except RuntimeError:  # the store is gone, and with it the process that held it
        return "the first process, or its host, does not answer"
    return f"no answer from {', '.join(names)}" if names else "the connection between the processes broke"


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Go on when every process has come here."""
    any_process(False)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over processes, without gradient."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process gets the same answer."""
    return bool(sum_over_processes(torch.tensor(int(flag))) > 0)


def gather_words(words: dict[str, str]) -> dict[str, str]:
    """The dictionaries of all processes in one."""
    if world_size() == 1:
        return words
    parts: list[dict[str, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(parts, words)
    return {name: word for part in parts for name, word in part.items()}


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """[B, ...] of every process -> [R * B, ...] in rank order, without gradient."""
    tensor = tensor.detach().contiguous()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


@torch.no_grad()
def shuffle(tensor: Tensor, order: Tensor) -> Tensor:
    """This process's part of the joined batch in the order [R * B] (a permutation that all processes share).

    Each process sends and receives B rows, whatever R is. An order on the CPU costs no wait for a GPU.
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
    """Undo `shuffle` on something computed from its result."""
    return shuffle(tensor, torch.argsort(order))
