"""The machine and the software that a result was computed with."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the name of the CPU."""
    with contextlib.suppress(OSError):  # Linux only; elsewhere the standard library knows the name
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def plrc_version() -> str:
    """Return the version of the installed distribution."""
    return version("plrc-pretrain")


def installed_version(package: str) -> str:
    """Return the version of a package that can be imported, from any distribution; empty if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        pass
    if find_spec(package) is None:
        return ""
    return str(getattr(import_module(package), "__version__", ""))  # onnxruntime of the distribution onnxruntime-gpu


def versions() -> dict[str, str]:
    """Return the versions of plrc, PyTorch and Python."""
    import torch

    return {"plrc": plrc_version(), "torch": torch.__version__, "python": platform.python_version()}


def commit(root: Path = Path(__file__).parents[2]) -> str:
    """Return the git commit of a checkout, with "-dirty" appended if files were changed.

    Args:
        root: Root of the checkout; by default that of plrc itself.

    Returns:
        The commit; empty if `root` is not a checkout.
    """
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
