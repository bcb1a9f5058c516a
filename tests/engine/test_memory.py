"""Out of memory, for real: a process that may not have more."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plrc.config import Config
from plrc.engine.memory import ran_out

LIMITED = """
import resource, sys
import torch
torch.set_num_threads(1)
from plrc.cli import main
import plrc.engine.pretrain, plrc.export, plrc.visualize.report, torch.utils.tensorboard
from pathlib import Path
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 2**20,) * 2)
sys.exit(main(["pretrain", "--config", *sys.argv[2:]]))
"""


def limited(megabytes: int, config: Config, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    config.save(folder / "config.toml")
    command = [sys.executable, "-c", LIMITED, str(megabytes), str(folder / "config.toml"), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to know the memory in use")
def test_the_part_that_fits_is_named_and_does_fit(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny(views__size=224, optim__batch_size=48, optim__steps=2, data__held_out=0, run__threads=1)
    done = limited(1100, config, tmp_path)
    assert done.returncode == 2, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    named = re.search(
        r"out of memory with 48 images at a time; (\d+) should fit .* --optim\.gradient-accumulation-steps (\d+),",
        sentence,
    )
    assert named, done.stderr
    fitting, parts = map(int, named.groups())
    assert 2 <= fitting < 48 and fitting * parts == 48
    again = limited(
        1100, config, tmp_path, "--optim.gradient-accumulation-steps", str(parts), "--resume", "--run.allow-changes"
    )
    assert again.returncode == 0, again.stderr


def test_what_is_no_want_of_memory() -> None:
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(caught.value)
    assert ran_out(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))  # a process that cannot be forked
    assert not ran_out(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
