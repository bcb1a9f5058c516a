"""Run a module of Python for which the system refuses to lock files, as it does on a file system without locks.

python -m tests.without_locks MODULE [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import errno
import platform
import runpy
import struct
import sys

import pytest

FLOCK = {"x86_64": 73, "aarch64": 32}  # number of the system call by machine
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of a filter

needs_filter = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in FLOCK, reason="only Linux filters system calls"
)


class Filter(ctypes.Structure):
    """The number of instructions of a filter, and the instructions."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_locks() -> None:
    """Let every call of flock end with ENOLCK, in this process and in those that it starts."""
    instructions = (
        (LOAD, 0, 0, 0),  # the number of the system call
        (JUMP_IF_EQUAL, 0, 1, FLOCK[platform.machine()]),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.ENOLCK),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    content = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    system = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(instructions), content)), 0, 0),
    ):
        if system.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "the system accepts no filter of system calls")


if __name__ == "__main__":
    refuse_locks()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
