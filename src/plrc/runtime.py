"""How a process runs: its device, its loader processes, its precision, and the signals that ask it to stop."""

from __future__ import annotations

import os
import re
import signal
import threading
from types import FrameType

import torch

from plrc import distributed
from plrc.errors import PlrcError
from plrc.machine import cores


def choose_device(name: str) -> torch.device:
    """auto: this process's GPU (by torchrun's number, else Slurm's) if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        several = torch.cuda.device_count() > 1  # Slurm may show each of its processes one GPU, always as number 0
        slurm = os.environ.get("SLURM_LOCALID", "0") if several else "0"
        name = f"cuda:{os.environ.get('LOCAL_RANK', slurm)}"
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise PlrcError(f"run.device is {name!r}; write auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            advice = "write --run.device cpu, or see: plrc doctor"
            raise PlrcError(f"run.device is {name} but PyTorch finds no GPU here; {advice}")
        if (device.index or 0) >= torch.cuda.device_count():
            raise PlrcError(f"run.device is {name} but there are {torch.cuda.device_count()} GPUs; write a lower N")
        torch.cuda.set_device(device)
    return device


def choose_workers(workers: int, device: torch.device) -> int:
    """-1: with a GPU up to 12 a process, leaving it a core; with a CPU one, since it shares its cores with training."""
    if workers >= 0:
        return workers
    return min(12, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)) if device.type == "cuda" else 1


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions and heads; objectives are always float32."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class StopRequest:
    """SIGTERM or SIGINT asks the loop to save and end after the current step; a second SIGINT interrupts at once.

    One inside another (a run of a comparison) shares what was asked: neither misses a signal that the other got.
    """

    def __init__(self) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        self._outer = outer if isinstance(outer, StopRequest) else None
        self.asked: bool = self._outer is not None and self._outer.asked
        self._previous = {s: signal.signal(s, self._ask) for s in wanted}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._outer is not None:
            self._outer._ask(number, frame)
        elif self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all of them call this at the same step and get the same answer."""
        return distributed.any_process(self.asked)

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
