"""What a process and its children use, from Linux's /proc: memory, open file handles, processor time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")


class Use(NamedTuple):
    """Of one process: resident memory in MB, open file handles, seconds of processor time, and whether it is alive."""

    rss_mb: float
    handles: int
    cpu_s: float


def use(pid: int) -> Use | None:
    """None where the process is gone or has ended without being waited for."""
    folder = Path(f"/proc/{pid}")
    try:
        after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        status = dict(line.partition(":")[::2] for line in (folder / "status").read_text().splitlines())
        handles = len(os.listdir(folder / "fd"))
    except OSError:
        return None
    if "VmRSS" not in status:
        return None
    return Use(int(status["VmRSS"].split()[0]) / 1024, handles, (int(after_name[11]) + int(after_name[12])) / TICK)


def children(pid: int) -> list[int]:
    """All processes below `pid`, in the order of their numbers."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            mine = [int(word) for word in path.read_text().split()]
        except OSError:
            continue
        for child in mine:
            found += [child, *children(child)]
    return sorted(found)


def busy_seconds() -> float:
    """Processor time of the whole machine since it started, idle time left out."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq = (int(word) for word in words[:7])
    return (user + nice + system + irq + softirq) / TICK
