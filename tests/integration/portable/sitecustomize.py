"""Python as on a system that is not POSIX: on PYTHONPATH it removes fork and what only POSIX has, and spawns."""

import os
import signal
import sys

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
for name in ("fork", "forkpty", "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
del signal.SIGKILL

import multiprocessing  # noqa: E402

multiprocessing.set_start_method("spawn")


def _not_for_plrc(**functions: object) -> None:
    """Linux's builds of PyTorch and of the standard library call `os.register_at_fork`; plrc itself may not."""
    if sys._getframe(1).f_globals["__name__"].startswith("plrc"):
        raise AttributeError("register_at_fork")


os.register_at_fork = _not_for_plrc  # type: ignore[assignment]
