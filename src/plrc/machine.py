"""The processor that we run on, its memory, and the versions that compute. Layer 0: imports nothing of ours."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import sys
from importlib.metadata import version
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


def plrc_version() -> str:
    """Return the version of the installed distribution."""
    return version("plrc-pretrain")


def versions() -> dict[str, str]:
    """What computed a result."""
    import torch

    return {"plrc": plrc_version(), "torch": torch.__version__, "python": platform.python_version()}


def commit(root: Path = Path(__file__).parents[2]) -> str:
    """The commit at `root` (the checkout that plrc runs from), with "-dirty" where files differ from it; "" where
    `root` is not a checkout."""
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def return_freed_memory() -> None:
    """Give back what a process that now and then holds a second network for a moment (each export) has no use for.

    Cycles, such as those of plots, wait long for Python's collector. And glibc keeps freed memory that lies between
    living blocks: 12 MB at every export.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
