"""A process that is killed while it writes its first file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

KILL = "import os, signal; os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"


def kill_at_first_file(code: str, *arguments: object) -> None:
    """Run Python code in a process that is killed after it has written its first file, before the file is renamed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILL + code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
