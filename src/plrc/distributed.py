"""Every collective of the project, each with a single-process meaning: nobody else calls torch.distributed.

Layer 0. A run under torchrun (or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR) joins its process group; without
one, `world_size()` is 1 and all functions return at once. Tensors travel where they are; flags and words travel between
hosts (gloo), so that they never wait for a GPU.

Shapes: B images of this process, R processes.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def is_started() -> bool:
    return dist.is_initialized()


def start(device: torch.device) -> None:
    """Join the process group that the launcher's environment names (nccl for GPUs, gloo for CPUs), if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


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
    """This process's part of the joined batch in the order [R * B] (a permutation that all processes share)."""
    everything = gather(tensor)
    size = len(tensor)
    return everything[order[rank() * size : (rank() + 1) * size]]


@torch.no_grad()
def unshuffle(tensor: Tensor, order: Tensor) -> Tensor:
    """Undo `shuffle` on something computed from its result."""
    return shuffle(tensor, torch.argsort(order))
