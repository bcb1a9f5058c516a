"""The processor that we run on, and its memory. Layer 0: imports nothing of ours."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Its name. On Linux only the kernel's listing has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library is glibc: it keeps what lies between living blocks, and
    a process that now and then holds a second network for a moment (each export) grew by 12 MB every time."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
