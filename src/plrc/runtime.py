"""How a process runs: its device, its loader processes, its precision, and the signals that ask it to stop."""

from __future__ import annotations

import os
import re
import signal
import threading
from types import FrameType

import torch

from plrc import distributed
from plrc.errors import ConfigError
from plrc.interrupts import interrupt
from plrc.machine import cores

MAX_WORKERS = 12  # per GPU


def choose_device(name: str) -> torch.device:
    """Return the device that a setting names.

    Args:
        name: cpu, cuda, cuda:N, mps (the GPU of an Apple computer), or auto: this process's GPU, or the CPU if there is
            no GPU. Several processes never use mps.

    Raises:
        ConfigError: The name is invalid, or there is no such GPU.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available() and alone:
            name = "mps"
        else:
            name = "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{_local_rank()}"
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", name) is None:
        raise ConfigError(f"run.device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("run.device is mps but PyTorch finds no Apple GPU here; write --run.device cpu")
        if not alone:
            raise ConfigError("run.device mps works with a single process only; write --devices 1 or --run.device cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"run.device is {name} but PyTorch finds no GPU here; write --run.device cpu, or see: plrc doctor"
            )
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"run.device must be below cuda:{count} ({count} GPUs), got {name}")
        torch.cuda.set_device(device)
    return device


def _local_rank() -> str:
    """Return the number of this process on its host, as torchrun or Slurm gives it."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None:
        return rank
    if torch.cuda.device_count() > 1:
        return os.environ.get("SLURM_LOCALID", "0")
    return "0"  # Slurm may show each process a single GPU, always as number 0


def choose_workers(workers: int, device: torch.device) -> int:
    """Return the number of loader processes.

    Args:
        workers: The setting run.workers. -1: with a GPU of any kind this process's share of the cores, less one for
            training; with a CPU 1, since loading and training share the cores.
        device: The device of this process.
    """
    if workers >= 0:
        return workers
    if device.type == "cpu":
        return 1
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MAX_WORKERS, max(1, share - 1))


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions and heads. Objectives are always computed in float32.

    Args:
        precision: The setting optim.precision.
        device: The device of this process, which decides what auto means.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


class StopRequest:
    """Turns SIGTERM and SIGINT into a request to save and stop after the current step.

    A second SIGINT interrupts at once, and so does the first while there is nothing to save. A request inside another
    one (a run of a comparison) shares its state, so that neither misses a signal. Outside the main thread, where
    signals cannot be handled, it does nothing.

    Attributes:
        requested: Whether this process was asked to stop.
        has_work: Whether there is anything to save. If not, SIGINT raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        self._outer: StopRequest | None = outer if isinstance(outer, StopRequest) else None
        self.requested: bool = self._outer is not None and self._outer.requested
        self.has_work = True
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._outer is not None:
            self._outer._ask(number, frame)
        elif number == signal.SIGINT and (self.requested or not self.has_work):
            interrupt(number, frame)
            return  # it will be raised after an import
        self.requested = True

    def agreed(self) -> bool:
        """Return whether any process was asked to stop. All processes must call this at the same step."""
        return distributed.any_process(self.requested)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
